package scenarios_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// checkTidy wants nothing on a disk but what belongs there.
func checkTidy(t testing.TB, d *keyringtest.Disk, when string) {
	t.Helper()
	for _, name := range d.Names() {
		if strings.HasPrefix(name, ".tmp-") {
			t.Errorf("%s: there is %s", when, name)
		}
	}
	if names := d.Resynced(); len(names) > 0 {
		t.Errorf("%s: synced again after a failed sync: %v", when, names)
	}
}

// copyLog returns a copy of a raft log and its votes.
func copyLog(t testing.TB, from *raft.InmemStore) *raft.InmemStore {
	t.Helper()
	to := raft.NewInmemStore()
	first, _ := from.FirstIndex()
	last, _ := from.LastIndex()
	for i := first; i <= last && i > 0; i++ {
		var l raft.Log
		if err := errors.Join(from.GetLog(i, &l), to.StoreLog(&l)); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"CurrentTerm", "LastVoteTerm"} {
		if n, err := from.GetUint64([]byte(key)); err == nil {
			_ = to.SetUint64([]byte(key), n) // it can't fail
		}
	}
	if b, err := from.Get([]byte("LastVoteCand")); err == nil {
		_ = to.Set([]byte("LastVoteCand"), b)
	}
	return to
}

// crashes are what a loss of power may do: what depends on chance, a few times.
var crashes = []struct {
	how  keyringtest.Loss
	seed uint64
}{
	{keyringtest.Kept, 0}, {keyringtest.Dropped, 0},
	{keyringtest.Reordered, 1}, {keyringtest.Reordered, 2}, {keyringtest.Reordered, 3},
	{keyringtest.Torn, 1}, {keyringtest.Torn, 2}, {keyringtest.Torn, 3},
}

// liveOn bootstraps a keyring, rotates, and starts again; errors are what a crash looks like
// from inside. It seals under every key there is, unless stop says that it is too late.
func liveOn(l *keyringtest.Life, stop func() bool) {
	live := func() {
		if l.Open(l.TB, nil); l.Keyring == nil {
			return
		}
		for range 2 {
			if waitAWhile(l.Host) != nil || stop() {
				return
			}
			if err := l.Seal(); err != nil {
				l.TB.Errorf("seal: %v", err)
			}
			if l.Rotate() != nil || stop() {
				return
			}
		}
	}
	live()
	if !stop() {
		l.Stop(l.TB)
		live()
	}
}

func waitAWhile(h *keyringtest.Host) error {
	for range 60 {
		if h.Keyring.Keys() != nil && h.Raft.State() == raft.Leader {
			if _, err := h.Keyring.Encrypt(nil, nil); err == nil {
				return nil
			}
		}
		time.Sleep(time.Second) // virtual
	}
	return errors.New("not ready in a minute")
}

// TestI8CrashAtEveryDiskOperationLosesNoKey is invariant I8 for the keystore: bootstrapping,
// rotating and starting, each with a crash at every operation of the disk.
func TestI8CrashAtEveryDiskOperationLosesNoKey(t *testing.T) {
	t.Parallel()
	crash := func(t *testing.T, at int) (more bool) {
		synctest.Test(t, func(t *testing.T) {
			l := keyringtest.NewLife(t)
			var mu sync.Mutex // guards log: the disk as it was, and the log of that moment
			var log *raft.InmemStore
			var where string
			crashed := func() bool { mu.Lock(); defer mu.Unlock(); return log != nil }
			l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if op.Seq != at {
					return keyringtest.Fault{}
				}
				log, where = copyLog(t, l.Log), fmt.Sprintf("crash at operation %d, %s", op.Seq, op.Kind)
				return keyringtest.Fault{Err: keyringtest.ErrCrashed}
			})
			lifeUntil(l, crashed)
			more = crashed()
			if !more {
				return
			}
			died := l.Disk
			for _, c := range crashes {
				when := fmt.Sprintf("%s, %v %d", where, c.how, c.seed)
				next := keyringtest.NewLife(t)
				next.Log, next.Disk = copyLog(t, log), died.Crash(c.how, c.seed)
				next.Start()
				l.Vault.CheckOpens(t, next.Keyring, when)
				if st := next.Status(t); len(st.SetAside) > 0 || len(st.Missing) > 0 {
					t.Errorf("%s: %v", when, st.Problems)
				}
				keyringtest.CheckOrphans(t, next.Host, when)
				if err := next.Rotate(); err != nil {
					t.Errorf("%s: then rotate: %v", when, err)
				}
				next.CheckHolds(t, when)
				checkTidy(t, next.Disk, when)
				next.Stop(t)
			}
		})
		return more
	}
	n := 1
	for crash(t, n) && !t.Failed() {
		n++
	}
	if n < 60 {
		t.Errorf("a life has only %d operations", n)
	}
}

// lifeUntil is liveOn for a server whose disk may be dead when it stops.
func lifeUntil(l *keyringtest.Life, crashed func() bool) {
	l.MayFail = true
	liveOn(l, crashed)
	l.Stop(l.TB)
}

// TestCrashWhileAFileIsSetAsideKeepsIt crashes at each operation of a start that finds a bad
// file, beside a good one.
func TestCrashWhileAFileIsSetAsideKeepsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		if err := errors.Join(l.Seal(), l.Rotate()); err != nil {
			t.Fatal(err)
		}
		old := l.Keyring.Keys()[1].ID
		l.Stop(t)
		name, bad := nks.FileName(old), []byte("no key file, and kept all the same")
		l.Disk.Plant(name, 0o600, bad)
		log, before := l.Log, l.Disk

		ops := 0
		for at := 1; ; at++ {
			l.Log, l.Disk = copyLog(t, log), before.Crash(keyringtest.Kept, 0)
			l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Seq == at {
					return keyringtest.Fault{Err: keyringtest.ErrCrashed}
				}
				return keyringtest.Fault{}
			})
			l.MayFail = true
			if l.Open(t, nil); l.Keyring != nil && l.Raft.State() == raft.Leader {
				ops = at
				break // it was ready before the crash: the start was over
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			died, done := l.Disk, !crashedAt(l.Disk)
			l.Stop(t)
			if done {
				ops = at
				break
			}
			checkSetAside(t, log, died, at, name, bad)
		}
		if ops < 10 {
			t.Errorf("a start has only %d operations", ops)
		}
	})
}

// checkSetAside starts a server after each kind of crash, and wants the bad file to be kept under another name.
func checkSetAside(t *testing.T, log *raft.InmemStore, died *keyringtest.Disk, at int, name string, bad []byte) {
	t.Helper()
	for _, c := range crashes {
		when := fmt.Sprintf("crash at operation %d, %v %d", at, c.how, c.seed)
		next := keyringtest.NewLife(t)
		next.Log, next.Disk = copyLog(t, log), died.Crash(c.how, c.seed)
		next.Start()
		kept := 0
		for n, content := range keyringtest.KeyFiles(next.Disk) {
			if content == string(bad) && n != name {
				kept++
			}
		}
		if kept == 0 || next.Disk.Bytes(name) != nil && bytes.Equal(next.Disk.Bytes(name), bad) {
			t.Errorf("%s: the bad file is not set aside: %v", when, next.Disk.Names())
		}
		if err := next.Rotate(); err != nil {
			t.Errorf("%s: rotate: %v", when, err)
		}
		checkTidy(t, next.Disk, when)
		next.Stop(t)
	}
}

// crashedAt reports whether a disk has met its crash.
func crashedAt(d *keyringtest.Disk) bool {
	_, err := d.Open()
	return errors.Is(err, keyringtest.ErrCrashed)
}

// TestFaultAtEveryDiskOperationOfARotation: whichever operation fails, the rotation reports it
// or gets over it, the old key serves on, nobody is recorded as a holder of what a crash would
// take away, a later rotation works, and so does the next start, with the orphan reported.
func TestFaultAtEveryDiskOperationOfARotation(t *testing.T) {
	t.Parallel()
	reported := 0
	for _, fault := range keyringtest.Faults {
		for at := 1; ; at++ {
			struck, failed := strikeFault(t, at, fault)
			if failed {
				reported++
			}
			if !struck || t.Failed() {
				if at < 12 && !t.Failed() {
					t.Errorf("a rotation has only %d operations", at-1)
				}
				break
			}
		}
	}
	if reported == 0 {
		t.Error("no fault was reported")
	}
}

// strikeFault has one operation of a rotation fail, if there are so many, and looks at what becomes of the server.
func strikeFault(t *testing.T, at int, fault keyringtest.Fault) (struck, failed bool) {
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		if err := l.Seal(); err != nil {
			t.Fatal(err)
		}
		when := fmt.Sprintf("%v, applied %v, at operation %d", fault.Err, fault.Applied, at)
		var mu sync.Mutex // guards below
		n := 0
		l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if n++; n != at {
				return keyringtest.Fault{}
			}
			struck, when = true, fmt.Sprintf("%s, %s", when, op.Kind)
			return fault
		})
		err := l.Rotate()
		failed = err != nil
		if l.Disk.OnOp(nil); !struck {
			return
		}
		if err := l.Seal(); err != nil {
			t.Errorf("%s: seal: %v", when, err)
		}
		l.Vault.CheckOpens(t, l.Keyring, when)
		l.CheckHolds(t, when)
		time.Sleep(5 * time.Minute) // whatever heals has healed
		l.CheckHolds(t, when+", later")
		if err := l.Rotate(); err != nil {
			t.Errorf("%s: then rotate: %v", when, err)
		}
		if err := l.Seal(); err != nil {
			t.Errorf("%s: then seal: %v", when, err)
		}
		l.CheckHolds(t, when+", after the next rotation")
		checkTidyLater(t, l.Disk, when)

		l.Stop(t)
		if n := l.Disk.OpenFiles(); n > 0 {
			t.Errorf("%s: %d files are open", when, n)
		}
		l.Start()
		l.Vault.CheckOpens(t, l.Keyring, when+", restarted")
		if st := l.Status(t); len(st.SetAside)+len(st.Missing) > 0 {
			t.Errorf("%s, restarted: %v", when, st.Problems)
		}
		keyringtest.CheckOrphans(t, l.Host, when)
		checkTidy(t, l.Disk, when)
	})
	return struck, failed
}

// checkTidyLater is checkTidy for a disk whose temporary files the next start sweeps.
func checkTidyLater(t testing.TB, d *keyringtest.Disk, when string) {
	t.Helper()
	if names := d.Resynced(); len(names) > 0 {
		t.Errorf("%s: synced again after a failed sync: %v", when, names)
	}
}
