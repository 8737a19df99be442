package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
)

// staleTemp is what a Write that crashed has left.
const staleTemp = ".tmp-000102030405060708090a0b0c0d0e0f"

// content is long enough to be torn in interesting places, and differs by what.
func content(what string) []byte {
	return bytes.Repeat([]byte(what+"\n"), 40)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, disk *keyringtest.Disk) *durable.Dir {
	t.Helper()
	fsys, err := disk.Open()
	must(t, err)
	return durable.New(fsys)
}

// write is Write, with its errors joined.
func write(d *durable.Dir, files ...durable.Named) error {
	return errors.Join(d.Write(files...)...)
}

// change is a change of a directory, told by what may be found under each name.
// A nil content means that the name is absent.
type change struct {
	name          string
	plant         map[string][]byte
	do            func(d *durable.Dir) []error
	before, after map[string][]byte
}

var changes = []change{
	{
		name:   "write new",
		do:     func(d *durable.Dir) []error { return d.Write(durable.Named{Name: "a", Data: content("new")}) },
		before: map[string][]byte{"a": nil},
		after:  map[string][]byte{"a": content("new")},
	},
	{
		name:   "replace",
		plant:  map[string][]byte{"a": content("old")},
		do:     func(d *durable.Dir) []error { return d.Write(durable.Named{Name: "a", Data: content("new")}) },
		before: map[string][]byte{"a": content("old")},
		after:  map[string][]byte{"a": content("new")},
	},
	{
		name:  "write batch",
		plant: map[string][]byte{"b": content("old b")},
		do: func(d *durable.Dir) []error {
			return d.Write(
				durable.Named{Name: "a", Data: content("new a")},
				durable.Named{Name: "b", Data: content("new b")},
				durable.Named{Name: "c", Data: content("new c")},
			)
		},
		before: map[string][]byte{"a": nil, "b": content("old b"), "c": nil},
		after:  map[string][]byte{"a": content("new a"), "b": content("new b"), "c": content("new c")},
	},
	{
		name:  "set aside",
		plant: map[string][]byte{"a": content("bad"), "a.corrupt-1": content("earlier")},
		do: func(d *durable.Dir) []error {
			_, err := d.SetAside("a", "corrupt")
			return []error{err}
		},
		before: map[string][]byte{"a": content("bad"), "a.corrupt-1": content("earlier"), "a.corrupt-2": nil},
		after:  map[string][]byte{"a": nil, "a.corrupt-1": content("earlier"), "a.corrupt-2": content("bad")},
	},
	{
		name:   "take back",
		plant:  map[string][]byte{"a.removed-1": content("old"), "a.removed-2": content("earlier")},
		do:     func(d *durable.Dir) []error { return []error{d.TakeBack("a.removed-1", "a")} },
		before: map[string][]byte{"a": nil, "a.removed-1": content("old"), "a.removed-2": content("earlier")},
		after:  map[string][]byte{"a": content("old"), "a.removed-1": nil, "a.removed-2": content("earlier")},
	},
	{
		name:   "remove",
		plant:  map[string][]byte{"a": content("old")},
		do:     func(d *durable.Dir) []error { return []error{d.Remove("a")} },
		before: map[string][]byte{"a": content("old")},
		after:  map[string][]byte{"a": nil},
	},
	{
		name:   "sweep",
		plant:  map[string][]byte{"a": content("old"), staleTemp: content("torn")},
		do:     func(d *durable.Dir) []error { return []error{d.Sweep()} },
		before: map[string][]byte{"a": content("old")},
		after:  map[string][]byte{"a": content("old")},
	},
}

// start returns a disk that has what c begins with, and a file that c has nothing
// to do with.
func (c change) start() *keyringtest.Disk {
	disk := keyringtest.NewDisk()
	disk.Plant("bystander", 0o600, content("bystander"))
	for name, data := range c.plant {
		disk.Plant(name, 0o600, data)
	}
	return disk
}

// check starts on disk and holds what is found there against what may be: each
// name as before c or as after it, or only as after it if c is done. Nothing may
// stop the start, nothing be there besides.
func (c change) check(disk *keyringtest.Disk, done bool) error {
	fsys, err := disk.Open()
	if err != nil {
		return err
	}
	d := durable.New(fsys)
	if err := d.Sweep(); err != nil {
		return err
	}
	for _, name := range disk.Names() {
		if strings.HasPrefix(name, ".") {
			return fmt.Errorf("%s outlived Sweep", name)
		}
	}
	for name, after := range c.after {
		got, err := d.Read(name, math.MaxInt32)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if !bytes.Equal(got, after) && (done || !bytes.Equal(got, c.before[name])) {
			return fmt.Errorf("%s holds %d bytes, %.20q", name, len(got), got)
		}
	}
	return errors.Join(c.checkNames(d), c.checkKept(disk), d.Close())
}

func (c change) checkNames(d *durable.Dir) error {
	names, err := d.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, known := c.after[name]; !known && name != "bystander" {
			return fmt.Errorf("found %s", name)
		}
	}
	if got, err := d.Read("bystander", 1<<20); !bytes.Equal(got, content("bystander")) {
		return fmt.Errorf("the bystander holds %q, %v", got, err)
	}
	return nil
}

// checkKept finds every content of before somewhere, unless c is to destroy it.
func (c change) checkKept(disk *keyringtest.Disk) error {
	if c.name != "set aside" {
		return nil
	}
	for _, name := range disk.Names() {
		if bytes.Equal(disk.Bytes(name), c.before["a"]) {
			return nil
		}
	}
	return errors.New("what was set aside is gone")
}

// eachOp calls f with every operation that c does when nothing fails.
func (c change) eachOp(t *testing.T, f func(op keyringtest.Op)) {
	t.Helper()
	disk := c.start()
	d := open(t, disk)
	ops := make(chan keyringtest.Op, 100)
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		ops <- op
		return keyringtest.Fault{}
	})
	must(t, errors.Join(c.do(d)...))
	close(ops)
	for op := range ops {
		f(op)
	}
}

// faultAt is a hook that fails one operation.
func faultAt(seq int, fault keyringtest.Fault) func(keyringtest.Op) keyringtest.Fault {
	return func(op keyringtest.Op) keyringtest.Fault {
		if op.Seq == seq {
			return fault
		}
		return keyringtest.Fault{}
	}
}

func TestWriteReadListRemove(t *testing.T) {
	disk := keyringtest.NewDisk()
	d := open(t, disk)
	must(t, write(d))
	must(t, write(d, durable.Named{Name: "b"}, durable.Named{Name: "a", Data: []byte("1")}))
	must(t, write(d, durable.Named{Name: "a", Data: []byte("2")}, durable.Named{Name: "a", Data: []byte("3")}))
	if names, err := d.List(); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("list: %q, %v", names, err)
	}
	if data, err := d.Read("a", 1); err != nil || string(data) != "3" {
		t.Errorf("read a: %q, %v", data, err)
	}
	if data, err := d.Read("b", 0); err != nil || len(data) != 0 {
		t.Errorf("read b: %q, %v", data, err)
	}
	must(t, d.Remove("a"))
	must(t, d.Remove("a"))
	if _, err := d.Read("a", 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read a after remove: %v", err)
	}
	must(t, d.Close())
	if err := write(d, durable.Named{Name: "a"}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if n := disk.OpenFiles(); n != 0 {
		t.Errorf("%d files left open", n)
	}
}

func TestWriteManyFilesInOneDirectorySync(t *testing.T) {
	disk := keyringtest.NewDisk()
	d := open(t, disk)
	syncs, most := make(chan int, 100), 0
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "create" {
			most = max(most, disk.OpenFiles()+1)
		}
		if op.Kind == "dirsync" {
			syncs <- op.Seq
		}
		return keyringtest.Fault{}
	})
	var files []durable.Named
	for i := range 600 {
		files = append(files, durable.Named{Name: fmt.Sprint(i), Data: fmt.Append(nil, "data ", i)})
	}
	must(t, write(d, files...))
	if len(syncs) != 1 {
		t.Errorf("%d directory syncs", len(syncs))
	}
	if most != 256 {
		t.Errorf("%d files open at once", most)
	}
	after := disk.Crash(keyringtest.Dropped, 0)
	for _, f := range files {
		if !bytes.Equal(after.Bytes(f.Name), f.Data) {
			t.Errorf("%s holds %q", f.Name, after.Bytes(f.Name))
		}
	}
}

func TestNamesThatAreNotPlainAreRefused(t *testing.T) {
	disk := keyringtest.NewDisk()
	d := open(t, disk)
	for _, name := range []string{"", ".", "..", "/", "a/b", "../a", "/a", "a/", ".lock", staleTemp} {
		errs := d.Write(durable.Named{Name: name}, durable.Named{Name: "good"})
		if errs[0] == nil || errs[1] != nil {
			t.Errorf("write %q: %v", name, errs)
		}
		_, readErr := d.Read(name, 1)
		_, asideErr := d.SetAside(name, "bad")
		if readErr == nil || asideErr == nil || d.Remove(name) == nil {
			t.Errorf("%q was taken: %v, %v", name, readErr, asideErr)
		}
	}
	if _, err := d.SetAside("good", "a/b"); err == nil {
		t.Error("set aside to another directory")
	}
	if got := disk.Names(); !slices.Equal(got, []string{"good"}) {
		t.Errorf("left %q", got)
	}
}

func TestReadOpensOnlyRegularFiles(t *testing.T) {
	disk := keyringtest.NewDisk()
	d := open(t, disk)
	for _, mode := range []fs.FileMode{
		fs.ModeDir, fs.ModeSymlink, fs.ModeNamedPipe, fs.ModeSocket, fs.ModeDevice,
	} {
		disk.Plant("a", mode|0o600, nil)
		if _, err := d.Read("a", 100); !errors.Is(err, durable.ErrNotRegular) {
			t.Errorf("%v: %v", mode, err)
		}
	}
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "read" {
			t.Errorf("%s %s", op.Kind, op.Name)
		}
		return keyringtest.Fault{}
	})
	d.Read("a", 100)
	if n := disk.OpenFiles(); n > 0 {
		t.Errorf("%d files are open", n)
	}
}

func TestReadStopsAtTheLimit(t *testing.T) {
	disk := keyringtest.NewDisk()
	disk.Plant("a", 0o600, []byte("abc"))
	d := open(t, disk)
	if data, err := d.Read("a", 3); string(data) != "abc" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	if data, err := d.Read("a", 2); !errors.Is(err, durable.ErrTooLarge) {
		t.Errorf("%q, %v", data, err)
	}
}

func TestReadLooksAgainAfterOpening(t *testing.T) {
	for _, tt := range []struct {
		mode fs.FileMode
		data string
		want error
	}{
		{fs.ModeNamedPipe | 0o600, "", durable.ErrNotRegular},
		{fs.ModeDir | 0o700, "", durable.ErrNotRegular},
		{0o600, "too long", durable.ErrTooLarge},
		{0, "", fs.ErrPermission},
	} {
		disk := keyringtest.NewDisk()
		disk.Plant("a", 0o600, []byte("abc"))
		d := open(t, disk)
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == "open" {
				disk.Plant("a", tt.mode, []byte(tt.data))
			}
			return keyringtest.Fault{}
		})
		if data, err := d.Read("a", 4); !errors.Is(err, tt.want) {
			t.Errorf("%v: %q, %v", tt.mode, data, err)
		}
	}
}

func TestReadStopsAtTheLimitWhenTheFileGrows(t *testing.T) {
	disk := keyringtest.NewDisk()
	fsys, err := disk.Open()
	must(t, err)
	f, err := fsys.Create("a")
	must(t, err)
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "read" {
			f.Write([]byte("more"))
		}
		return keyringtest.Fault{}
	})
	if data, err := durable.New(fsys).Read("a", 2); !errors.Is(err, durable.ErrTooLarge) {
		t.Errorf("%q, %v", data, err)
	}
}

func TestSetAsideOverwritesNothing(t *testing.T) {
	disk := keyringtest.NewDisk()
	d := open(t, disk)
	want := map[string]string{}
	for i, mode := range []fs.FileMode{0, fs.ModeSymlink, fs.ModeDir, fs.ModeNamedPipe} {
		name := fmt.Sprintf("a.bad-%d", i+1)
		disk.Plant("a", mode|0o600, []byte(mode.String()))
		want[name] = mode.String()
		if got, err := d.SetAside("a", "bad"); got != name || err != nil {
			t.Errorf("%v: %q, %v", mode, got, err)
		}
	}
	if got := disk.Names(); len(got) != len(want) {
		t.Errorf("left %q", got)
	}
	for name, data := range want {
		if got := string(disk.Crash(keyringtest.Dropped, 0).Bytes(name)); got != data {
			t.Errorf("%s is %q, want %q", name, got, data)
		}
	}
	if _, err := d.SetAside("a", "bad"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("set aside what is not there: %v", err)
	}
}

func TestTakeBackOverwritesNothing(t *testing.T) {
	disk := keyringtest.NewDisk()
	d := open(t, disk)
	must(t, write(d, durable.Named{Name: "a", Data: content("old")}))
	aside, err := d.SetAside("a", "removed")
	must(t, err)
	if name, why, ok := durable.ParseAside(aside); name != "a" || why != "removed" || !ok {
		t.Errorf("%s is parsed as %q, %q, %v", aside, name, why, ok)
	}
	must(t, write(d, durable.Named{Name: "a", Data: content("new")}))
	if err := d.TakeBack(aside, "a"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another file: %v", err)
	}
	must(t, d.Remove("a"))
	must(t, d.TakeBack(aside, "a"))
	if got := disk.Names(); len(got) != 1 || !bytes.Equal(disk.Bytes("a"), content("old")) {
		t.Errorf("taken back: %q", got)
	}
	for _, name := range []string{"a", "b.removed-1", "a.removed-0", "a.removed-", "a.-1", ".removed-1", "../a.removed-1", ".lock.removed-1"} {
		if err := d.TakeBack(name, "a"); err == nil {
			t.Errorf("%s: taken back", name)
		}
	}
}

func TestSweepRemovesOnlyOurs(t *testing.T) {
	disk := keyringtest.NewDisk()
	others := []string{
		".tmp-", ".tmp-1", staleTemp + "0", "x" + staleTemp, staleTemp + "\n",
		strings.ToUpper(staleTemp), "a", "tmp",
	}
	for _, name := range others {
		disk.Plant(name, 0o600, nil)
	}
	directory := strings.Replace(staleTemp, "00", "ff", 1)
	disk.Plant(directory, fs.ModeDir|0o700, nil)
	disk.Plant(staleTemp, 0o600, nil)
	d := open(t, disk)
	must(t, d.Sweep())
	want := append(slices.Clone(others), directory)
	slices.Sort(want)
	if got := disk.Crash(keyringtest.Dropped, 0).Names(); !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
}

func TestSweepSparesAWriteUnderWay(t *testing.T) {
	disk := keyringtest.NewDisk()
	d := open(t, disk)
	var wg sync.WaitGroup
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "sync" {
			wg.Go(func() {
				if err := d.Sweep(); err != nil {
					t.Error(err)
				}
			})
			for range 1000 { // Sweep has every chance to run now
				runtime.Gosched()
			}
		}
		return keyringtest.Fault{}
	})
	must(t, write(d, durable.Named{Name: "a", Data: []byte("1")}))
	wg.Wait()
	if got := disk.Names(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("left %q", got)
	}
}

func TestConcurrentCalls(t *testing.T) {
	d := open(t, keyringtest.NewDisk())
	var wg sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprint("key", i)
		wg.Go(func() {
			for range 50 {
				_, listErr := d.List()
				err := errors.Join(write(d, durable.Named{Name: name, Data: []byte(name)}), listErr, d.Sweep())
				data, readErr := d.Read(name, 100)
				if err := errors.Join(err, readErr, d.Remove(name)); err != nil || string(data) != name {
					t.Errorf("%s holds %q, %v", name, data, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestErrorsSayWhatWasAttempted(t *testing.T) {
	disk := keyringtest.NewDisk()
	disk.Plant("d", fs.ModeDir|0o700, nil)
	d := open(t, disk)
	_, read := d.Read("d", 1)
	_, aside := d.SetAside("none", "bad")
	for want, err := range map[string]error{
		"write d: ":        write(d, durable.Named{Name: "d"}),
		"read d: ":         read,
		"set aside none: ": aside,
		"remove d: ":       d.Remove("d"),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
