package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
)

const seeds = 32

// TestCrashAtEveryOperation is invariant I8 for a crash: at every operation, with
// every kind of loss.
func TestCrashAtEveryOperation(t *testing.T) {
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			c.eachOp(t, func(op keyringtest.Op) {
				disk := c.start()
				d := open(t, disk)
				disk.OnOp(faultAt(op.Seq, keyringtest.Fault{Err: keyringtest.ErrCrashed}))
				if err := errors.Join(c.do(d)...); !errors.Is(err, keyringtest.ErrCrashed) {
					t.Errorf("crash at %+v is reported as %v", op, err)
				}
				checkAllLosses(t, c, disk, false, fmt.Sprintf("crash at %+v", op))
			})
		})
	}
}

func TestCrashAfterSuccess(t *testing.T) {
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			disk := c.start()
			must(t, errors.Join(c.do(open(t, disk))...))
			checkAllLosses(t, c, disk, true, "crash after success")
		})
	}
}

func checkAllLosses(t *testing.T, c change, disk *keyringtest.Disk, done bool, when string) {
	t.Helper()
	for _, how := range keyringtest.Losses {
		for seed := range uint64(seeds) {
			if err := c.check(disk.Crash(how, seed), done); err != nil {
				t.Fatalf("%s, %v, seed %d: %v", when, how, seed, err)
			}
		}
	}
}

// TestFaultAtEveryOperation is invariant I8 for a disk that fails: the error is
// reported, for the file concerned alone; the file holds its old content or its
// new; doing it again heals.
func TestFaultAtEveryOperation(t *testing.T) {
	faults := []keyringtest.Fault{
		{Err: syscall.EIO},
		{Err: syscall.EIO, Applied: true},
		{Err: syscall.ENOSPC},
		{Err: syscall.ENOSPC, Applied: true},
		{Err: syscall.ENOSPC, Wrote: 50},
	}
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			c.eachOp(t, func(op keyringtest.Op) {
				for _, fault := range faults {
					c.checkFault(t, op, fault)
				}
			})
		})
	}
}

func (c change) checkFault(t *testing.T, at keyringtest.Op, fault keyringtest.Fault) {
	t.Helper()
	when := fmt.Sprintf("%+v at %+v", fault, at)
	disk := c.start()
	d := open(t, disk)
	concerned := make(chan keyringtest.Op, 1)
	creates := map[string]int{}
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "create" {
			creates[op.Name] = len(creates)
		}
		if op.Seq != at.Seq {
			return keyringtest.Fault{}
		}
		concerned <- op
		return fault
	})
	errs := c.do(d)
	disk.OnOp(nil)

	checkConcerned(t, when, errs, fault.Err, <-concerned, creates)
	checkClean(t, when, disk)
	checkAllLosses(t, c, disk, false, when)

	// A second SetAside or TakeBack finds nothing to rename if the first has renamed; the
	// former then syncs, after the latter it is the caller who does.
	err := errors.Join(c.do(d)...)
	renamed := fault.Applied || at.Kind == "dirsync"
	switch {
	case err == nil:
	case renamed && c.name == "set aside" && errors.Is(err, fs.ErrNotExist):
	case renamed && c.name == "take back" && errors.Is(err, fs.ErrExist):
		must(t, d.Sync())
	default:
		t.Errorf("%s: again: %v", when, err)
	}
	checkClean(t, when, disk)
	checkAllLosses(t, c, disk, true, when+", then again")
}

// checkConcerned wants an error for the file that met the fault, and for all files
// if it was the directory.
func checkConcerned(t *testing.T, when string, errs []error, fault error, at keyringtest.Op, creates map[string]int) {
	t.Helper()
	for i, err := range errs {
		n, known := creates[at.Name]
		want := !known || n == i
		if want != (err != nil) || want && !errors.Is(err, fault) {
			t.Errorf("%s: file %d: %v", when, i, err)
		}
	}
}

func checkClean(t *testing.T, when string, disk *keyringtest.Disk) {
	t.Helper()
	if again := disk.Resynced(); again != nil {
		t.Errorf("%s: synced again after a failed sync: %q", when, again)
	}
	if n := disk.OpenFiles(); n != 0 {
		t.Errorf("%s: %d files left open", when, n)
	}
}

func TestFailedWriteLeavesNoTemporaryFile(t *testing.T) {
	for _, kind := range []string{"create", "write", "sync", "close", "rename"} {
		for _, applied := range []bool{false, true} {
			disk := keyringtest.NewDisk()
			d := open(t, disk)
			disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Kind != kind {
					return keyringtest.Fault{}
				}
				return keyringtest.Fault{Err: syscall.ENOSPC, Applied: applied}
			})
			if err := write(d, durable.Named{Name: "a"}); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s: %v", kind, err)
			}
			for _, name := range disk.Names() {
				if name != "a" {
					t.Errorf("%s, applied %v: %s is left", kind, applied, name)
				}
			}
		}
	}
}

func TestSweepRemovesWhatItCan(t *testing.T) {
	disk := keyringtest.NewDisk()
	for i := range 3 {
		disk.Plant(fmt.Sprintf(".tmp-%032x", i), 0o600, nil)
	}
	d := open(t, disk)
	stuck := fmt.Sprintf(".tmp-%032x", 1)
	disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
		if op.Kind == "remove" && op.Name == stuck {
			return keyringtest.Fault{Err: syscall.EIO}
		}
		return keyringtest.Fault{}
	})
	if err := d.Sweep(); !errors.Is(err, syscall.EIO) {
		t.Errorf("sweep: %v", err)
	}
	if got := disk.Names(); len(got) != 1 || got[0] != stuck {
		t.Errorf("left %q", got)
	}
}

func TestReadReportsFaults(t *testing.T) {
	for _, kind := range []string{"open", "read"} {
		disk := keyringtest.NewDisk()
		disk.Plant("a", 0o600, []byte("abc"))
		d := open(t, disk)
		disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == kind {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		if data, err := d.Read("a", 10); data != nil || !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %q, %v", kind, data, err)
		}
		checkClean(t, kind, disk)
	}
}

// TestAnyHistory does random writes and removals, with random faults and crashes,
// and holds each name against all that it may contain.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{T: t, disk: keyringtest.NewDisk(), may: map[string][][]byte{"a": {nil}, "b": {nil}, "c": {nil}}}
		h.start()
		t.Repeat(map[string]func(*rapid.T){
			"write":  h.write,
			"remove": h.remove,
			"crash":  h.crash,
			"":       h.check,
		})
	})
}

// history is a disk, and for each name what it may contain: nil stands for absent.
type history struct {
	*rapid.T
	disk *keyringtest.Disk
	dir  *durable.Dir
	may  map[string][][]byte
	n    int
}

func (h *history) start() {
	fsys, err := h.disk.Open()
	if err != nil {
		h.Fatal(err)
	}
	h.dir = durable.New(fsys)
	if err := h.dir.Sweep(); err != nil {
		h.Fatal(err)
	}
}

// fault makes one of the next operations fail.
func (h *history) fault(t *rapid.T) {
	after := rapid.IntRange(0, 12).Draw(t, "operations until the fault")
	fault := keyringtest.Fault{Err: syscall.EIO, Applied: rapid.Bool().Draw(t, "applied")}
	seq := make(chan int, 1)
	seq <- after
	h.disk.OnOp(func(keyringtest.Op) keyringtest.Fault {
		left := <-seq
		seq <- left - 1
		if left == 0 {
			return fault
		}
		return keyringtest.Fault{}
	})
}

func (h *history) write(t *rapid.T) {
	h.fault(t)
	var files []durable.Named
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3, rapid.ID).Draw(t, "names") {
		h.n++
		files = append(files, durable.Named{Name: name, Data: content(fmt.Sprint(h.n))})
	}
	for i, err := range h.dir.Write(files...) {
		h.changed(files[i].Name, files[i].Data, err)
	}
	h.disk.OnOp(nil)
}

func (h *history) remove(t *rapid.T) {
	h.fault(t)
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
	h.changed(name, nil, h.dir.Remove(name))
	h.disk.OnOp(nil)
}

func (h *history) changed(name string, to []byte, err error) {
	if err == nil {
		h.may[name] = nil
	}
	h.may[name] = append(h.may[name], to)
}

func (h *history) crash(t *rapid.T) {
	how := rapid.SampledFrom(keyringtest.Losses).Draw(t, "loss")
	h.disk = h.disk.Crash(how, rapid.Uint64().Draw(t, "seed"))
	h.start()
	for name := range h.may {
		data, err := h.dir.Read(name, math.MaxInt32)
		if err != nil {
			data = nil
		}
		h.check(t)
		h.may[name] = [][]byte{data} // for good: it was there at a start
	}
}

func (h *history) check(t *rapid.T) {
	for name, may := range h.may {
		got := h.disk.Bytes(name)
		ok := false
		for _, data := range may {
			ok = ok || bytes.Equal(got, data) && (got == nil) == (data == nil)
		}
		if !ok {
			t.Fatalf("%s holds %.20q", name, got)
		}
	}
	if again := h.disk.Resynced(); again != nil {
		t.Fatalf("synced again: %q", again)
	}
}
