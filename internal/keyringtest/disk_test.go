package keyringtest_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
)

func open(t *testing.T, d *keyringtest.Disk) durable.FS {
	t.Helper()
	fsys, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// create writes a file and leaves it open, nothing synced.
func create(t *testing.T, fsys durable.FS, name, data string) durable.File {
	t.Helper()
	f, err := fsys.Create(name)
	must(t, err)
	_, err = f.Write([]byte(data))
	must(t, err)
	return f
}

// outcomes returns what the disk can look like after a crash, over many seeds.
func outcomes(d *keyringtest.Disk, how keyringtest.Loss) []string {
	seen := map[string]bool{}
	for seed := range uint64(200) {
		after := d.Crash(how, seed)
		state := ""
		for _, name := range after.Names() {
			state += fmt.Sprintf("%s=%q ", name, after.Bytes(name))
		}
		seen[state] = true
	}
	states := []string{}
	for s := range seen {
		states = append(states, s)
	}
	slices.Sort(states)
	return states
}

func TestCrashTakesWhatWasNotSynced(t *testing.T) {
	none := func(durable.FS, durable.File) error { return nil }
	tests := []struct {
		name                     string
		sync                     func(durable.FS, durable.File) error
		kept, dropped, reordered []string
		torn                     []string
	}{
		{
			name: "nothing synced", sync: none,
			kept:      []string{`a="xy" `},
			dropped:   []string{``},
			reordered: []string{``, `a="" `, `a="xy" `},
			torn:      []string{`a="" `, `a="\x00\x00" `, `a="x" `, `a="x\x00" `, `a="xy" `},
		},
		{
			name:      "file synced",
			sync:      func(_ durable.FS, f durable.File) error { return f.Sync() },
			kept:      []string{`a="xy" `},
			dropped:   []string{``},
			reordered: []string{``, `a="xy" `},
			torn:      []string{`a="xy" `},
		},
		{
			name:      "directory synced",
			sync:      func(fsys durable.FS, _ durable.File) error { return fsys.Sync() },
			kept:      []string{`a="xy" `},
			dropped:   []string{`a="" `},
			reordered: []string{`a="" `, `a="xy" `},
			torn:      []string{`a="" `, `a="\x00\x00" `, `a="x" `, `a="x\x00" `, `a="xy" `},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			disk := keyringtest.NewDisk()
			fsys := open(t, disk)
			f := create(t, fsys, "a", "xy")
			must(t, tt.sync(fsys, f))
			want := map[keyringtest.Loss][]string{
				keyringtest.Kept: tt.kept, keyringtest.Dropped: tt.dropped,
				keyringtest.Reordered: tt.reordered, keyringtest.Torn: tt.torn,
			}
			for how, want := range want {
				if got := outcomes(disk, how); !slices.Equal(got, want) {
					t.Errorf("%v: %q, want %q", how, got, want)
				}
			}
		})
	}
}

func TestCrashNeverLosesARenamedFile(t *testing.T) {
	disk := keyringtest.NewDisk()
	disk.Plant("a", 0o600, []byte("1"))
	disk.Plant("b", 0o600, []byte("2"))
	must(t, open(t, disk).Rename("a", "b"))
	want := []string{`a="1" b="1" `, `a="1" b="2" `, `b="1" `}
	if got := outcomes(disk, keyringtest.Reordered); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestCrashIsTheSameForTheSameSeed(t *testing.T) {
	disk := keyringtest.NewDisk()
	fsys := open(t, disk)
	for _, name := range []string{"a", "b", "c", "d"} {
		create(t, fsys, name, "some data")
	}
	for _, how := range keyringtest.Losses {
		a, b := disk.Crash(how, 7), disk.Crash(how, 7)
		if !slices.Equal(a.Names(), b.Names()) {
			t.Errorf("%v: %v and %v", how, a.Names(), b.Names())
		}
		for _, name := range a.Names() {
			if x, y := a.Bytes(name), b.Bytes(name); !slices.Equal(x, y) {
				t.Errorf("%v: %s holds %q and %q", how, name, x, y)
			}
		}
	}
}

func TestAFailedSyncLosesTheFileForGood(t *testing.T) {
	disk := keyringtest.NewDisk()
	fsys := open(t, disk)
	f := create(t, fsys, "a", "xy")
	must(t, fsys.Sync())
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		return keyringtest.Fault{Err: syscall.EIO}
	})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	disk.OnOp(nil)
	if got := disk.Resynced(); got != nil {
		t.Errorf("synced again: %q", got)
	}
	must(t, f.Sync())
	if got := disk.Resynced(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("synced again: %q", got)
	}
	if got := disk.Crash(keyringtest.Dropped, 0).Bytes("a"); len(got) > 0 {
		t.Errorf("the second sync kept %q", got)
	}
}

func TestFaultsFailWithAndWithoutEffect(t *testing.T) {
	for _, tt := range []struct {
		fault keyringtest.Fault
		want  string
	}{
		{keyringtest.Fault{}, "xyz"},
		{keyringtest.Fault{Err: syscall.ENOSPC}, ""},
		{keyringtest.Fault{Err: syscall.ENOSPC, Wrote: 2}, "xy"},
		{keyringtest.Fault{Err: syscall.ENOSPC, Applied: true}, "xyz"},
		{keyringtest.Fault{Err: keyringtest.ErrCrashed, Applied: true}, ""},
	} {
		disk := keyringtest.NewDisk()
		f := create(t, open(t, disk), "a", "")
		disk.OnOp(func(keyringtest.Op) keyringtest.Fault { return tt.fault })
		n, err := f.Write([]byte("xyz"))
		if !errors.Is(err, tt.fault.Err) || n != len(tt.want) {
			t.Errorf("%+v: wrote %d, %v", tt.fault, n, err)
		}
		if got := string(disk.Bytes("a")); got != tt.want {
			t.Errorf("%+v: holds %q, want %q", tt.fault, got, tt.want)
		}
	}
}

func TestNothingWorksAfterACrash(t *testing.T) {
	disk := keyringtest.NewDisk()
	fsys := open(t, disk)
	f := create(t, fsys, "a", "xy")
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "rename" {
			return keyringtest.Fault{Err: keyringtest.ErrCrashed}
		}
		return keyringtest.Fault{}
	})
	errs := map[string]error{"rename": fsys.Rename("a", "b")}
	errs["remove"] = fsys.Remove("a")
	errs["dirsync"] = fsys.Sync()
	errs["sync"] = f.Sync()
	errs["close file"] = f.Close()
	errs["close"] = fsys.Close()
	_, errs["write"] = f.Write([]byte("z"))
	_, errs["read"] = f.Read(make([]byte, 1))
	_, errs["create"] = fsys.Create("c")
	_, _, errs["open"] = fsys.Open("a")
	_, errs["list"] = fsys.List()
	_, errs["lstat"] = fsys.Lstat("a")
	_, errs["open disk"] = disk.Open()
	for what, err := range errs {
		if !errors.Is(err, keyringtest.ErrCrashed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := outcomes(disk, keyringtest.Kept); !slices.Equal(got, []string{`a="xy" `}) {
		t.Errorf("left %q", got)
	}
}

func TestDiskBehavesAsADirectoryDoes(t *testing.T) {
	disk := keyringtest.NewDisk()
	disk.Plant("dir", fs.ModeDir|0o700, nil)
	disk.Plant("link", fs.ModeSymlink|0o777, nil)
	disk.Plant("fifo", fs.ModeNamedPipe|0o600, nil)
	disk.Plant("locked", 0, []byte("x"))
	disk.Plant("file", 0o600, []byte("abc"))
	fsys := open(t, disk)
	second, err := disk.Open()
	if !errors.Is(err, durable.ErrLocked) {
		t.Errorf("second open: %v, %v", second, err)
	}
	openErr := func(name string) error {
		f, _, err := fsys.Open(name)
		if err == nil {
			err = errors.Join(f.Close())
		}
		return err
	}
	_, exists := fsys.Create("file")
	for _, tt := range []struct {
		what      string
		err, want error
	}{
		{"create again", exists, fs.ErrExist},
		{"open none", openErr("none"), fs.ErrNotExist},
		{"open symlink", openErr("link"), durable.ErrNotRegular},
		{"open without permission", openErr("locked"), fs.ErrPermission},
		{"open file", openErr("file"), nil},
		{"open FIFO", openErr("fifo"), durable.ErrNotRegular},
		{"rename none", fsys.Rename("none", "x"), fs.ErrNotExist},
		{"rename onto directory", fsys.Rename("file", "dir"), syscall.EISDIR},
		{"rename directory onto file", fsys.Rename("dir", "file"), syscall.ENOTDIR},
		{"remove directory", fsys.Remove("dir"), syscall.ENOTEMPTY},
		{"remove none", fsys.Remove("none"), fs.ErrNotExist},
		{"rename symlink", fsys.Rename("link", "link2"), nil},
		{"close", fsys.Close(), nil},
		{"use after close", fsys.Sync(), fs.ErrClosed},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.what, tt.err, tt.want)
		}
	}
	f, info, err := open(t, disk).Open("file")
	must(t, err)
	if info.Size() != 3 || info.Mode() != 0o600 {
		t.Errorf("opened %d bytes, %v", info.Size(), info.Mode())
	}
	if data, err := io.ReadAll(f); string(data) != "abc" || err != nil {
		t.Errorf("read %q, %v", data, err)
	}
	if n := disk.OpenFiles(); n != 1 {
		t.Errorf("%d open files, want 1", n)
	}
}

// A hook that blocks is a slow disk. In a bubble its waiting costs no time.
func TestHookMayBlockAndLookAtTheDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := keyringtest.NewDisk()
		fsys := open(t, disk)
		gate := make(chan struct{})
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			disk.Crash(keyringtest.Kept, 0)
			<-gate
			return keyringtest.Fault{}
		})
		var wg sync.WaitGroup
		for _, name := range []string{"a", "b"} {
			wg.Go(func() { create(t, fsys, name, "x").Sync() })
		}
		synctest.Wait()
		if names := disk.Names(); len(names) > 0 {
			t.Errorf("created %q while the hook held it back", names)
		}
		close(gate)
		wg.Wait()
		if names := disk.Names(); len(names) != 2 {
			t.Errorf("created %q", names)
		}
	})
}
