package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
)

// putShared puts a file into a directory that has another one, in two writes, and sweeps before.
func putShared(t *testing.T, disk *keyringtest.Disk) error {
	t.Helper()
	fsys, err := disk.Open()
	must(t, err)
	d := durable.NewShared(fsys)
	_ = d.Sweep(func(name string) bool { return name == "new" })
	return d.Put("new", io.MultiReader(bytes.NewReader(content("new")), bytes.NewReader(content("more"))))
}

func sharedDisk() *keyringtest.Disk {
	disk := keyringtest.NewDisk()
	disk.Plant("old", 0o600, content("old"))
	disk.Plant(".new.tmp", 0o600, content("ne"))
	disk.Plant(".other.tmp", 0o600, content("other"))
	return disk
}

// checkShared wants all of the new file or none, all of it if done, and nothing else but a temporary file.
func checkShared(disk *keyringtest.Disk, done bool) error {
	want := slices.Concat(content("new"), content("more"))
	got := disk.Bytes("new")
	if got != nil && !bytes.Equal(got, want) || got == nil && done {
		return fmt.Errorf("new holds %.20q, done %t", got, done)
	}
	for _, name := range disk.Names() {
		if !slices.Contains([]string{"new", "old", ".new.tmp", ".other.tmp"}, name) {
			return fmt.Errorf("%s is left", name)
		}
	}
	if !bytes.Equal(disk.Bytes("old"), content("old")) || !bytes.Equal(disk.Bytes(".other.tmp"), content("other")) {
		return errors.New("what was there is not as it was")
	}
	return nil
}

// TestPutLeavesAllOrNothing: after a crash or a fault at each operation, without what was not synced, and the next Put clears up.
func TestPutLeavesAllOrNothing(t *testing.T) {
	for _, fault := range []keyringtest.Fault{
		{Err: keyringtest.ErrCrashed}, {Err: syscall.EIO}, {Err: syscall.EIO, Applied: true}, {Err: syscall.ENOSPC, Wrote: 50},
	} {
		for seq, struck := 1, true; struck; seq++ {
			disk := sharedDisk()
			struck = false
			sweeping := false
			disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Seq != seq {
					return keyringtest.Fault{}
				}
				struck, sweeping = true, op.Kind == "list" || op.Kind == "lstat" || op.Kind == "remove"
				return fault
			})
			err := putShared(t, disk)
			when := fmt.Sprintf("%+v at operation %d", fault, seq)
			if sweeping || seq < 6 { // what can't be cleared up now is later
				sweeping = true
			} else if struck != errors.Is(err, fault.Err) {
				t.Errorf("%s: %v", when, err)
			}
			disk.OnOp(nil)
			for _, how := range keyringtest.Losses {
				for seed := range uint64(seeds) {
					after := disk.Crash(how, seed)
					if err := checkShared(after, err == nil); err != nil {
						t.Fatalf("%s, %v, seed %d: %v", when, how, seed, err)
					}
					must(t, putShared(t, after))
					if slices.Contains(after.Names(), ".new.tmp") {
						t.Fatalf("%s, %v, seed %d: a temporary file is left for good", when, how, seed)
					}
					if err := checkShared(after.Crash(keyringtest.Dropped, seed), true); err != nil {
						t.Fatalf("%s, %v, seed %d, and again: %v", when, how, seed, err)
					}
				}
			}
			if n := disk.OpenFiles(); n != 0 && !errors.Is(fault.Err, keyringtest.ErrCrashed) {
				t.Errorf("%s: %d files are open", when, n)
			}
		}
	}
}

// failing yields some bytes, and then an error.
type failing struct{ left int }

var errFailing = errors.New("the network is down")

func (f *failing) Read(b []byte) (int, error) {
	if f.left == 0 {
		return 0, errFailing
	}
	n := min(f.left, len(b))
	f.left -= n
	return n, nil
}

func openShared(t *testing.T, dir string) *durable.Shared {
	t.Helper()
	d, err := durable.OpenShared(dir)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestSharedDirectory of the operating system: it is not made, not changed and not locked, and only regular files go.
func TestSharedDirectory(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	if _, err := durable.OpenShared(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a directory that is not there: %v", err)
	}
	a, b := openShared(t, dir), openShared(t, dir)
	must(t, errors.Join(a.Put("x", strings.NewReader("of a")), b.Put("y", strings.NewReader("of b"))))
	if err := a.Put("z", &failing{100_000}); !errors.Is(err, errFailing) {
		t.Errorf("of a reader that fails: %v", err)
	}
	must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	for _, name := range []string{"sub", "../x", ""} {
		if err := a.Remove(name); err == nil {
			t.Errorf("%q was removed", name)
		}
	}
	if err := a.Put("../x", strings.NewReader("")); err == nil {
		t.Error("a file was made elsewhere")
	}
	must(t, errors.Join(a.Remove("y"), a.Remove("y"), a.Remove("never there")))
	if got, err := b.List(); err != nil || !slices.Equal(got, []string{"sub", "x"}) || !slices.Equal(namesIn(t, dir), got) {
		t.Errorf("it has %q, %q, %v", got, namesIn(t, dir), err)
	}
	r, err := b.Open("x")
	must(t, err)
	defer r.Close()
	if got, err := io.ReadAll(r); string(got) != "of a" || err != nil {
		t.Errorf("x is %q, %v", got, err)
	}
	if _, err := b.Open("sub"); !errors.Is(err, durable.ErrNotRegular) {
		t.Errorf("of a directory: %v", err)
	}
	if mode(t, dir).Perm() != 0o755 || mode(t, filepath.Join(dir, "x")) != 0o600 {
		t.Errorf("modes are %v and %v", mode(t, dir), mode(t, filepath.Join(dir, "x")))
	}
}

// sweeps runs a sweep when it is read.
type sweeps struct {
	t    *testing.T
	dir  *durable.Shared
	done bool
}

func (s *sweeps) Read([]byte) (int, error) {
	if !s.done {
		s.done = true
		must(s.t, s.dir.Sweep(func(string) bool { return true }))
		return 0, nil
	}
	return 0, io.EOF
}

// TestSweepLeavesWhatIsBeingWritten: another process writes it.
func TestSweepLeavesWhatIsBeingWritten(t *testing.T) {
	dir := t.TempDir()
	must(t, errors.Join(os.WriteFile(filepath.Join(dir, ".dead.tmp"), nil, 0o600), os.Mkdir(filepath.Join(dir, ".sub.tmp"), 0o700)))
	writer, other := openShared(t, dir), openShared(t, dir)
	if err := writer.Put("x", &sweeps{t: t, dir: other}); err != nil {
		t.Errorf("put during a sweep: %v", err)
	}
	if got := namesIn(t, dir); !slices.Equal(got, []string{".sub.tmp", "x"}) {
		t.Errorf("it has %q", got)
	}
}
