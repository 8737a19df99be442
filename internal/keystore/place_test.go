package keystore_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/go-hclog"
)

// TestKeyIsHeldOnlyWhereTheNextStartWillFindIt: while the directory is not at its path, keys in memory stay, none is held, and
// none is written, neither there nor elsewhere. All is as before when the directory is back.
func TestKeyIsHeldOnlyWhereTheNextStartWillFindIt(t *testing.T) {
	for name, replace := range map[string]func(path string) error{
		"moved away": func(path string) error { return nil },
		"replaced":   func(path string) error { return os.Mkdir(path, 0o700) },
		"a symlink":  func(path string) error { return os.Symlink(t.TempDir(), path) },
		"a file":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		path, id := filepath.Join(t.TempDir(), "keystore"), meta.KeyID{1}
		s := openAt(t, path)
		check, err := put(t, s, id)
		if err := errors.Join(err, os.Rename(path, path+".old"), replace(path)); err != nil {
			t.Fatal(err)
		}
		if s.Confirm(id) || s.Has(id, check) {
			t.Errorf("%s: held before the look", name)
		}
		if changed := s.LookAtPlace(); changed || !s.InMemory(id) || !errors.Is(s.Report(&meta.Ring{}).Moved, durable.ErrMoved) {
			t.Errorf("%s: changed %t, %v", name, changed, s.Report(&meta.Ring{}).Moved)
		}
		before := entries(t, path)
		if _, err := put(t, s, meta.KeyID{2}); !errors.Is(err, durable.ErrMoved) {
			t.Errorf("%s: put: %v", name, err)
		}
		s.heal(t, ringOf(id, check))
		if entries(t, path) != before || entries(t, path+".old") != 3 || len(s.Report(&meta.Ring{}).Faults) > 0 {
			t.Errorf("%s: %d entries at the path, were %d; faults %v", name, entries(t, path), before, s.Report(&meta.Ring{}).Faults)
		}
		if err := errors.Join(os.RemoveAll(path), os.Rename(path+".old", path)); err != nil {
			t.Fatal(err)
		}
		if changed := s.LookAtPlace(); !changed || !s.Confirm(id) || !s.Has(id, check) || s.Report(&meta.Ring{}).Moved != nil {
			t.Errorf("%s, and back: changed %t, held %t", name, changed, s.Has(id, check))
		}
		if _, err := put(t, s, meta.KeyID{2}); err != nil {
			t.Errorf("%s, and back: put: %v", name, err)
		}
	}
}

// TestDirectoryThatComesBackIsReadAgain: somebody may have changed the files meanwhile.
func TestDirectoryThatComesBackIsReadAgain(t *testing.T) {
	path, id := filepath.Join(t.TempDir(), "keystore"), meta.KeyID{1}
	s := openAt(t, path)
	check, err := put(t, s, id)
	if err := errors.Join(err, os.Rename(path, path+".old")); err != nil || !s.LookAtPlace() {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(path+".old", nks.FileName(id))), os.Rename(path+".old", path)); err != nil {
		t.Fatal(err)
	}
	if !s.LookAtPlace() || s.Has(id, check) {
		t.Error("held, and its file is gone")
	}
	if s.heal(t, ringOf(id, check)); !s.Has(id, check) || !s.Confirm(id) {
		t.Error("not written again")
	}
}

// TestDirectoryOfAnotherIDIsAnotherKeystore, and one that was emptied gets its ID and its keys again.
func TestDirectoryOfAnotherIDIsAnotherKeystore(t *testing.T) {
	path, id := filepath.Join(t.TempDir(), "keystore"), meta.KeyID{1}
	s := openAt(t, path)
	check, err := put(t, s, id)
	name := filepath.Join(path, "keystore.id")
	own, err2 := os.ReadFile(name)
	if err := errors.Join(err, err2, os.WriteFile(name, []byte("00112233445566778899aabbccddeeff\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if !s.LookAtPlace() || s.Has(id, check) || s.Confirm(id) || !s.InMemory(id) {
		t.Error("held in a keystore of another ID")
	}
	if err := errors.Join(os.Remove(name), os.Remove(filepath.Join(path, nks.FileName(id)))); err != nil {
		t.Fatal(err)
	}
	if !s.LookAtPlace() || s.Has(id, check) {
		t.Error("held in a directory that was emptied")
	}
	s.heal(t, ringOf(id, check))
	if now, err := os.ReadFile(name); err != nil || string(now) != string(own) || !s.Confirm(id) {
		t.Errorf("the ID is %q, was %q, %v; held %t", now, own, err, s.Confirm(id))
	}
}

// TestKeysAreUsedWhileTheLogWaits: the host's log may take long to say that the directory is not in its place, and that it is
// back.
func TestKeysAreUsedWhileTheLogWaits(t *testing.T) {
	path, id := filepath.Join(t.TempDir(), "keystore"), meta.KeyID{1}
	fsys, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	log, said := &calling{}, 0
	s, err := keystore.Open(t.Context(), fsys, kek.NewSet([]kek.KEK{kek.Inline()}, nil), hclog.New(&hclog.LoggerOptions{Output: log}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	log.call = func() {
		said++
		used := make(chan bool)
		go func() { used <- s.InMemory(id) }()
		select {
		case <-used:
		case <-time.After(10 * time.Second):
			t.Error("a key can't be used")
		}
	}
	if err := os.Rename(path, path+".old"); err != nil || !s.LookAtPlace() {
		t.Error(err, "it is in its place")
	}
	if err := os.Rename(path+".old", path); err != nil || !s.LookAtPlace() {
		t.Error(err, "it is not in its place")
	}
	if said != 2 {
		t.Errorf("%d lines", said)
	}
}

// calling is a log that calls a function for each line.
type calling struct{ call func() }

func (c *calling) Write(b []byte) (int, error) {
	if c.call != nil {
		c.call()
	}
	return len(b), nil
}

// openAt opens a keystore in the directory at path.
func openAt(t *testing.T, path string) store {
	t.Helper()
	fsys, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openOn(t.Context(), fsys, []kek.KEK{kek.Inline()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// entries counts what is in the directory at path, if it is one.
func entries(t *testing.T, path string) int {
	t.Helper()
	all, err := os.ReadDir(path)
	if err != nil {
		return -1
	}
	return len(all)
}
