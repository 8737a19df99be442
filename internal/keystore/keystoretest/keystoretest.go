// Package keystoretest has key files for tests: those of the keyring, and those of HashiCorp Nomad.
package keystoretest

import (
	"io/fs"
	"testing"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// NewMaterial returns the material of a new key that signs with EdDSA.
func NewMaterial(t testing.TB) *nks.Material {
	t.Helper()
	m, err := nks.Generate("EdDSA")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// KeyFile returns the file of a new key, wrapped under these KEKs, and its material.
func KeyFile[K kek.KEK](t testing.TB, id meta.KeyID, keks ...K) (content []byte, m *nks.Material) {
	t.Helper()
	m = NewMaterial(t)
	f := &nks.File{Version: nks.FileVersion, ID: id, Algorithm: "EdDSA", Check: m.Check(id, "EdDSA"), Created: time.Now()}
	for _, k := range keks {
		b, err := k.Wrap(t.Context(), m.Encode(), f.AAD())
		if err != nil {
			t.Fatal(err)
		}
		f.Wrapped = append(f.Wrapped, nks.Wrapped{KEK: k.ID(), Ciphertext: b})
	}
	f.MAC = m.MAC(f)
	content, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return content, m
}

// Disk is where files can be planted.
type Disk interface {
	Plant(name string, mode fs.FileMode, data []byte)
}

// Plant puts the file of a new key on a disk.
func Plant[K kek.KEK](t testing.TB, d Disk, id meta.KeyID, keks ...K) {
	t.Helper()
	b, _ := KeyFile(t, id, keks...)
	d.Plant(nks.FileName(id), 0o600, b)
}
