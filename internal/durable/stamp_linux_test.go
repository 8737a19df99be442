package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/keyring/internal/durable"
)

// TestEveryChangeChangesTheStamp, by whichever way, also one that leaves name, size, bytes and the time of the last write as they
// were. It compares where the file system of the tests has stamps.
func TestEveryChangeChangesTheStamp(t *testing.T) {
	b := content("key")
	for what, change := range map[string]func(path string) error{
		"written in place": func(path string) error { return os.WriteFile(path, b, 0o600) },
		"appended to": func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			_, err2 := f.WriteString("x")
			return errors.Join(err, err2, f.Close())
		},
		"written, and its time set back": func(path string) error {
			info, err := os.Stat(path)
			return errors.Join(err, os.WriteFile(path, b, 0o600), os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
		"replaced by a copy with its times": func(path string) error {
			info, err := os.Stat(path)
			return errors.Join(err, os.WriteFile(path+".new", b, 0o600), os.Chtimes(path+".new", info.ModTime(), info.ModTime()),
				os.Rename(path+".new", path))
		},
		"moved away and back": func(path string) error {
			return errors.Join(os.Rename(path, path+".away"), os.Rename(path+".away", path))
		},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "key")
		must(t, os.WriteFile(path, b, 0o600))
		fsys, err := durable.OpenDir(dir)
		must(t, err)
		defer fsys.Close()
		later := time.Now().Add(time.Hour)
		was, ok, err := durable.StampAt(fsys, "key", later)
		must(t, err)
		if !ok {
			t.Log("nothing compared: files have no stamps here")
			return
		}
		awaitTick(t, dir, was)
		must(t, change(path))
		if now, ok, err := durable.StampAt(fsys, "key", later); now == was || !ok || err != nil {
			t.Errorf("%s: %+v, %+v, %t, %v", what, was, now, ok, err)
		}
	}
}

// TestFileThatWasJustChangedHasNoStamp: it may be changed once more within a tick of the clock. Nor has one that will be changed.
func TestFileThatWasJustChangedHasNoStamp(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "key"), nil, 0o600))
	fsys, err := durable.OpenDir(dir)
	must(t, err)
	defer fsys.Close()
	s, there, err := durable.StampAt(fsys, "key", time.Now().Add(time.Hour))
	must(t, err)
	changed := time.Unix(0, s.Changed)
	for age, settled := range map[time.Duration]bool{-time.Hour: false, 0: false, time.Second: false, 2 * time.Second: there} {
		if _, ok, err := durable.StampAt(fsys, "key", changed.Add(age)); ok != settled || err != nil {
			t.Errorf("changed %v ago: %t, %v", age, ok, err)
		}
	}
}

// awaitTick returns when files that are made have a later time than that stamp: within milliseconds.
func awaitTick(t *testing.T, dir string, was durable.Stamp) {
	t.Helper()
	for {
		path := filepath.Join(dir, "tick")
		must(t, os.WriteFile(path, nil, 0o600))
		info, err := os.Stat(path)
		must(t, errors.Join(err, os.Remove(path)))
		if info.ModTime().UnixNano() > was.Changed {
			return
		}
	}
}
