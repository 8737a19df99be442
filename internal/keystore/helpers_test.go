package keystore_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
)

// store is a Store, and the KEKs that it was opened with.
type store struct {
	*keystore.Store
	keks *kek.Set
}

// openOn opens the keystore in fsys.
func openOn(ctx context.Context, fsys durable.FS, keks, old []kek.KEK) (store, error) {
	set := kek.NewSet(keks, old)
	s, err := keystore.Open(ctx, fsys, set, hclog.NewNullLogger())
	return store{s, set}, err
}

func openStore(t *testing.T, disk *keyringtest.Disk, keks, old []kek.KEK) store {
	t.Helper()
	fsys, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	s, err := openOn(t.Context(), fsys, keks, old)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Put makes new keys durable and returns an error for each.
func (s store) Put(ctx context.Context, keys map[meta.KeyID]*nks.Material) map[meta.KeyID]error {
	var all []keystore.Key
	for id, m := range keys {
		all = append(all, newKey(id, m))
	}
	errs := map[meta.KeyID]error{}
	for i, err := range s.Store.Put(ctx, all...) {
		errs[all[i].ID] = err
	}
	return errs
}

func newKey(id meta.KeyID, m *nks.Material) keystore.Key {
	return keystore.Key{ID: id, Algorithm: "EdDSA", Check: m.Check(id, "EdDSA"), Secret: m.Clone()}
}

// Has reports whether the key is held, with that check value.
func (s store) Has(id meta.KeyID, check [32]byte) bool {
	return s.Holds(&meta.Key{ID: id, Check: check})
}

// Confirm reports whether the key is held at this moment, by its file.
func (s store) Confirm(id meta.KeyID) bool {
	ok, err := s.Store.Confirm(id)
	return ok && err == nil
}

// VouchFor tells the store that a ring has its keys.
func (s store) VouchFor(ids ...meta.KeyID) {
	ring := &meta.Ring{}
	for _, id := range ids {
		if k, ok := s.Copy(id); ok {
			k.Secret.Wipe()
			ring.Keys = append(ring.Keys, &meta.Key{ID: id, Check: k.Check})
		}
	}
	s.Vouch(ring)
}

// Remove does with a key what becomes of a removed one, up to where it can be undone.
func (s store) Remove(id meta.KeyID) error {
	s.NoteRemoved(id)
	return s.Store.SetAside(id, isRemoved)
}

// Unlink removes for good what is left of a removed key.
func (s store) Unlink(id meta.KeyID) error { return s.Store.Unlink(id, isRemoved) }

// UnlinkRestored is Unlink of a key that a restore has brought back meanwhile.
func (s store) UnlinkRestored(id meta.KeyID) error {
	return s.Store.Unlink(id, func(meta.KeyID) bool { return false })
}

func isRemoved(meta.KeyID) bool { return true }

// TakeBack undoes a removal and reads the directory again.
func (s store) TakeBack(ctx context.Context, id meta.KeyID) error {
	if err := s.Store.TakeBackAny(id); err != nil {
		return err
	}
	return s.Heal(ctx, &meta.Ring{}, nil, nil)
}

// Rewrite makes keys durable again that are in memory.
func (s store) Rewrite(ctx context.Context, ids ...meta.KeyID) error {
	return errors.Join(s.Store.Rewrite(ctx, ids...)...)
}

// OnOldKEKs counts the files that Rewrap has left.
func (s store) OnOldKEKs() int { return s.Report(&meta.Ring{}).OnOldKEKs }

// Away says which KEK does not answer.
func (s store) Away() error { return s.keks.Down() }

// SetAside are the names of the files that this start has set aside.
func (s store) SetAside() []string { return s.Report(&meta.Ring{}).SetAside }

// put puts a key into a store and returns its check value.
func put(t testing.TB, s store, id meta.KeyID) ([32]byte, error) {
	t.Helper()
	m := keystoretest.NewMaterial(t)
	return m.Check(id, "EdDSA"), s.Put(t.Context(), map[meta.KeyID]*nks.Material{id: m})[id]
}

func newMaterial() *nks.Material {
	m, err := nks.Generate("EdDSA")
	if err != nil {
		panic(err)
	}
	return m
}

func plantKey(t testing.TB, d *keyringtest.Disk, id meta.KeyID, keks ...kek.KEK) {
	t.Helper()
	keystoretest.Plant(t, d, id, keks...)
}

func newKeyFile(t testing.TB, id meta.KeyID, keks ...kek.KEK) ([]byte, *nks.Material) {
	t.Helper()
	return keystoretest.KeyFile(t, id, keks...)
}

// keyFiles returns the content of the key files on a disk, and of those set aside.
func keyFiles(d *keyringtest.Disk) map[string]string {
	files := map[string]string{}
	for _, name := range d.Names() {
		if strings.Contains(name, ".nks.json") {
			files[name] = string(d.Bytes(name))
		}
	}
	return files
}

// unchanged wants every file of Nomad's to be there as it was.
func unchanged(t testing.TB, disk *keyringtest.Disk, files map[string][]byte, when string) {
	t.Helper()
	for name, b := range files {
		if string(disk.Bytes(name)) != string(b) {
			t.Errorf("%s: Nomad's file %s was changed", when, name)
		}
	}
}

// laterVersion is a key file as a later version has it, as far as this build can know.
func laterVersion(good []byte) []byte {
	late := bytes.Clone(good)
	late[bytes.IndexByte(late, ',')-1] = '1' + nks.FileVersion
	return late
}

// kms is a KEK that a test can make fail, hang, or only wrap.
type kms = kektest.KMS

func newKMS(id string) *kms { return kektest.New(id) }

// namedVault is a KMS by that name with a key of its own: two of them are told apart by nothing but
// what they open.
func namedVault(t testing.TB, key byte) *kms {
	k := newKMS("vault")
	k.Inner = fileKEK(t, bytes.Repeat([]byte{key}, 32))
	return k
}

var (
	errAway = kektest.ErrDown
	away    = kektest.Outages // the ways in which a KEK does not answer
	answers = kektest.Answers // makes it answer again
	faults  = keyringtest.Faults
)

func countingKey() []byte                                   { return kektest.CountingKey() }
func fileKEK(t testing.TB, content []byte) kek.KEK          { return kektest.File(t, content) }
func passphraseKEK(t testing.TB, passphrase string) kek.KEK { return kektest.Passphrase(t, passphrase) }
func ageIdentity(t testing.TB) *age.X25519Identity          { return kektest.Identity(t) }

func ageKEK(t testing.TB, to *age.X25519Identity, with ...age.Identity) kek.KEK {
	return kektest.Age(t, to, with...)
}
