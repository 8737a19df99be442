package keystore_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestNothingWaitsForWhatIsNoFile: a FIFO, or what leads to an endless device, under each name that the keystore reads. Neither
// Inspect nor Open nor a running server waits, and none takes it for a key.
func TestNothingWaitsForWhatIsNoFile(t *testing.T) {
	id, other := meta.KeyID{1}, meta.KeyID{2}
	good, m := newKeyFile(t, other, kek.Inline())
	for what, plant := range map[string]func(path string) error{
		"FIFO":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"endless":   func(path string) error { return os.Symlink("/dev/zero", path) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		for name, opens := range map[string]bool{
			nks.FileName(id): true, nks.BesideName(id): true, nks.FileName(id) + ".removed-1": true, nks.FileName(id) + ".wrong-1": true,
			id.String() + ".aead.nks.json": true, ".tmp-00112233445566778899aabbccddeeff": true, "." + nks.FileName(id) + ".swp": true,
			nks.FileName(id) + "~": true, "keystore.id": false, durable.LockName: false,
		} {
			dir := t.TempDir()
			if err := errors.Join(plant(filepath.Join(dir, name)), os.WriteFile(filepath.Join(dir, nks.FileName(other)), good, 0o600)); err != nil {
				t.Fatal(err)
			}
			if files, err := keystore.Inspect(t.Context(), dir, nil); err != nil || len(files) != 2 {
				t.Errorf("%s %s: %v, %v", what, name, files, err)
			}
			fsys, err := durable.OpenDir(dir)
			s := store{}
			if err == nil {
				s, err = openOn(t.Context(), fsys, []kek.KEK{kek.Inline()}, nil)
			}
			if opens != (err == nil) && !(what == "FIFO" && name == durable.LockName) { // which locks as well as a file
				t.Errorf("%s %s: %v", what, name, err)
			}
			if err != nil {
				continue
			}
			s.heal(t, ringOf(other, m.Check(other, "EdDSA")))
			held, err := s.Store.Confirm(id)
			if _, gone := os.Lstat(filepath.Join(dir, name)); held || !s.Confirm(other) || gone != nil && name[:4] != ".tmp" {
				t.Errorf("%s %s: held %t, %v; there: %v", what, name, held, err, gone)
			}
			s.Close()
		}
	}
}
