package keystore_test

import (
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestGoodFileThatReplacesABadOneIsNotSetAside: it comes after the bad one was read.
func TestGoodFileThatReplacesABadOneIsNotSetAside(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	disk.Plant(nks.FileName(id), 0o600, []byte("bad"))
	opened := 0
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "open" && op.Name == nks.FileName(id) {
			if opened++; opened == 2 {
				plantKey(t, disk, id, kek.Inline())
			}
		}
		return keyringtest.Fault{}
	})
	if err := s.Heal(t.Context(), &meta.Ring{}, nil, nil); err != nil {
		t.Fatal(err)
	}
	if aside := s.SetAside(); !s.Confirm(id) || len(aside) > 0 {
		t.Errorf("set aside: %v, held %t", aside, s.Confirm(id))
	}
}

// TestKeyThatIsPutWhileABadFileIsSetAsideIsHeld: what is set aside is the bad file, and never the one that is written.
func TestKeyThatIsPutWhileABadFileIsSetAsideIsHeld(t *testing.T) {
	for range 20 {
		disk, id := keyringtest.NewDisk(), meta.KeyID{1}
		s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
		disk.Plant(nks.FileName(id), 0o600, []byte("bad"))
		var began atomic.Bool
		done := make(chan error, 1)
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind != "rename" || !strings.Contains(op.To, ".malformed-") || began.Swap(true) {
				return keyringtest.Fault{}
			}
			go func() {
				_, err := put(t, s, id)
				done <- err
			}()
			for i := 0; i < 20_000 && len(done) == 0; i++ { // it has time to write, if it may
				runtime.Gosched()
			}
			return keyringtest.Fault{}
		})
		if err := s.Heal(t.Context(), &meta.Ring{}, nil, nil); err != nil {
			t.Fatal(err)
		}
		if !began.Load() {
			t.Fatal("the bad file was not set aside")
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if !s.Confirm(id) {
			t.Fatalf("the key is not held; files %v", disk.Names())
		}
	}
}
