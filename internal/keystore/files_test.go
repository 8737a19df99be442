package keystore_test

import (
	"bytes"
	"io/fs"
	"syscall"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// ringOf is a ring with one active key.
func ringOf(id meta.KeyID, check [32]byte) *meta.Ring {
	return &meta.Ring{Keys: []*meta.Key{{ID: id, Check: check}}}
}

// heal has a store look at its directory again for the keys of a ring.
func (s store) heal(t *testing.T, ring *meta.Ring) {
	t.Helper()
	if err := s.Heal(t.Context(), ring, ring.Keys, nil); err != nil {
		t.Fatal(err)
	}
}

// copyFile puts a file on a disk as cp does: without a sync.
func copyFile(t *testing.T, disk *keyringtest.Disk, name string, content []byte) {
	t.Helper()
	fsys, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	f, err := fsys.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
}

// TestCopiedFileIsHeldOnceItIsSynced: who has put a key file there may not have synced it. A loss of power takes
// nothing that was held, and what can't be synced is not held.
func TestCopiedFileIsHeldOnceItIsSynced(t *testing.T) {
	id := meta.KeyID{1}
	content, _ := newKeyFile(t, id, kek.Inline())
	for _, failing := range []string{"", "sync", "dirsync"} {
		for _, loss := range keyringtest.Losses {
			disk := keyringtest.NewDisk()
			openStore(t, disk, []kek.KEK{kek.Inline()}, nil).Close() // it has its ID
			copyFile(t, disk, nks.FileName(id), content)
			disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Kind == failing && op.Name != "keystore.id" {
					return keyringtest.Fault{Err: syscall.EIO}
				}
				return keyringtest.Fault{}
			})
			s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
			if held := s.Confirm(id); held != (failing == "") {
				t.Errorf("%q fails: held %t", failing, held)
			}
			after := disk.Crash(loss, 1)
			s.Close()
			if failing != "" {
				continue
			}
			if next := openStore(t, after, []kek.KEK{kek.Inline()}, nil); !next.Confirm(id) {
				t.Errorf("%v: the key that was held is gone", loss)
			}
		}
	}
}

// TestFileThatFailedToSyncIsHeldOnceItIsWritten, and not when a later sync succeeds: the kernel has marked its pages clean.
func TestFileThatFailedToSyncIsHeldOnceItIsWritten(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	content, m := newKeyFile(t, id, kek.Inline())
	copyFile(t, disk, nks.FileName(id), content)
	bad := true
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "sync" && bad || op.Kind == "create" && op.Name != "keystore.id" {
			bad = bad && op.Name != nks.FileName(id)
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	})
	disk.Plant("keystore.id", 0o600, []byte("00112233445566778899aabbccddeeff\n"))
	s, ring := openStore(t, disk, []kek.KEK{kek.Inline()}, nil), ringOf(id, m.Check(id, "EdDSA"))
	s.heal(t, ring)
	if s.Confirm(id) {
		t.Error("held, and only the page cache has it")
	}
	disk.OnOp(nil)
	s.heal(t, ring)
	if !s.Confirm(id) {
		t.Error("written, and not held")
	}
	after := disk.Crash(keyringtest.Dropped, 1)
	s.Close()
	if !openStore(t, after, []kek.KEK{kek.Inline()}, nil).Confirm(id) {
		t.Error("the key that was held is gone")
	}
}

// TestSyncThatFailedWhenTheFileWasReadAgainCounts: a later one that succeeds has nobody hold the key, only a write does.
func TestSyncThatFailedWhenTheFileWasReadAgainCounts(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	check, err := put(t, s, id)
	if err != nil {
		t.Fatal(err)
	}
	ring, failing := ringOf(id, check), ""
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == failing || failing != "" && op.Kind == "create" {
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	})
	for _, failing = range []string{"open", "sync", "create"} {
		s.heal(t, ring)
		if s.Confirm(id) {
			t.Errorf("held when %s fails", failing)
		}
	}
	failing = ""
	if s.heal(t, ring); !s.Confirm(id) {
		t.Error("written, and not held")
	}
	s.Close()
}

// TestSameBytesReadAgainAreHeld, also on a full disk: it takes no write. And an error that says nothing of the file costs
// no hold.
func TestSameBytesReadAgainAreHeld(t *testing.T) {
	id := meta.KeyID{1}
	for _, kind := range []string{"open", "read"} {
		for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.ESTALE, syscall.EACCES} {
			disk := keyringtest.NewDisk()
			s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
			check, err := put(t, s, id)
			if err != nil {
				t.Fatal(err)
			}
			bad := true
			disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				switch {
				case op.Kind == "create":
					return keyringtest.Fault{Err: syscall.ENOSPC}
				case bad && op.Kind == kind && op.Name != "keystore.id":
					return keyringtest.Fault{Err: errno}
				}
				return keyringtest.Fault{}
			})
			if s.Confirm(id) {
				t.Errorf("%s, %v: held unread", kind, errno)
			}
			passing := errno == syscall.EMFILE || errno == syscall.ENFILE || errno == syscall.ENOMEM
			if held := s.Has(id, check); held != passing {
				t.Errorf("%s, %v: it counts as held: %t", kind, errno, held)
			}
			s.heal(t, ringOf(id, check))
			if bad = false; kind == "open" && !s.Confirm(id) { // of the other kind Heal finds out
				t.Errorf("%v: not held when it is read for the leader's question", errno)
			}
			s.heal(t, ringOf(id, check))
			if !s.Has(id, check) || !s.Confirm(id) || len(s.Report(&meta.Ring{}).Faults) > 0 {
				t.Errorf("%s, %v: not held when it can be read again: %v", kind, errno, s.Report(&meta.Ring{}).Faults)
			}
			s.Close()
		}
	}
}

// TestFileThatIsBeingCopiedIsNotSetAside, at whatever byte the directory is looked at: it is read when it is all there. One
// that stays cut short is set aside at the second look.
func TestFileThatIsBeingCopiedIsNotSetAside(t *testing.T) {
	id := meta.KeyID{1}
	name := nks.FileName(id)
	content, m := newKeyFile(t, id, kek.Inline())
	ring := ringOf(id, m.Check(id, "EdDSA"))
	for n := 0; n < len(content); n += 50 {
		disk := keyringtest.NewDisk()
		s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
		disk.Plant(name, 0o600, content[:n])
		s.heal(t, ring)
		if err := s.Put(t.Context(), map[meta.KeyID]*nks.Material{{2}: m})[meta.KeyID{2}]; err != nil {
			t.Error(err)
		}
		disk.Plant(name, 0o600, content)
		s.heal(t, ring)
		if aside := s.SetAside(); len(aside) > 0 || !s.Confirm(id) || len(s.Report(ring).Faults) > 0 {
			t.Errorf("after %d bytes: set aside %v, held %t", n, aside, s.Confirm(id))
		}
		s.Close()

		disk = keyringtest.NewDisk()
		s = openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
		disk.Plant(name, 0o600, content[:n])
		s.heal(t, ring)
		s.heal(t, ring)
		if aside := s.SetAside(); len(aside) != 1 {
			t.Errorf("cut to %d bytes for good: set aside %v", n, aside)
		}
		s.Close()
	}
}

// TestFileThatWasThereAtTheStartIsNotBeingCopied: it is set aside at once. Another one of that name, which comes later, may be.
func TestFileThatWasThereAtTheStartIsNotBeingCopied(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	name := nks.FileName(id)
	content, m := newKeyFile(t, id, kek.Inline())
	disk.Plant(name, 0o600, content[:100])
	s, ring := openStore(t, disk, []kek.KEK{kek.Inline()}, nil), ringOf(id, m.Check(id, "EdDSA"))
	if aside := s.SetAside(); len(aside) != 1 {
		t.Errorf("set aside at the start: %v", aside)
	}
	s.heal(t, ring)
	disk.Plant(name, 0o600, content[:100])
	s.heal(t, ring)
	disk.Plant(name, 0o600, content)
	s.heal(t, ring)
	if aside := s.SetAside(); len(aside) != 1 || !s.Confirm(id) {
		t.Errorf("set aside %v, held %t", aside, s.Confirm(id))
	}
	s.Close()
}

// TestCopyThatIsBegunAgainIsNotSetAside: the first one was deleted, and the next has got as far.
func TestCopyThatIsBegunAgainIsNotSetAside(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	name := nks.FileName(id)
	content, m := newKeyFile(t, id, kek.Inline())
	s, ring := openStore(t, disk, []kek.KEK{kek.Inline()}, nil), ringOf(id, m.Check(id, "EdDSA"))
	for range 2 {
		disk.Plant(name, 0o600, content[:100])
		s.heal(t, ring)
		disk.Unlink(name)
		s.heal(t, ring)
	}
	disk.Plant(name, 0o600, content[:100])
	s.heal(t, ring)
	disk.Plant(name, 0o600, content)
	s.heal(t, ring)
	if aside := s.SetAside(); len(aside) > 0 || !s.Confirm(id) {
		t.Errorf("set aside %v, held %t", aside, s.Confirm(id))
	}
}

// bars are what keeps a server from reading a file, each for an operator to mend.
var bars = map[string]struct {
	mode fs.FileMode
	err  error // of opening it
}{
	"no permission":  {0, nil},
	"another user's": {0o600, &durable.OwnerError{Have: 1000, Want: 0}},
	"symlink":        {fs.ModeSymlink | 0o777, nil},
	"FIFO":           {fs.ModeNamedPipe | 0o600, nil},
	"directory":      {fs.ModeDir | 0o700, nil},
}

// barred plants a file that can't be read, until it is planted again and the hook is gone.
func barred(disk *keyringtest.Disk, what, name string, content []byte) {
	bar := bars[what]
	disk.Plant(name, bar.mode, content)
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "open" && op.Name == name {
			return keyringtest.Fault{Err: bar.err}
		}
		return keyringtest.Fault{}
	})
}

// TestFileThatIsBarredIsLeftAndTakenWhenItIsRight: it may be Nomad's. It is not renamed, not written over by what is
// fetched, not set aside when its key is removed, and read as soon as it can be, without a restart.
func TestFileThatIsBarredIsLeftAndTakenWhenItIsRight(t *testing.T) {
	for what := range bars {
		disk, id := keyringtest.NewDisk(), meta.KeyID{1}
		content, m := newKeyFile(t, id, kek.Inline())
		ring := ringOf(id, m.Check(id, "EdDSA"))
		barred(disk, what, nks.FileName(id), content)
		s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
		f := s.Report(ring).Faults
		if len(f) != 1 || f[0].Cause != keystore.Barred || f[0].File != nks.FileName(id) {
			t.Errorf("%s: faults %v", what, f)
		}
		s.heal(t, ring)
		if err := s.Put(t.Context(), map[meta.KeyID]*nks.Material{id: m})[id]; err == nil {
			t.Errorf("%s: written over", what)
		}
		if err := s.Remove(id); err == nil {
			t.Errorf("%s: set aside as removed", what)
		}
		if f := s.Report(ring).Faults; len(f) != 1 || f[0].Cause != keystore.Barred {
			t.Errorf("%s: removed: faults %v", what, f)
		}
		if !bytes.Equal(disk.Bytes(nks.FileName(id)), content) || len(disk.Names()) != 2 {
			t.Errorf("%s: it was touched: %v", what, disk.Names())
		}
		disk.OnOp(nil)
		disk.Plant(nks.FileName(id), 0o600, content)
		s.heal(t, ring)
		if !s.Confirm(id) || len(s.Report(ring).Faults) > 0 {
			t.Errorf("%s: not held when it is right: %v", what, s.Report(ring).Faults)
		}
		s.Close()
	}
}

// TestFileThatIsBarredWhileItsKeyIsInMemoryIsLeft: the key is not held, and held again without a write.
func TestFileThatIsBarredWhileItsKeyIsInMemoryIsLeft(t *testing.T) {
	for what := range bars {
		disk, id := keyringtest.NewDisk(), meta.KeyID{1}
		s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
		check, err := put(t, s, id)
		if err != nil {
			t.Fatal(err)
		}
		content := disk.Bytes(nks.FileName(id))
		barred(disk, what, nks.FileName(id), content)
		held := s.Confirm(id)
		s.heal(t, ringOf(id, check))
		if f := s.Report(ringOf(id, check)).Faults; held || s.Has(id, check) || len(f) != 1 || f[0].Cause != keystore.Barred {
			t.Errorf("%s: held %t, faults %v", what, s.Has(id, check), f)
		}
		if !bytes.Equal(disk.Bytes(nks.FileName(id)), content) || len(disk.Names()) != 2 {
			t.Errorf("%s: it was touched: %v", what, disk.Names())
		}
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == "create" {
				return keyringtest.Fault{Err: syscall.EDQUOT}
			}
			return keyringtest.Fault{}
		})
		disk.Plant(nks.FileName(id), 0o600, content)
		s.heal(t, ringOf(id, check))
		if !s.Has(id, check) || len(s.Report(ringOf(id, check)).Faults) > 0 {
			t.Errorf("%s: not held when it is right", what)
		}
		s.Close()
	}
}

// TestNomadsFilesAreNeverTouched, whatever becomes of the key, whatever their owners and modes.
func TestNomadsFilesAreNeverTouched(t *testing.T) {
	for _, form := range []string{"1.4", "1.9"} {
		for _, bar := range []string{"", "no permission", "another user's", "symlink"} {
			disk, k := keyringtest.NewDisk(), keystoretest.NewNomadKey(t, 1, form)
			files := k.Files(t)
			for name, b := range files {
				if disk.Plant(name, 0o644, b); bar != "" {
					barred(disk, bar, name, b)
				}
			}
			s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
			s.heal(t, ringOf(k.ID, [32]byte{}))
			put(t, s, k.ID)
			s.Rewrap(t.Context())
			s.Follow(ringOf(k.ID, [32]byte{1})) // another key has that ID
			s.heal(t, ringOf(k.ID, [32]byte{1}))
			s.Remove(k.ID)
			s.Unlink(k.ID)
			unchanged(t, disk, files, form+" "+bar)
			want := fs.FileMode(0o644)
			if bar != "" {
				want = bars[bar].mode
			}
			for name := range files {
				if mode := disk.Mode(name); mode != want {
					t.Errorf("%s: its mode is %v", name, mode)
				}
			}
			s.Close()
		}
	}
}

// TestFileOfNomadsThatCameMeanwhileIsNotWrittenOver: somebody has copied it in, where this server had its own file.
func TestFileOfNomadsThatCameMeanwhileIsNotWrittenOver(t *testing.T) {
	for _, bar := range []string{"", "no permission"} {
		disk, k := keyringtest.NewDisk(), keystoretest.NewNomadKey(t, 1, "1.4")
		s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
		if _, err := put(t, s, k.ID); err != nil {
			t.Fatal(err)
		}
		files := k.Files(t)
		for name, b := range files {
			if disk.Plant(name, 0o644, b); bar != "" {
				barred(disk, bar, name, b)
			}
		}
		err := s.RewrapAll(t.Context())
		if beside := len(disk.Bytes(nks.BesideName(k.ID))) > 0; beside != (bar == "") || beside != (err == nil) {
			t.Errorf("%s: there is a file beside it: %v, %v", bar, beside, err)
		}
		unchanged(t, disk, files, "rewrap "+bar)
		s.Close()
	}
}
