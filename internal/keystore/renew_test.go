package keystore_test

import (
	"bytes"
	"errors"
	"slices"
	"syscall"
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// escrowed is a store of one key, under a file's KEK and escrow, in a file of version 2.
func escrowed(t *testing.T, id meta.KeyID) (*keyringtest.Disk, []kek.KEK, store) {
	t.Helper()
	disk, keks := keyringtest.NewDisk(), []kek.KEK{fileKEK(t, countingKey()), ageKEK(t, ageIdentity(t))}
	s := openStore(t, disk, keks, nil)
	s.UseFiles(2)
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	return disk, keks, s
}

func fileOn(t *testing.T, disk *keyringtest.Disk, name string) *nks.File {
	t.Helper()
	f, err := nks.DecodeFile(disk.Bytes(name))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// alter changes a key file as somebody does who knows the format, and no key.
func alter(t *testing.T, disk *keyringtest.Disk, name string, change func(*nks.File)) (altered []byte) {
	t.Helper()
	f := fileOn(t, disk, name)
	change(f)
	altered, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	disk.Plant(name, 0o600, altered)
	return altered
}

// isWhole reports whether a file is as this server writes it, for both KEKs.
func isWhole(t *testing.T, s store, disk *keyringtest.Disk, id meta.KeyID) bool {
	t.Helper()
	f := fileOn(t, disk, nks.FileName(id))
	k, _ := s.Copy(id)
	defer k.Secret.Wipe()
	return f.Version == 2 && len(f.Wrapped) == 2 && k.Secret.Authentic(f)
}

var alterations = map[string]func(*nks.File){
	"removed": func(f *nks.File) { f.Wrapped = f.Wrapped[:1] },
	"spoiled": func(f *nks.File) { f.Wrapped[1].Ciphertext = bytes.Repeat([]byte{0x55}, 300) },
	"added":   func(f *nks.File) { f.Wrapped = append(f.Wrapped, nks.Wrapped{KEK: "x", Ciphertext: []byte{1}}) },
}

// TestAlteredFileIsReportedAndWrittenAgain: the key is held all the while, a copy tells what the file had, and it is said for as
// long as the copy is there.
func TestAlteredFileIsReportedAndWrittenAgain(t *testing.T) {
	for name, change := range alterations {
		t.Run(name, func(t *testing.T) {
			id := meta.KeyID{1}
			disk, keks, s := escrowed(t, id)
			s.Close()
			altered := alter(t, disk, nks.FileName(id), change)
			s = openStore(t, disk, keks, nil)
			if got := s.Report(&meta.Ring{}).Altered; len(got) != 1 || got[0].Key != id || got[0].Copy != "" || !s.Confirm(id) || s.OnOldKEKs() != 0 {
				t.Errorf("before it is written again: %+v", got)
			}
			if !s.HasToRenew() {
				t.Error("there is nothing to renew")
			}
			s.Renew(t.Context())
			if !isWhole(t, s, disk, id) || !s.Confirm(id) || s.OnOldKEKs() != 0 || s.HasToRenew() {
				t.Errorf("it was not written again")
			}
			s.Close()
			s = openStore(t, disk, keks, nil)
			defer s.Close()
			got := s.Report(&meta.Ring{}).Altered
			if len(got) != 1 || got[0].Key != id || !bytes.Equal(disk.Bytes(got[0].Copy), altered) || !slices.Contains(got[0].KEKs, keks[0].ID()) {
				t.Fatalf("after a start: %+v", got)
			}
			disk.Unlink(got[0].Copy)
			if err := s.Heal(t.Context(), &meta.Ring{}, nil, nil); err != nil || len(s.Report(&meta.Ring{}).Altered) > 0 {
				t.Errorf("the copy was deleted: %v, %v", err, s.Report(&meta.Ring{}).Altered)
			}
		})
	}
}

// TestFileThatIsAlteredBesideARunningServerIsReported, also if it is taken back to version 1, where nothing tells.
func TestFileThatIsAlteredBesideARunningServerIsReported(t *testing.T) {
	changes := map[string]func(*nks.File){
		"version 1": func(f *nks.File) { f.Version, f.MAC, f.Wrapped = 1, [32]byte{}, f.Wrapped[:1] },
	}
	for name, change := range alterations {
		changes[name] = change
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			id := meta.KeyID{1}
			disk, _, s := escrowed(t, id)
			defer s.Close()
			altered := alter(t, disk, nks.FileName(id), change)
			if s.Confirm(id) {
				t.Error("it is held")
			}
			if err := s.Rewrite(t.Context(), id); err != nil || !isWhole(t, s, disk, id) || !s.Confirm(id) {
				t.Errorf("it was not written again: %v", err)
			}
			if got := s.Report(&meta.Ring{}).Altered; len(got) != 1 || !bytes.Equal(disk.Bytes(got[0].Copy), altered) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestFilesAreOfVersion1UntilAllServersReadVersion2: then new ones are of version 2, old ones follow, and none goes back.
func TestFilesAreOfVersion1UntilAllServersReadVersion2(t *testing.T) {
	disk, id, later := keyringtest.NewDisk(), meta.KeyID{1}, meta.KeyID{2}
	keks := []kek.KEK{fileKEK(t, countingKey())}
	s := openStore(t, disk, keks, nil)
	defer s.Close()
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	is := func(id meta.KeyID, version int, name string) {
		t.Helper()
		if f := fileOn(t, disk, nks.FileName(id)); f.Version != version || f.Wrapped[0].KEK != name {
			t.Errorf("version %d, under %s", f.Version, f.Wrapped[0].KEK)
		}
	}
	const one, two = "file:74d8b8ddbeaf0f6d", "file2:d536c7e5218cb682"
	is(id, 1, one)
	if s.UseFiles(1); s.OnOldKEKs() != 0 || s.HasToRenew() {
		t.Error("a file of version 1 is outdated before another can be written")
	}
	s.UseFiles(2)
	if s.OnOldKEKs() != 0 || !s.HasToRenew() {
		t.Errorf("%d are said to be on old KEKs, and they are on the one that wraps", s.OnOldKEKs())
	}
	if _, err := put(t, s, later); err != nil {
		t.Fatal(err)
	}
	is(later, 2, two)
	s.Renew(t.Context())
	is(id, 2, two)
	if s.OnOldKEKs() != 0 || s.HasToRenew() || len(s.Report(&meta.Ring{}).Altered) > 0 {
		t.Errorf("after Renew: %d are outdated, %v", s.OnOldKEKs(), s.Report(&meta.Ring{}).Altered)
	}
	s.Close()
	s = openStore(t, disk, keks, nil) // and does not know yet what the others read
	if s.OnOldKEKs() != 0 {
		t.Errorf("after a start: %d are outdated", s.OnOldKEKs())
	}
	if err := s.Rewrite(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	is(id, 2, two)
}

// TestRewrapMovesWhatIsOfVersion1Alone, and under the KEKs of now.
func TestRewrapMovesWhatIsOfVersion1Alone(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	s := openStore(t, disk, []kek.KEK{newKMS("a")}, nil)
	defer s.Close()
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	s.UseFiles(2)
	if err := s.Rewrap(t.Context()); err != nil || fileOn(t, disk, nks.FileName(id)).Version != 2 {
		t.Errorf("version %d, %v", fileOn(t, disk, nks.FileName(id)).Version, err)
	}
}

// TestRewrapMovesFilesToVersion2 as Renew does, and those of removed keys too.
func TestRewrapMovesFilesToVersion2(t *testing.T) {
	disk, id, removed := keyringtest.NewDisk(), meta.KeyID{1}, meta.KeyID{2}
	a, b := newKMS("a"), newKMS("b")
	s := openStore(t, disk, []kek.KEK{a}, nil)
	for _, id := range []meta.KeyID{id, removed} {
		if _, err := put(t, s, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(removed); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openStore(t, disk, []kek.KEK{b}, []kek.KEK{a})
	defer s.Close()
	s.UseFiles(2)
	if s.HasToRenew() {
		t.Error("files are moved to other KEKs without Rewrap")
	}
	if err := s.Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{nks.FileName(id), nks.FileName(removed) + ".removed-1"} {
		if f := fileOn(t, disk, name); f.Version != 2 || f.Wrapped[0].KEK != "b" {
			t.Errorf("%s: version %d, under %s", name, f.Version, f.Wrapped[0].KEK)
		}
	}
}

// TestNewerFilesInTheMiddleOfARewrap are for Renew: Rewrap has done what it was called for.
func TestNewerFilesInTheMiddleOfARewrap(t *testing.T) {
	disk, id, a, b := keyringtest.NewDisk(), meta.KeyID{1}, newKMS("a"), newKMS("b")
	s := openStore(t, disk, []kek.KEK{a}, nil)
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openStore(t, disk, []kek.KEK{b}, []kek.KEK{a})
	defer s.Close()
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "dirsync" { // the file is written
			s.UseFiles(2)
		}
		return keyringtest.Fault{}
	})
	if err := s.Rewrap(t.Context()); err != nil || s.OnOldKEKs() != 0 || !s.HasToRenew() {
		t.Errorf("%v, %d files left, to renew: %t", err, s.OnOldKEKs(), s.HasToRenew())
	}
	if err := s.Rewrap(t.Context()); err != nil || s.HasToRenew() {
		t.Errorf("%v, to renew: %t", err, s.HasToRenew())
	}
	if f := fileOn(t, disk, nks.FileName(id)); f.Version != 2 || f.Wrapped[0].KEK != "b" {
		t.Errorf("version %d, under %s", f.Version, f.Wrapped[0].KEK)
	}
}

// TestRenewWaitsForItsKEKs: what can't be written now is as it was, and is tried again.
func TestRenewWaitsForItsKEKs(t *testing.T) {
	disk, id, a := keyringtest.NewDisk(), meta.KeyID{1}, newKMS("a")
	s := openStore(t, disk, []kek.KEK{a}, nil)
	defer s.Close()
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	before := disk.Bytes(nks.FileName(id))
	s.UseFiles(2)
	a.Set(func(k *kms) { k.Err = errBroken })
	if s.Renew(t.Context()); !bytes.Equal(disk.Bytes(nks.FileName(id)), before) || !s.HasToRenew() || !s.Confirm(id) {
		t.Error("the file is another, or is not renewed later, or not held")
	}
	a.Set(func(k *kms) { k.Err = nil })
	s.Renew(t.Context())
	if f := fileOn(t, disk, nks.FileName(id)); f.Version != 2 || s.HasToRenew() {
		t.Errorf("version %d", f.Version)
	}
}

// TestRewrapCountsRemovedFilesInTheirPlaces: until one is set aside, it is not rewrapped, and its old version is needed.
func TestRewrapCountsRemovedFilesInTheirPlaces(t *testing.T) {
	for name, rewrap := range map[string]func(store, *kektest.Versioned) error{
		"next version": func(s store, k *kektest.Versioned) error { k.Rotate(); return s.Rewrap(t.Context()) },
		"all":          func(s store, _ *kektest.Versioned) error { return s.RewrapAll(t.Context()) },
	} {
		disk, id, k := keyringtest.NewDisk(), meta.KeyID{1}, kektest.NewVersioned("kms")
		s := openStore(t, disk, []kek.KEK{k}, nil)
		if _, err := put(t, s, id); err != nil {
			t.Fatal(err)
		}
		s.NoteRemoved(id)
		if err := rewrap(s, k); err == nil || s.OnOldKEKs() != 1 {
			t.Errorf("%s: %v, and %d are left", name, err, s.OnOldKEKs())
		}
		if err := errors.Join(s.Store.SetAside(id, isRemoved), rewrap(s, k)); err != nil || s.OnOldKEKs() != 0 {
			t.Errorf("%s, set aside: %v, and %d are left", name, err, s.OnOldKEKs())
		}
	}
}

// TestAlteredFileOfARemovedKeyIsKept when it is rewrapped.
func TestAlteredFileOfARemovedKeyIsKept(t *testing.T) {
	id := meta.KeyID{1}
	disk, keks, s := escrowed(t, id)
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
	s.Close()
	altered := alter(t, disk, nks.FileName(id)+".removed-1", alterations["removed"])
	s = openStore(t, disk, keks, nil)
	defer s.Close()
	if err := s.Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Report(&meta.Ring{}).Altered; len(got) != 1 || !bytes.Equal(disk.Bytes(got[0].Copy), altered) {
		t.Errorf("%+v", got)
	}
}

// TestAlteredFileHasOneCopy although neither the file nor the copy can be made durable for a while.
func TestAlteredFileHasOneCopy(t *testing.T) {
	id := meta.KeyID{1}
	for what, fails := range map[string]func(keyringtest.Op) bool{
		"the file": func(op keyringtest.Op) bool { return op.Kind == "rename" && op.To == nks.FileName(id) },
		"names":    func(op keyringtest.Op) bool { return op.Kind == "dirsync" },
	} {
		disk, _, s := escrowed(t, id)
		alter(t, disk, nks.FileName(id), alterations["added"])
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if fails(op) {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		for range 3 {
			if err := s.Rewrite(t.Context(), id); err == nil {
				t.Fatalf("%s: it was written", what)
			}
		}
		disk.OnOp(nil)
		if err := s.Rewrite(t.Context(), id); err != nil || len(s.Report(&meta.Ring{}).Altered) != 1 || !isWhole(t, s, disk, id) || len(disk.Names()) != 3 {
			t.Errorf("%s: %v, %q", what, err, disk.Names())
		}
	}
}

// TestNoFileTakesThePlaceOfAnotherKeys, whose name somebody has changed: it may be the only one.
func TestNoFileTakesThePlaceOfAnotherKeys(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	defer s.Close()
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	for why, other := range map[string]meta.KeyID{"misnamed": {2}, "wrong": id} {
		b, _ := newKeyFile(t, other, kek.Inline())
		disk.Plant(nks.FileName(id), 0o600, b)
		err := s.Rewrite(t.Context(), id)
		if kept := disk.Bytes(nks.FileName(id) + "." + why + "-1"); err != nil || !bytes.Equal(kept, b) || !s.Confirm(id) {
			t.Errorf("%s: %v, it was overwritten, or the key is not held: %q", why, err, disk.Names())
		}
	}
}

// TestFileOfTheNewerVersionStays of that version, although it could not be read when the key came into memory from another file.
func TestFileOfTheNewerVersionStays(t *testing.T) {
	disk, id := keyringtest.NewDisk(), meta.KeyID{1}
	name := nks.FileName(id)
	s := openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	older := disk.Bytes(name)
	s.UseFiles(2)
	s.Renew(t.Context())
	newer := disk.Bytes(name)
	s.Close()
	disk.Plant(name, 0o600, older)
	s = openStore(t, disk, []kek.KEK{kek.Inline()}, nil)
	defer s.Close()
	disk.Plant(name, 0o600, newer)
	if err := s.Rewrite(t.Context(), id); err != nil {
		t.Error(err)
	}
	if file, err := nks.DecodeFile(disk.Bytes(name)); err != nil || file.Version != 2 || !s.Confirm(id) {
		t.Errorf("%+v, %v", file, err)
	}
}
