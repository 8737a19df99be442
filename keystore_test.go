package keyring_test

import (
	"bytes"
	"context"
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

// life is one server, alone, and what was sealed on it.
type life struct {
	t     *testing.T
	hosts []*host
	*host
	vault sealings
}

// sealings are ciphertexts by the key they are sealed under.
type sealings map[keyring.KeyID][][]byte

func newLife(t *testing.T) *life {
	l := &life{t: t, hosts: newHosts(t, 1), vault: sealings{}}
	l.host = l.hosts[0]
	return l
}

// start opens the server and waits until it is ready.
func (l *life) start() {
	l.t.Helper()
	l.open(l.t, nil)
	leaderOf(l.t, l.hosts)
}

// seal seals something and remembers it.
func (l *life) seal() error {
	b, err := l.keyring.Encrypt([]byte("data"), []byte("aad"))
	if err == nil {
		id, _ := keyring.CiphertextKeyID(b)
		l.vault[id] = append(l.vault[id], b)
	}
	return err
}

// rotate gives up after a while: a disk that is dead never confirms a key.
func (l *life) rotate() error {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Hour) // virtual
	defer cancel()
	_, err := l.keyring.Rotate(ctx, keyring.RotateOptions{})
	return err
}

// opens wants a server to open all of it.
func (v sealings) opens(t testing.TB, k *keyring.Keyring, when string) {
	t.Helper()
	for id, ciphertexts := range v {
		for _, c := range ciphertexts {
			if got, err := k.Decrypt(c, []byte("aad")); err != nil || string(got) != "data" {
				t.Errorf("%s: under %s: %q, %v", when, id, got, err)
			}
		}
	}
}

func (h *host) status(t testing.TB) keyring.Status {
	t.Helper()
	st, err := h.keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// checkHolds wants every key that this server is recorded to hold to be on its disk after a
// loss of power, whatever was not synced.
func (h *host) checkHolds(t testing.TB, when string) {
	t.Helper()
	after := h.disk.Crash(keyringtest.Dropped, 0)
	for _, k := range keyring.Ring(h.fsm).Keys {
		if b := after.Bytes(nks.FileName(k.ID)); k.HeldBy(string(h.id)) {
			if f, err := nks.DecodeFile(b); err != nil || f.ID != k.ID || f.Check != k.Check {
				t.Errorf("%s: %s is recorded as a holder of %s, whose file a crash would leave as %d bytes (%v)", when, h.id, k.ID, len(b), err)
			}
		}
	}
}

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
func (l *life) liveOn(stop func() bool) {
	live := func() {
		if l.open(l.t, nil); l.keyring == nil {
			return
		}
		for range 2 {
			if l.waitAWhile() != nil || stop() {
				return
			}
			if err := l.seal(); err != nil {
				l.t.Errorf("seal: %v", err)
			}
			if l.rotate() != nil || stop() {
				return
			}
		}
	}
	live()
	if !stop() {
		l.stop(l.t)
		live()
	}
}

func (h *host) waitAWhile() error {
	for range 60 {
		if h.keyring.Keys() != nil && h.raft.State() == raft.Leader {
			if _, err := h.keyring.Encrypt(nil, nil); err == nil {
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
			l := newLife(t)
			var mu sync.Mutex // guards log: the disk as it was, and the log of that moment
			var log *raft.InmemStore
			var where string
			crashed := func() bool { mu.Lock(); defer mu.Unlock(); return log != nil }
			l.disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if op.Seq != at {
					return keyringtest.Fault{}
				}
				log, where = copyLog(t, l.log), fmt.Sprintf("crash at operation %d, %s", op.Seq, op.Kind)
				return keyringtest.Fault{Err: keyringtest.ErrCrashed}
			})
			l.lifeUntil(crashed)
			more = crashed()
			if !more {
				return
			}
			died := l.disk
			for _, c := range crashes {
				when := fmt.Sprintf("%s, %v %d", where, c.how, c.seed)
				next := newLife(t)
				next.log, next.disk = copyLog(t, log), died.Crash(c.how, c.seed)
				next.start()
				l.vault.opens(t, next.keyring, when)
				if st := next.status(t); len(st.SetAside) > 0 || len(st.Missing) > 0 {
					t.Errorf("%s: %v", when, st.Problems)
				}
				checkOrphans(t, next.host, when)
				if err := next.rotate(); err != nil {
					t.Errorf("%s: then rotate: %v", when, err)
				}
				next.checkHolds(t, when)
				checkTidy(t, next.disk, when)
				next.stop(t)
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
func (l *life) lifeUntil(crashed func() bool) {
	l.mayFail = true
	l.liveOn(crashed)
	l.stop(l.t)
}

// checkOrphans wants each key file that the ring does not know to be reported.
func checkOrphans(t testing.TB, h *host, when string) {
	t.Helper()
	st := h.status(t)
	for name := range keyFiles(h.disk) {
		id, ok := nks.ParseFileName(name)
		if ring := keyring.Ring(h.fsm); !ok || ring.Key(id) != nil || ring.WasRemoved(id) {
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
		l := newLife(t)
		l.start()
		if err := errors.Join(l.seal(), l.rotate()); err != nil {
			t.Fatal(err)
		}
		old := l.keyring.Keys()[1].ID
		l.stop(t)
		name, bad := nks.FileName(old), []byte("no key file, and kept all the same")
		l.disk.Plant(name, 0o600, bad)
		log, before := l.log, l.disk

		ops := 0
		for at := 1; ; at++ {
			l.log, l.disk = copyLog(t, log), before.Crash(keyringtest.Kept, 0)
			l.disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Seq == at {
					return keyringtest.Fault{Err: keyringtest.ErrCrashed}
				}
				return keyringtest.Fault{}
			})
			l.mayFail = true
			if l.open(t, nil); l.keyring != nil && l.raft.State() == raft.Leader {
				ops = at
				break // it was ready before the crash: the start was over
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			died, done := l.disk, !crashedAt(l.disk)
			l.stop(t)
			if done {
				ops = at
				break
			}
			for _, c := range crashes {
				when := fmt.Sprintf("crash at operation %d, %v %d", at, c.how, c.seed)
				next := newLife(t)
				next.log, next.disk = copyLog(t, log), died.Crash(c.how, c.seed)
				next.start()
				kept := 0
				for n, content := range keyFiles(next.disk) {
					if content == string(bad) && n != name {
						kept++
					}
				}
				if kept == 0 || next.disk.Bytes(name) != nil && bytes.Equal(next.disk.Bytes(name), bad) {
					t.Errorf("%s: the bad file is not set aside: %v", when, next.disk.Names())
				}
				if err := next.rotate(); err != nil {
					t.Errorf("%s: rotate: %v", when, err)
				}
				checkTidy(t, next.disk, when)
				next.stop(t)
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
			l := newLife(t)
			l.start()
			if err := l.seal(); err != nil {
				t.Fatal(err)
			}
			when := fmt.Sprintf("%v, applied %v, at operation %d", fault.Err, fault.Applied, at)
			var mu sync.Mutex // guards below
			n := 0
			l.disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if n++; n != at {
					return keyringtest.Fault{}
				}
				struck, when = true, fmt.Sprintf("%s, %s", when, op.Kind)
				return fault
			})
			err := l.rotate()
			failed = err != nil
			if l.disk.OnOp(nil); !struck {
				return
			}
			if err := l.seal(); err != nil {
				t.Errorf("%s: seal: %v", when, err)
			}
			l.vault.opens(t, l.keyring, when)
			l.checkHolds(t, when)
			time.Sleep(5 * time.Minute) // whatever heals has healed
			l.checkHolds(t, when+", later")
			if err := l.rotate(); err != nil {
				t.Errorf("%s: then rotate: %v", when, err)
			}
			if err := l.seal(); err != nil {
				t.Errorf("%s: then seal: %v", when, err)
			}
			l.checkHolds(t, when+", after the next rotation")
			checkTidyLater(t, l.disk, when)

			l.stop(t)
			if n := l.disk.OpenFiles(); n > 0 {
				t.Errorf("%s: %d files are open", when, n)
			}
			l.start()
			l.vault.opens(t, l.keyring, when+", restarted")
			if st := l.status(t); len(st.SetAside)+len(st.Missing) > 0 {
				t.Errorf("%s, restarted: %v", when, st.Problems)
			}
			checkOrphans(t, l.host, when)
			checkTidy(t, l.disk, when)
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
				hosts := newHosts(t, 3)
				for _, h := range hosts {
					h.open(t, nil)
				}
				leader := leaderOf(t, hosts)
				keyring.AwaitHolders(leader.keyring, leader.keyring.Keys()[0].ID, 3)
				f := hosts[slices.IndexFunc(hosts, func(h *host) bool { return h != leader })]
				broken := func(op keyringtest.Op) keyringtest.Fault {
					if op.Kind == "dirsync" {
						return keyringtest.Fault{Err: syscall.EIO}
					}
					return keyringtest.Fault{}
				}
				f.disk.OnOp(broken)
				key, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Minute)
				f.checkHolds(t, "while it does not sync")
				if keyring.Ring(f.fsm).Key(key.ID).HeldBy(string(f.id)) {
					t.Error("it is recorded as a holder")
				}
				if restart { // of the process: the disk has the name, not yet durable
					if f.disk.Bytes(nks.FileName(key.ID)) == nil {
						t.Fatal("the file is not there to be found")
					}
					f.stop(t)
					f.open(t, nil)
				} else {
					f.disk.OnOp(nil)
				}
				time.Sleep(5 * time.Minute)
				if restart {
					f.checkHolds(t, "restarted, and it does not sync yet")
					f.disk.OnOp(nil)
					time.Sleep(5 * time.Minute)
				}
				keyring.AwaitHolders(f.keyring, key.ID, 3)
				f.checkHolds(t, "when it syncs again")
				checkTidy(t, f.disk, "at the end")
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
		hosts := newHosts(t, 3)
		for _, h := range hosts {
			h.open(t, nil)
		}
		leader := leaderOf(t, hosts)
		keyring.AwaitHolders(leader.keyring, leader.keyring.Keys()[0].ID, 3)
		f := hosts[slices.IndexFunc(hosts, func(h *host) bool { return h != leader })]
		f.disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == "dirsync" {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		key, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for f.disk.Bytes(nks.FileName(key.ID)) == nil {
			time.Sleep(time.Second)
		}
		f.stop(t)
		f.disk.OnOp(nil)
		f.open(t, nil)
		keyring.AwaitHolders(f.keyring, key.ID, 3)
		f.checkHolds(t, "restarted")
	})
}

// keystoreID is the keystore that the ring has on record for a server.
func (h *host) keystoreID() (id meta.KeystoreID) {
	id, _ = keyring.Ring(h.fsm).Keystore(string(h.id))
	return id
}

func TestKeystoreIDIsKeptAndAWipedServerHasAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 3)
		for _, h := range hosts {
			h.open(t, nil)
		}
		leader := leaderOf(t, hosts)
		key := leader.keyring.Keys()[0].ID
		keyring.AwaitHolders(leader.keyring, key, 3)
		f := hosts[slices.IndexFunc(hosts, func(h *host) bool { return h != leader })]
		id := f.keystoreID()
		restart := func(d *keyringtest.Disk) meta.KeystoreID {
			t.Helper()
			f.stop(t)
			f.disk = d
			f.open(t, nil)
			time.Sleep(time.Minute)
			keyring.AwaitHolders(leader.keyring, key, 3)
			if st := f.status(t); !st.Ready {
				t.Errorf("not ready: %v", st.Problems)
			}
			f.checkHolds(t, "restarted")
			return f.keystoreID()
		}
		if got := restart(f.disk); got != id || id == (meta.KeystoreID{}) {
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
			f.disk.Plant("keystore.id", 0o600, []byte(content))
			got := restart(f.disk)
			if seen[got] {
				t.Errorf("%s: an ID that was there before", name)
			}
			seen[got] = true
			st := f.status(t)
			if len(st.SetAside) != 1 || string(f.disk.Bytes(st.SetAside[0])) != content || !strings.HasPrefix(st.SetAside[0], "keystore.id.") {
				t.Errorf("%s: set aside %v", name, st.SetAside)
			}
		}
	})
}

func TestReadErrorAtStartSetsNothingAside(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"open", "read"} {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(t)
			l.start()
			if err := errors.Join(l.seal(), l.rotate(), l.seal()); err != nil {
				t.Fatal(err)
			}
			l.stop(t)
			l.disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Kind == kind && strings.HasSuffix(op.Name, ".nks.json") {
					return keyringtest.Fault{Err: syscall.EIO}
				}
				return keyringtest.Fault{}
			})
			files := keyFiles(l.disk)
			l.open(t, nil)
			time.Sleep(10 * time.Second)
			if st := l.status(t); len(st.SetAside) > 0 || len(st.Missing) != 2 || fmt.Sprint(keyFiles(l.disk)) != fmt.Sprint(files) {
				t.Errorf("%s: %v", kind, st.Problems)
			}
			l.disk.OnOp(nil)
			leaderOf(t, l.hosts)
			l.vault.opens(t, l.keyring, kind)
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
			plantKey(t, d, id, keyring.InlineKEK())
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLife(t)
			l.start()
			if err := l.seal(); err != nil {
				t.Fatal(err)
			}
			live := len(keyring.Live(l.keyring))
			l.disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if id, ok := nks.ParseFileName(op.Name); ok && op.Kind == "open" && keyring.Ring(l.fsm).Key(id) == nil && l.disk.Bytes(op.Name) != nil {
					plant(t, l.disk, id)
				}
				return keyringtest.Fault{}
			})
			if err := l.rotate(); err == nil || !strings.Contains(err.Error(), "read back") {
				t.Errorf("%s: rotate: %v", what, err)
			}
			if l.disk.OnOp(nil); len(l.keyring.Keys()) != 1 || len(keyring.Live(l.keyring)) != live {
				t.Errorf("%s: %d keys, %d secrets in memory", what, len(l.keyring.Keys()), len(keyring.Live(l.keyring)))
			}
			if err := errors.Join(l.seal(), l.rotate(), l.seal()); err != nil {
				t.Errorf("%s: afterwards: %v", what, err)
			}
			l.stop(t)
			l.start()
			l.vault.opens(t, l.keyring, what)
		})
	}
}
