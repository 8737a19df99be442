package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"example.com/keyring/internal/durable"
)

// notFiles are names in a directory of what is no small file, or leads to none, with what an error is.
var notFiles = map[string]error{
	"none": fs.ErrNotExist, "fifo": durable.ErrNotRegular, "directory": durable.ErrNotRegular, "endless": durable.ErrNotRegular,
	"to a fifo": durable.ErrNotRegular, "to nothing": fs.ErrNotExist, "loop": syscall.ELOOP, "huge": durable.ErrTooLarge, "large": durable.ErrTooLarge,
}

// plantNotFiles makes them, a file and symlinks to that.
func plantNotFiles(t *testing.T, dir string) {
	t.Helper()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, errors.Join(
		syscall.Mkfifo(path("fifo"), 0o600), os.Mkdir(path("directory"), 0o700), os.Symlink("/dev/zero", path("endless")),
		os.Symlink("fifo", path("to a fifo")), os.Symlink("none", path("to nothing")), os.Symlink("loop", path("loop")),
		os.WriteFile(path("large"), make([]byte, 1001), 0o600), os.WriteFile(path("huge"), nil, 0o600), os.Truncate(path("huge"), 1<<40),
		os.WriteFile(path("file"), make([]byte, 1000), 0o600), os.Symlink("file", path("..data")), os.Symlink("..data", path("symlink")),
	))
}

// TestReadFileReadsRegularFilesAlone, at once, with and without a look before. Kubernetes mounts secrets as symlinks.
func TestReadFileReadsRegularFilesAlone(t *testing.T) {
	dir := t.TempDir()
	plantNotFiles(t, dir)
	for how, read := range map[string]func(string, int64) ([]byte, error){"path": durable.ReadFile, "swapped": durable.ReadOpened} {
		for name, want := range notFiles {
			if b, err := read(filepath.Join(dir, name), 1000); b != nil || !errors.Is(err, want) {
				t.Errorf("%s, %s: %d bytes, %v", how, name, len(b), err)
			}
		}
		for _, name := range []string{"file", "symlink"} {
			if b, err := read(filepath.Join(dir, name), 1000); err != nil || len(b) != 1000 {
				t.Errorf("%s, %s: %d bytes, %v", how, name, len(b), err)
			}
		}
	}
}

// TestWhatIsNoDirectoryIsRefusedAtOnce, wherever one is opened by its path.
func TestWhatIsNoDirectoryIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	plantNotFiles(t, dir)
	for _, name := range []string{"fifo", "to a fifo", "endless", "large"} {
		path := filepath.Join(dir, name)
		_, opened := durable.OpenDir(path)
		_, looked := durable.OpenLook(path)
		for how, err := range map[string]error{"open": opened, "look": looked, "make private": durable.MakePrivate(path)} {
			if !errors.Is(err, syscall.ENOTDIR) {
				t.Errorf("%s %s: %v", how, name, err)
			}
		}
	}
}

// TestEmptyPathIsNotTheRootOfTheFileSystem.
func TestEmptyPathIsNotTheRootOfTheFileSystem(t *testing.T) {
	l, err := durable.OpenLook("")
	if err == nil {
		l.Close()
		t.Error("it is looked at")
	}
	if err := durable.MakePrivate(""); err == nil {
		t.Error("it is made private")
	}
}
