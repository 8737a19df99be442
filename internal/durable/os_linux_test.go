package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
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

// A file that the system refuses since it belongs to another user is that: what root has restored has the mode 0600.
func TestAFileThatMayNotBeReadSaysWhoOwnsIt(t *testing.T) {
	if os.Geteuid() != 0 {
		return // root alone can give a file away, and act for another user
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	must(t, os.WriteFile(path, content("key"), 0o600))
	d := openDir(t, dir)
	must(t, os.Chmod(dir, 0o755))
	read := func() error { // as another user, who owns nothing here
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		must(t, unix.Setfsuid(54321))
		defer unix.Setfsuid(0)
		_, err := d.Read("key", 1000)
		return err
	}
	if err := read(); !errors.Is(err, fs.ErrPermission) || errors.Is(err, durable.ErrForeign) {
		t.Errorf("of this user: %v", err)
	}
	must(t, os.Chown(path, 12345, -1))
	owner := (*durable.OwnerError)(nil)
	if err := read(); !errors.As(err, &owner) || *owner != (durable.OwnerError{Have: 12345, Want: 0}) {
		t.Errorf("of another user: %v", err)
	}
}
