package keystore_test

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestFileOfARemovedKeyThatCannotBeReadIsLeftThere until it is known not to be Nomad's.
func TestFileOfARemovedKeyThatCannotBeReadIsLeftThere(t *testing.T) {
	disk, nomads := keyringtest.NewDisk(), keystoretest.NewNomadKey(t, 1, "1.4")
	files := nomads.Files(t)
	for name, b := range files {
		disk.Plant(name, 0o600, b)
	}
	own := meta.KeyID{1}
	plantKey(t, disk, own, kek.Inline())
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "read" && strings.HasSuffix(op.Name, ".nks.json") {
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	})
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	for _, id := range []meta.KeyID{own, nomads.ID} {
		if err := s.Remove(id); !errors.Is(err, syscall.EIO) {
			t.Errorf("unreadable: %v", err)
		}
	}
	disk.OnOp(nil)
	for _, id := range []meta.KeyID{own, nomads.ID} {
		if err := s.Remove(id); err != nil {
			t.Error(err)
		}
	}
	unchanged(t, disk, files, "removed")
	if names := disk.Names(); slices.Contains(names, nks.FileName(own)) {
		t.Errorf("files %v", names)
	}
	s.Close()
}

// TestFileOfAKeyThatIsBackIsNotUnlinked: a snapshot is restored between the decision and the deed.
func TestFileOfAKeyThatIsBackIsNotUnlinked(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
	aside := nks.FileName(id) + ".removed-1"
	if err := s.UnlinkRestored(id); err != nil || disk.Bytes(aside) == nil {
		t.Errorf("%v; files %v", err, disk.Names())
	}
	if err := s.Unlink(id); err != nil || disk.Bytes(aside) != nil {
		t.Errorf("removed all the same: %v; files %v", err, disk.Names())
	}
}

// TestRemovedKeyIsOnItsOldKEKUntilItsFileIsSetAside, and its file is counted there then.
func TestRemovedKeyIsOnItsOldKEKUntilItsFileIsSetAside(t *testing.T) {
	disk, old, id := keyringtest.NewDisk(), newKMS("old"), meta.KeyID{1}
	plantKey(t, disk, id, old)
	s := openStore(t, disk, []kek.KEK{newKMS("new")}, []kek.KEK{old})
	count := func(when string) {
		if n := s.OnOldKEKs(); n != 1 {
			t.Errorf("%s %d files are on old KEKs", when, n)
		}
	}
	count("before")
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "rename" {
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	})
	if err := s.Remove(id); err == nil {
		t.Fatal("it was set aside on a disk that fails")
	}
	count("while it can't be set aside")
	disk.OnOp(nil)
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
	count("set aside")
}

// TestKeyThatIsTakenBackIsNotSaidToBeMissing at any moment, for a server that says no has a new key dropped: its file is
// set aside, then it is named again and has not been read, then it is held.
func TestKeyThatIsTakenBackIsNotSaidToBeMissing(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
	ask := func(when string) {
		if held, err := s.Store.Confirm(id); held || err == nil {
			t.Errorf("%s: held %t, %v", when, held, err)
		}
	}
	ask("set aside")
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "rename" || op.Kind == "dirsync" {
			ask("at " + op.Kind)
		}
		return keyringtest.Fault{}
	})
	if err := s.TakeBackAny(id); err != nil {
		t.Fatal(err)
	}
	disk.OnOp(nil)
	ask("taken back")
	if err := s.TakeBack(t.Context(), id); err != nil { // reads it
		t.Fatal(err)
	}
	if !s.Confirm(id) {
		t.Error("read, and not held")
	}
}
