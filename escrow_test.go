package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"filippo.io/age"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

func ageIdentity(t testing.TB) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

func ageKEK(t testing.TB, to *age.X25519Identity, with ...age.Identity) keyring.KEK {
	t.Helper()
	kek, err := keyring.AgeKEK([]age.Recipient{to.Recipient()}, with...)
	if err != nil {
		t.Fatal(err)
	}
	return kek
}

// TestEscrowIsTheWayBack: the KMS is gone for good. The stolen or saved directory opens
// nothing by itself, and everything with the offline identity, which moves it to a new KEK.
func TestEscrowIsTheWayBack(t *testing.T) {
	disk, lost, identity := keyringtest.NewDisk(), newKMS("kms"), ageIdentity(t)
	lost.inner = fileKEK(t, countingKey())
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

func TestAgeKEKRefuses(t *testing.T) {
	scrypt, err := age.NewScryptRecipient("passphrase")
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string][]age.Recipient{
		"no recipients": {}, "a passphrase": {scrypt}, "a recipient without a name": {nameless{}},
	} {
		if kek, err := keyring.AgeKEK(to); err == nil {
			t.Errorf("%s: %v", name, kek)
		}
	}
	if _, err := ageKEK(t, ageIdentity(t)).Unwrap(t.Context(), nil, nil); !errors.Is(err, keyring.ErrWrapOnly) {
		t.Errorf("escrow unwraps: %v", err)
	}
}

type nameless struct{ age.Recipient }

func TestAgeKEKIDIsOfTheRecipientsInAnyOrder(t *testing.T) {
	a, b := ageIdentity(t), ageIdentity(t)
	id := func(with []age.Identity, to ...age.Recipient) string {
		kek, err := keyring.AgeKEK(to, with...)
		if err != nil {
			t.Fatal(err)
		}
		return kek.ID()
	}
	both := id(nil, a.Recipient(), b.Recipient())
	if both != id([]age.Identity{b}, b.Recipient(), a.Recipient()) || both == id(nil, a.Recipient()) {
		t.Errorf("%s is not the ID of both", both)
	}
}

// TestFIPSOnlyRefusesWhatCannotWork and nothing else, before anything is opened. It runs itself
// in a process that allows nothing else.
func TestFIPSOnlyRefusesWhatCannotWork(t *testing.T) {
	if os.Getenv("KEYRING_TEST_FIPS") != "" {
		_, err := keyring.PassphraseKEK([]byte("passphrase"))
		fmt.Println("passphrase:", err)
		_, err = keyring.AgeKEK([]age.Recipient{nameless{}})
		fmt.Println("age:", err)
		s := openStore(t, keyringtest.NewDisk(), []keyring.KEK{fileKEK(t, countingKey()), keyring.InlineKEK()}, nil)
		if _, err := put(t, s, keyring.KeyID{1}); err != nil || !s.Confirm(keyring.KeyID{1}) {
			t.Errorf("the other KEKs: %v", err)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFIPSOnlyRefusesWhatCannotWork$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", "KEYRING_TEST_FIPS=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "not allowed in FIPS 140-only mode") != 2 || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v: %s", err, out)
	}
}
