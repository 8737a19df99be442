package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
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

// liveOn founds a keyring, rotates, and starts again; errors are what a crash looks like
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

// TestI8CrashAtEveryDiskOperationLosesNoKey is invariant I8 for the keystore: founding,
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
				checkOrphans(t, next.Host, when)
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

// checkOrphans wants each key file that the ring does not know to be reported.
func checkOrphans(t testing.TB, h *keyringtest.Host, when string) {
	t.Helper()
	st := h.Status(t)
	for name := range keyringtest.KeyFiles(h.Disk) {
		id, ok := nks.ParseFileName(name)
		if ring := keyring.Ring(h.FSM); !ok || ring.Key(id) != nil || ring.WasRemoved(id) {
			continue
		}
		if !slices.Contains(st.Orphans, keyring.KeyID(id)) {
			t.Errorf("%s: orphan %s is not reported: %v", when, name, st.Problems)
		}
	}
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
		if ops < 10 {
			t.Errorf("a start has only %d operations", ops)
		}
	})
}

// crashedAt reports whether a disk has met its crash.
func crashedAt(d *keyringtest.Disk) bool {
	_, err := d.Open()
	return errors.Is(err, keyringtest.ErrCrashed)
}

// faults are the ways in which a disk operation goes wrong.
var faults = keyringtest.Faults

// TestFaultAtEveryDiskOperationOfARotation: whichever operation fails, the rotation reports it
// or gets over it, the old key serves on, nobody is recorded as a holder of what a crash would
// take away, a later rotation works, and so does the next start, with the orphan reported.
func TestFaultAtEveryDiskOperationOfARotation(t *testing.T) {
	t.Parallel()
	strike := func(t *testing.T, at int, fault keyringtest.Fault) (struck, failed bool) {
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
			checkOrphans(t, l.Host, when)
			checkTidy(t, l.Disk, when)
		})
		return struck, failed
	}
	reported := 0
	for _, fault := range faults {
		for at := 1; ; at++ {
			struck, failed := strike(t, at, fault)
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

// checkTidyLater is checkTidy for a disk whose temporary files the next start sweeps.
func checkTidyLater(t testing.TB, d *keyringtest.Disk, when string) {
	t.Helper()
	if names := d.Resynced(); len(names) > 0 {
		t.Errorf("%s: synced again after a failed sync: %v", when, names)
	}
}

// TestHolderIsNobodyWhoseNamesDoNotSync: a follower whose directory can't be synced sees its
// file all the same, reads it back, and is no holder. When the directory syncs again it
// becomes one, and a crash then takes nothing away.
func TestHolderIsNobodyWhoseNamesDoNotSync(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := keyringtest.NewHosts(t, 3)
				for _, h := range hosts {
					h.Open(t, nil)
				}
				leader := keyringtest.LeaderOf(t, hosts)
				keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
				f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
				broken := func(op keyringtest.Op) keyringtest.Fault {
					if op.Kind == "dirsync" {
						return keyringtest.Fault{Err: syscall.EIO}
					}
					return keyringtest.Fault{}
				}
				f.Disk.OnOp(broken)
				key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Minute)
				f.CheckHolds(t, "while it does not sync")
				if keyring.Ring(f.FSM).Key(key.ID).HeldBy(string(f.ID)) {
					t.Error("it is recorded as a holder")
				}
				if restart { // of the process: the disk has the name, not yet durable
					if f.Disk.Bytes(nks.FileName(key.ID)) == nil {
						t.Fatal("the file is not there to be found")
					}
					f.Stop(t)
					f.Open(t, nil)
				} else {
					f.Disk.OnOp(nil)
				}
				time.Sleep(5 * time.Minute)
				if restart {
					f.CheckHolds(t, "restarted, and it does not sync yet")
					f.Disk.OnOp(nil)
					time.Sleep(5 * time.Minute)
				}
				keyringtest.AwaitHolders(f.Keyring, key.ID, 3)
				f.CheckHolds(t, "when it syncs again")
				checkTidy(t, f.Disk, "at the end")
			})
		})
	}
}

// TestRestartedServerHoldsOnlyWhatItHasSynced: the process dies between the rename of a key
// file and the sync of its directory, the machine lives on, and dies when the next process
// has reported itself a holder.
func TestRestartedServerHoldsOnlyWhatItHasSynced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 3)
		for _, h := range hosts {
			h.Open(t, nil)
		}
		leader := keyringtest.LeaderOf(t, hosts)
		keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
		f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
		f.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == "dirsync" {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for f.Disk.Bytes(nks.FileName(key.ID)) == nil {
			time.Sleep(time.Second)
		}
		f.Stop(t)
		f.Disk.OnOp(nil)
		f.Open(t, nil)
		keyringtest.AwaitHolders(f.Keyring, key.ID, 3)
		f.CheckHolds(t, "restarted")
	})
}

// keystoreID is the keystore that the ring has on record for a server.
func keystoreID(h *keyringtest.Host) (id meta.KeystoreID) {
	id, _ = keyring.Ring(h.FSM).Keystore(string(h.ID))
	return id
}

func TestKeystoreIDIsKeptAndAWipedServerHasAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 3)
		for _, h := range hosts {
			h.Open(t, nil)
		}
		leader := keyringtest.LeaderOf(t, hosts)
		key := leader.Keyring.Keys()[0].ID
		keyringtest.AwaitHolders(leader.Keyring, key, 3)
		f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
		id := keystoreID(f)
		restart := func(d *keyringtest.Disk) meta.KeystoreID {
			t.Helper()
			f.Stop(t)
			f.Disk = d
			f.Open(t, nil)
			time.Sleep(time.Minute)
			keyringtest.AwaitHolders(leader.Keyring, key, 3)
			if st := f.Status(t); !st.Ready {
				t.Errorf("not ready: %v", st.Problems)
			}
			f.CheckHolds(t, "restarted")
			return keystoreID(f)
		}
		if got := restart(f.Disk); got != id || id == (meta.KeystoreID{}) {
			t.Errorf("restarted: %x, it was %x", got, id)
		}
		wiped := restart(keyringtest.NewDisk())
		if wiped == id {
			t.Error("a wiped server has the ID it had")
		}
		seen := map[meta.KeystoreID]bool{id: true, wiped: true}
		for name, content := range map[string]string{
			"empty": "", "short": "00112233", "no newline": strings.Repeat("ab", 16), "not hex": strings.Repeat("xy", 16) + "\n",
			"two lines": strings.Repeat("ab", 16) + "\n\n", "huge": strings.Repeat("x", 1<<20),
		} {
			f.Disk.Plant("keystore.id", 0o600, []byte(content))
			got := restart(f.Disk)
			if seen[got] {
				t.Errorf("%s: an ID that was there before", name)
			}
			seen[got] = true
			st := f.Status(t)
			if len(st.SetAside) != 1 || string(f.Disk.Bytes(st.SetAside[0])) != content || !strings.HasPrefix(st.SetAside[0], "keystore.id.") {
				t.Errorf("%s: set aside %v", name, st.SetAside)
			}
		}
	})
}

func TestReadErrorAtStartSetsNothingAside(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"open", "read"} {
		synctest.Test(t, func(t *testing.T) {
			l := keyringtest.NewLife(t)
			l.Start()
			if err := errors.Join(l.Seal(), l.Rotate(), l.Seal()); err != nil {
				t.Fatal(err)
			}
			l.Stop(t)
			l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Kind == kind && strings.HasSuffix(op.Name, ".nks.json") {
					return keyringtest.Fault{Err: syscall.EIO}
				}
				return keyringtest.Fault{}
			})
			files := keyringtest.KeyFiles(l.Disk)
			l.Open(t, nil)
			time.Sleep(10 * time.Second)
			if st := l.Status(t); len(st.SetAside) > 0 || len(st.Missing) != 2 || fmt.Sprint(keyringtest.KeyFiles(l.Disk)) != fmt.Sprint(files) {
				t.Errorf("%s: %v", kind, st.Problems)
			}
			l.Disk.OnOp(nil)
			keyringtest.LeaderOf(t, l.Hosts)
			l.Vault.CheckOpens(t, l.Keyring, kind)
		})
	}
}

// TestKeyThatReadsBackAsAnotherIsNotHeld: the disk takes all that it is given, and gives
// something else back.
func TestKeyThatReadsBackAsAnotherIsNotHeld(t *testing.T) {
	t.Parallel()
	for what, plant := range map[string]func(t *testing.T, d *keyringtest.Disk, id keyring.KeyID){
		"garbage": func(_ *testing.T, d *keyringtest.Disk, id keyring.KeyID) {
			d.Plant(nks.FileName(id), 0o600, []byte("garbage"))
		},
		"another key": func(t *testing.T, d *keyringtest.Disk, id keyring.KeyID) {
			keyringtest.PlantKey(t, d, id, keyring.InlineKEK())
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := keyringtest.NewLife(t)
			l.Start()
			if err := l.Seal(); err != nil {
				t.Fatal(err)
			}
			live := len(keyring.Live(l.Keyring))
			l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if id, ok := nks.ParseFileName(op.Name); ok && op.Kind == "open" && keyring.Ring(l.FSM).Key(id) == nil && l.Disk.Bytes(op.Name) != nil {
					plant(t, l.Disk, id)
				}
				return keyringtest.Fault{}
			})
			if err := l.Rotate(); err == nil || !strings.Contains(err.Error(), "read back") {
				t.Errorf("%s: rotate: %v", what, err)
			}
			if l.Disk.OnOp(nil); len(l.Keyring.Keys()) != 1 || len(keyring.Live(l.Keyring)) != live {
				t.Errorf("%s: %d keys, %d secrets in memory", what, len(l.Keyring.Keys()), len(keyring.Live(l.Keyring)))
			}
			if err := errors.Join(l.Seal(), l.Rotate(), l.Seal()); err != nil {
				t.Errorf("%s: afterwards: %v", what, err)
			}
			l.Stop(t)
			l.Start()
			l.Vault.CheckOpens(t, l.Keyring, what)
		})
	}
}
