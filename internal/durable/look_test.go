package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"example.com/keyring/internal/durable"
)

// TestLookChangesNothingAndWaitsForNothing: of what lies there, and beside the process that has the directory open.
func TestLookChangesNothingAndWaitsForNothing(t *testing.T) {
	dir := t.TempDir()
	defer openDir(t, dir).Close()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, errors.Join(
		os.WriteFile(path("key"), content("key"), 0o644), os.Chmod(path("key"), 0o644), os.Chmod(dir, 0o755),
		syscall.Mkfifo(path("fifo"), 0o600), os.Mkdir(path("directory"), 0o700), os.Symlink("key", path("symlink")),
		os.Symlink("/dev/zero", path("endless")), os.WriteFile(path("large"), make([]byte, 1001), 0o600),
	))
	l, err := durable.OpenLook(dir)
	must(t, err)
	defer l.Close()
	names, err := l.List()
	if want := []string{".lock", "directory", "endless", "fifo", "key", "large", "symlink"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("names %v, %v", names, err)
	}
	for name, want := range map[string]error{
		"key": nil, "none": fs.ErrNotExist, "large": durable.ErrTooLarge,
		"fifo": durable.ErrNotRegular, "directory": durable.ErrNotRegular, "symlink": durable.ErrNotRegular, "endless": durable.ErrNotRegular,
	} {
		if b, got, err := l.Read(name, 1000); !errors.Is(err, want) || want == nil && (!isKey(b) || got != 0o644) {
			t.Errorf("%s: %q, %v, %v", name, b, got, err)
		}
	}
	if mode(t, dir).Perm() != 0o755 || mode(t, path("key")) != 0o644 {
		t.Errorf("modes are %v and %v", mode(t, dir), mode(t, path("key")))
	}
}

// TestLookSaysWhatTheOwnerOfTheDirectoryFinds: root looks, and another user's server will open it.
func TestLookSaysWhatTheOwnerOfTheDirectoryFinds(t *testing.T) {
	if os.Geteuid() != 0 {
		return // it is the owner
	}
	dir := t.TempDir()
	must(t, errors.Join(os.WriteFile(filepath.Join(dir, "own"), nil, 0o600), os.WriteFile(filepath.Join(dir, "locked"), nil, 0o000), os.WriteFile(filepath.Join(dir, "root"), nil, 0o600)))
	for _, path := range []string{dir, filepath.Join(dir, "own"), filepath.Join(dir, "locked")} {
		must(t, os.Chown(path, 12345, -1))
	}
	l, err := durable.OpenLook(dir)
	must(t, err)
	defer l.Close()
	for name, want := range map[string]error{"own": nil, "locked": fs.ErrPermission, "root": durable.ErrForeign} {
		if _, _, err := l.Read(name, 10); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
