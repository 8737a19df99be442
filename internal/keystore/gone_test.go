package keystore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/go-hclog"
)

// openLogged is openAt with a KEK, and a log.
func openLogged(t *testing.T, path string, k kek.KEK) (store, *bytes.Buffer) {
	t.Helper()
	fsys, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	log, set := &bytes.Buffer{}, kek.NewSet([]kek.KEK{k}, nil)
	s, err := keystore.Open(t.Context(), fsys, set, hclog.New(&hclog.LoggerOptions{Output: log}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return store{s, set}, log
}

// TestFileThatIsGoneIsWrittenAgainFromMemory, and the log names the key and the file. The next start finds it.
func TestFileThatIsGoneIsWrittenAgainFromMemory(t *testing.T) {
	path, id := filepath.Join(t.TempDir(), "keystore"), meta.KeyID{1}
	s, log := openLogged(t, path, kek.Inline())
	check, err := put(t, s, id)
	ring, file := ringOf(id, check), filepath.Join(path, nks.FileName(id))
	if err != nil || s.LookForFiles(t.Context(), ring) || log.Len() > 0 {
		t.Fatalf("nothing is gone: %v, %s", err, log)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if !s.LookForFiles(t.Context(), ring) || !s.Has(id, check) || !s.Confirm(id) || len(s.Report(ring).Faults) > 0 {
		t.Errorf("held %t, faults %v", s.Has(id, check), s.Report(ring).Faults)
	}
	for _, want := range []string{"gone", "wrote a key file again"} {
		if said := log.String(); !strings.Contains(said, want) || !strings.Contains(said, id.String()) || !strings.Contains(said, nks.FileName(id)) {
			t.Errorf("the log does not say %q: %s", want, said)
		}
	}
	if s.LookForFiles(t.Context(), ring) {
		t.Error("gone again")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if next := openAt(t, path); !next.Has(id, check) {
		t.Error("the next start has not got it")
	}
}

// TestFileThatIsGoneIsToldUntilItIsWritten: while its KEK does not answer the key is not held, and its file may come back
// meanwhile.
func TestFileThatIsGoneIsToldUntilItIsWritten(t *testing.T) {
	for _, back := range []string{"is written", "is put back"} {
		path, id := filepath.Join(t.TempDir(), "keystore"), meta.KeyID{1}
		k := kektest.New("kms")
		s, _ := openLogged(t, path, k)
		check, err := put(t, s, id)
		ring, file := ringOf(id, check), filepath.Join(path, nks.FileName(id))
		if err := errors.Join(err, os.Rename(file, file+".moved")); err != nil {
			t.Fatal(err)
		}
		k.Set(func(k *kektest.KMS) { k.Err = errors.New("it is down") })
		if !s.LookForFiles(t.Context(), ring) || s.Has(id, check) || s.Confirm(id) || !s.InMemory(id) {
			t.Errorf("held %t", s.Has(id, check))
		}
		r := s.Report(ring)
		if len(r.Missing) != 1 || len(r.Faults) != 1 || r.Faults[0].Cause != keystore.Unwritten || !strings.Contains(r.Faults[0].Err.Error(), nks.FileName(id)+" is gone") {
			t.Errorf("missing %v, faults %v", r.Missing, r.Faults)
		}
		if back == "is put back" {
			if err := os.Rename(file+".moved", file); err != nil {
				t.Fatal(err)
			}
		} else {
			k.Set(kektest.Answers)
			s.keks.Probe(t.Context())
		}
		if s.heal(t, ring); !s.Has(id, check) || !s.Confirm(id) || len(s.Report(ring).Faults) > 0 {
			t.Errorf("%s: held %t, faults %v", back, s.Has(id, check), s.Report(ring).Faults)
		}
	}
}

// TestFileThatIsNotMissedIsNotGone: of a key that was removed, of one that the ring does not know, one that has another of our
// names, those of Nomad's, and all while the directory is not in its place.
func TestFileThatIsNotMissedIsNotGone(t *testing.T) {
	path, id := filepath.Join(t.TempDir(), "keystore"), meta.KeyID{1}
	s, log := openLogged(t, path, kek.Inline())
	check, err := put(t, s, id)
	ring, file := ringOf(id, check), filepath.Join(path, nks.FileName(id))
	if err != nil {
		t.Fatal(err)
	}
	look := func(what string, ring *meta.Ring) {
		t.Helper()
		before := entries(t, path)
		if s.LookForFiles(t.Context(), ring) || strings.Contains(log.String(), "gone") || entries(t, path) != before || len(s.Report(ring).Faults) > 0 {
			t.Errorf("%s: %s, faults %v", what, log, s.Report(ring).Faults)
		}
	}
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	rename(file, filepath.Join(path, nks.BesideName(id)))
	look("beside its name", ring)
	rename(filepath.Join(path, nks.BesideName(id)), filepath.Join(path, "else"))
	look("an orphan's", &meta.Ring{})
	rename(filepath.Join(path, "else"), filepath.Join(path, nks.BesideName(id)))
	rename(path, path+".old")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	look("not in its place", ring)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	rename(path+".old", path)
	if s.LookAtPlace(); !s.Confirm(id) {
		t.Fatal("not back")
	}
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
	look("a removed key's", ring) // as an old ring has it
}
