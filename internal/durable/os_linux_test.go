package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/keyring/internal/durable"
)

// TestFullFileSystem runs where it may mount one, and in CI that is to be so.
func TestFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		if os.Getenv("CI") != "" {
			t.Errorf("mount: %v", err)
		}
		t.Logf("nothing tested: there is no file system of our own: %v", err)
		return
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	d := openDir(t, dir)
	old := durable.Named{Name: "a", Data: []byte("old")}
	must(t, write(d, old))
	must(t, os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 48<<10), 0o600))

	errs := d.Write(
		durable.Named{Name: "a", Data: make([]byte, 32<<10)},
		durable.Named{Name: "b", Data: []byte("small")},
	)
	if !errors.Is(errs[0], syscall.ENOSPC) {
		t.Errorf("write: %v", errs)
	}
	if data, err := d.Read("a", 100); !bytes.Equal(data, old.Data) || err != nil {
		t.Errorf("a holds %q, %v", data, err)
	}
	must(t, write(d, durable.Named{Name: "b", Data: []byte("small")}))
	entries, err := os.ReadDir(dir)
	if len(entries) != 4 || err != nil { // .lock, a, b, ballast
		t.Errorf("left %v, %v", entries, err)
	}
	must(t, d.Remove("ballast"))
	must(t, write(d, durable.Named{Name: "a", Data: make([]byte, 32<<10)}))
}

// TestDirectoriesAboveTheMountPointAreNotSynced runs where it may mount, and in CI that is to be so. The file system above
// is proc, which can't sync a directory, as squashfs and erofs can't.
func TestDirectoriesAboveTheMountPointAreNotSynced(t *testing.T) {
	above := t.TempDir()
	mounted := filepath.Join(above, "fs") // a directory of proc's
	for _, m := range []struct{ kind, path string }{{"proc", above}, {"tmpfs", mounted}} {
		if err := unix.Mount(m.kind, m.path, m.kind, 0, ""); err != nil {
			if os.Getenv("CI") != "" {
				t.Errorf("mount: %v", err)
			}
			t.Logf("nothing tested: there is no file system of our own: %v", err)
			return
		}
		t.Cleanup(func() { must(t, unix.Unmount(m.path, unix.MNT_DETACH)) })
	}
	f, err := os.Open(above)
	must(t, err)
	defer f.Close()
	if err := f.Sync(); !errors.Is(err, syscall.EINVAL) {
		t.Fatalf("the file system above syncs a directory: %v", err)
	}
	d := openDir(t, filepath.Join(mounted, "service", "keystore"))
	must(t, write(d, durable.Named{Name: "key", Data: []byte("x")}))
}

// A process that is being started has a copy of every descriptor until it runs its program.
func TestCloseReleasesTheLockThoughAProcessHasACopyOfIt(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	copied := false
	for fd := range 100 {
		if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && name == filepath.Join(dir, ".lock") {
			c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			must(t, err)
			defer unix.Close(c)
			copied = true
		}
	}
	if !copied {
		t.Fatal("the lock is not among the descriptors")
	}
	must(t, d.Close())
	openDir(t, dir)
}
