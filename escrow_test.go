package keyring_test

import (
	"bytes"
	"fmt"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"filippo.io/age"
)

func ageIdentity(t testing.TB) *age.X25519Identity { return kektest.Identity(t) }

func ageKEK(t testing.TB, to *age.X25519Identity, with ...age.Identity) keyring.KEK {
	return kektest.Age(t, to, with...)
}

// TestEscrowIsTheWayBack: the KMS is gone for good. The stolen or saved directory opens
// nothing by itself, and everything with the offline identity, which moves it to a new KEK.
func TestEscrowIsTheWayBack(t *testing.T) {
	disk, lost, identity := keyringtest.NewDisk(), newKMS("kms"), ageIdentity(t)
	lost.Inner = fileKEK(t, countingKey())
	id := keyring.KeyID{1}
	plantKey(t, disk, id, lost, ageKEK(t, identity))
	before := fmt.Sprint(keyFiles(disk))

	next := fileKEK(t, bytes.Repeat([]byte{9}, 32))
	for name, thief := range map[string][]keyring.KEK{
		"no KEK": nil, "escrow without its identity": {ageKEK(t, identity)}, "another identity": {ageKEK(t, identity, ageIdentity(t))},
	} {
		s := openStore(t, disk, []keyring.KEK{next}, thief)
		if s.Confirm(id) || s.OnOldKEKs() != 1 || s.Rewrap(t.Context()) == nil {
			t.Errorf("%s: it opens", name)
		}
		s.Close()
	}
	if fmt.Sprint(keyFiles(disk)) != before {
		t.Error("a file was touched")
	}

	s := openStore(t, disk, []keyring.KEK{next}, []keyring.KEK{ageKEK(t, identity, identity)})
	if !s.Confirm(id) || s.OnOldKEKs() != 1 {
		t.Error("it does not open with the identity")
	}
	if err := s.Rewrap(t.Context()); err != nil || !s.Confirm(id) || s.OnOldKEKs() != 0 {
		t.Errorf("%v, %d left", err, s.OnOldKEKs())
	}
	s.Close()
	if s = openStore(t, disk, []keyring.KEK{next}, nil); !s.Confirm(id) {
		t.Error("it does not open under the new KEK alone")
	}
}
