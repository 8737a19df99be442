package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestFullRotationMovesEverything: each record once, and it opens on every server all the time.
func TestFullRotationMovesEverything(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, nil)
		var old []keyring.KeyID
		const each = 700
		for i := range 3 {
			old = append(old, rc.Active())
			rc.Store(fmt.Sprint(i), each)
			rc.Rotate(keyring.RotateOptions{Full: i == 2})
		}
		for _, id := range old {
			for rc.State(id) != keyring.StateDeprecated {
				rc.Check("while it moves")
				time.Sleep(100 * time.Millisecond) // virtual
			}
			if n := rc.Under(id); n != 0 {
				t.Errorf("%d records are under a key that is deprecated", n)
			}
		}
		moved := 0
		for _, s := range rc.Servers {
			moved += rc.DataOf(s).Moved()
		}
		if rc.Check("moved"); rc.Under(rc.Active()) != 3*each || moved != 3*each {
			t.Errorf("%d records of %d under the new key, after %d moves", rc.Under(rc.Active()), 3*each, moved)
		}
	})
}

// TestLongRecordsDoNotMakeABatchTooLong: what a host makes of a batch fits a command, unless one
// record alone does not.
func TestLongRecordsDoNotMakeABatchTooLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, false, nil)
		const overhead = 100
		sizes := []int{1<<20 - overhead, 1 << 20, 10, 3 << 20, 3 << 20, 10, 400 << 10, 400 << 10, 400 << 10, 10, 1<<20 - overhead, 2 << 20}
		for i, n := range sizes {
			if err := rc.StoreOne(fmt.Sprintf("r/%02d", i), strings.Repeat("x", n)); err != nil {
				t.Fatal(err)
			}
		}
		old := rc.Active()
		rc.Rotate(keyring.RotateOptions{Full: true})
		rc.Await(old, keyring.StateDeprecated)
		if rc.Check("moved"); rc.Under(rc.Active()) != len(sizes) {
			t.Errorf("%d records of %d under the new key", rc.Under(rc.Active()), len(sizes))
		}
	})
}

// TestI5NothingIsStoredUnderAKeyAfterItsLastScan: a writer that sealed before the rotation comes
// after the clean scan. The fence refuses it and it seals again; without the fence its record is
// lost with the key, which shows that this test can see that.
func TestI5NothingIsStoredUnderAKeyAfterItsLastScan(t *testing.T) {
	t.Parallel()
	for _, noFence := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			rc := keyringtest.NewRecordsCluster(t, 3, noFence, nil)
			rc.Store("early", 10)
			old, leader := rc.Active(), rc.Leader()
			late := func(ctx context.Context, store func() error) error {
				first := true
				return leader.Keyring.EncryptTo(ctx, []byte("late"), []byte("late"), func(_ context.Context, c []byte) error {
					if first {
						first = false
						if err := store(); err != nil {
							return err
						}
					}
					errs, err := keyringtest.PutRecords(leader.Raft, keyringtest.RecordPut{Ref: "late", New: c})
					return errors.Join(append(errs, err)...)
				})
			}
			err := late(t.Context(), func() error {
				rc.Rotate(keyring.RotateOptions{Full: true})
				rc.Await(old, keyring.StateDeprecated)
				return leader.Keyring.Remove(t.Context(), old, keyring.RemoveOptions{})
			})
			if err != nil {
				t.Fatal(err)
			}
			keyringtest.AwaitRing(t, rc.Cluster)
			got, err := leader.Keyring.Decrypt(leader.App.(*keyringtest.Records).Copy()["late"], []byte("late"))
			if lost := err != nil; lost != noFence {
				t.Errorf("without the fence: %t; the late record: %q, %v", noFence, got, err)
			}
			rc.Check("after it all")
		})
	}
}

// TestRekeyGoesOnWithTheNextLeader, however often that changes.
func TestRekeyGoesOnWithTheNextLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, nil)
		rc.Store("r", 3000)
		old := rc.Active()
		const changes = 4
		var batches atomic.Int64
		for _, s := range rc.Servers {
			d := rc.DataOf(s)
			d.Note(func() {
				d.Replacing = func() error {
					if n := batches.Add(1); n%2 == 0 && n <= 2*changes {
						return s.Raft.LeadershipTransfer().Error()
					}
					return nil
				}
			})
		}
		rc.Rotate(keyring.RotateOptions{Full: true})
		rc.Await(old, keyring.StateDeprecated)
		moved := 0
		for _, s := range rc.Servers {
			moved += rc.DataOf(s).Moved()
		}
		if moved < 3000 || moved > 3000*105/100 {
			t.Errorf("%d moves of 3000 records", moved)
		}
		if rc.Check("moved"); batches.Load() < 2*changes || rc.Under(old) != 0 {
			t.Errorf("%d batches, %d records left", batches.Load(), rc.Under(old))
		}
	})
}

// TestPoisonedRecordKeepsOnlyItsOwnKey in rekeying, and is named until it is replaced.
func TestPoisonedRecordKeepsOnlyItsOwnKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, nil)
		rc.Store("a", 500)
		first := rc.Active()
		rc.Spoil("a/7")
		second := rc.Rotate(keyring.RotateOptions{})
		rc.Store("b", 500)
		rc.Rotate(keyring.RotateOptions{Full: true})
		rc.Await(second, keyring.StateDeprecated)
		time.Sleep(10 * time.Minute) // virtual
		if rc.State(first) != keyring.StateRekeying || rc.Under(first) != 1 {
			t.Errorf("%s with %d records", rc.State(first), rc.Under(first))
		}
		st, err := rc.Leader().Keyring.Status(t.Context())
		if err != nil || len(st.Rekeying) != 1 || st.Rekeying[0].Poisoned != 1 || st.Rekeying[0].Moved != 499 || st.Rekeying[0].PoisonedRefs[0] != "a/7" ||
			st.Rekeying[0].Left != 1 || !strings.Contains(fmt.Sprint(st.Problems), "a/7") {
			t.Errorf("%+v, %v, %v", st.Rekeying, st.Problems, err)
		}
		rc.Store("a", 8) // writes it anew
		rc.Await(first, keyring.StateDeprecated)
		rc.Check("replaced")
	})
}

// TestWritersAndRekeyDoNotUndoEachOther: a record that is written while its batch is on the way is a
// conflict, and keeps what was written.
func TestWritersAndRekeyDoNotUndoEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, false, nil)
		rc.Store("r", 1000)
		old, leader := rc.Active(), rc.Leader()
		var writes atomic.Int64
		d := rc.DataOf(leader)
		d.Note(func() {
			d.Replacing = func() error { // under the nose of the batch that is on its way
				ref := fmt.Sprintf("r/%d", 100*writes.Add(1))
				c, err := leader.Keyring.Encrypt([]byte("newer"), []byte(ref))
				if err != nil {
					return err
				}
				errs, err := keyringtest.PutRecords(leader.Raft, keyringtest.RecordPut{Ref: ref, New: c})
				return errors.Join(append(errs, err)...)
			}
		})
		rc.Rotate(keyring.RotateOptions{Full: true})
		rc.Await(old, keyring.StateDeprecated)
		for i := range writes.Load() {
			rc.Written[fmt.Sprintf("r/%d", 100*(i+1))] = "newer"
		}
		if rc.Check("moved"); writes.Load() == 0 || rc.Under(old) != 0 {
			t.Errorf("%d writes, %d left", writes.Load(), rc.Under(old))
		}
	})
}

// TestRemoveMovesTheDataFirst, and goes on without its caller, under another leader.
func TestRemoveMovesTheDataFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, nil)
		rc.Store("r", 600)
		first := rc.Active()
		second := rc.Rotate(keyring.RotateOptions{})
		rc.Store("s", 600)
		rc.Rotate(keyring.RotateOptions{})
		if err := rc.Leader().Keyring.Remove(t.Context(), first, keyring.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		if rc.State(first) != "removed" || rc.State(second) != keyring.StateInactive {
			t.Errorf("%s, %s", rc.State(first), rc.State(second))
		}
		rc.Check("removed")

		leader := rc.Leader()
		d := rc.DataOf(leader)
		d.Note(func() { d.Replacing = func() error { return errors.New("not now") } })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := leader.Keyring.Remove(ctx, second, keyring.RemoveOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the data can't be moved: %v", err)
		}
		if st, err := leader.Keyring.Status(t.Context()); err != nil || !strings.Contains(fmt.Sprint(st.Problems), "not now") {
			t.Errorf("%v, %v", st.Problems, err)
		}
		rc.Stop(leader)
		rc.Await(second, "removed")
		rc.Check("under the next leader")
	})
}

// TestForceSaysWhatIsLost in the log.
func TestForceSaysWhatIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log lockedBuffer
		rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) {
			cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &log})
		})
		rc.Store("r", 37)
		old := rc.Active()
		rc.Rotate(keyring.RotateOptions{})
		if err := rc.Leader().Keyring.Remove(t.Context(), old, keyring.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		if text := string(log.bytes()); !strings.Contains(text, "records=37") {
			t.Errorf("log: %s", text)
		}
	})
}

// TestRetentionRemovesWhatIsNotNeeded: a key goes by itself when it has been retired for as long as
// the policy says, never while its tokens live, and its data stays.
func TestRetentionRemovesWhatIsNotNeeded(t *testing.T) {
	t.Parallel()
	for _, retain := range []time.Duration{time.Hour, 20 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			rc := keyringtest.NewRecordsClusterAt(t, time.Hour, 3, false, func(cfg *keyring.Config) { cfg.Rotation.Retain = retain })
			rc.Store("r", 300)
			old := rc.Active()
			rc.Rotate(keyring.RotateOptions{})
			retired := keyring.Ring(rc.Leader().FSM).Key(old).Retired
			time.Sleep(time.Until(retired.Add(max(retain, 24*time.Hour+time.Minute) - time.Hour))) // virtual
			if rc.State(old) != keyring.StateInactive {
				t.Errorf("%s too early", rc.State(old))
			}
			time.Sleep(12 * time.Hour) // virtual
			if rc.State(old) != "removed" {
				t.Errorf("%s when the time is over", rc.State(old))
			}
			rc.Check("removed")
		})
	}
}

// TestRestoredSnapshotIsNotTakenForScanned: it brings records back under a key when the scan that
// found none has just ended.
func TestRestoredSnapshotIsNotTakenForScanned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, nil)
		rc.Store("r", 400)
		old, leader := rc.Active(), rc.Leader()
		d := rc.DataOf(leader)
		var hold atomic.Bool
		hold.Store(true)
		d.Note(func() {
			d.Replacing = func() error {
				if hold.Load() {
					return errors.New("not yet")
				}
				return nil
			}
		})
		rc.Rotate(keyring.RotateOptions{Full: true})
		time.Sleep(time.Second)                        // virtual
		restore := keyringtest.TakeSnapshot(t, leader) // with everything under the old key, which is rekeying
		restored := make(chan struct{}, 1)             // once
		d.Note(func() {
			hold.Store(false)
			d.Scanned = func() {
				if rc.Under(old) > 0 || len(restored) > 0 {
					return
				}
				restored <- struct{}{}
				restore(leader)
			}
		})
		for len(restored) == 0 || rc.State(old) != keyring.StateDeprecated {
			if rc.State(old) == keyring.StateDeprecated && rc.Under(old) > 0 {
				t.Fatal("deprecated with records under it")
			}
			time.Sleep(10 * time.Millisecond) // virtual
		}
		if n := rc.Under(old); n > 0 {
			t.Errorf("deprecated with %d records under it", n)
		}
		rc.Check("moved once more")
	})
}

// TestRekeyGraceWaitsForWritersWithoutAFence.
func TestRekeyGraceWaitsForWritersWithoutAFence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, true, func(cfg *keyring.Config) { cfg.RekeyGrace = time.Hour })
		rc.Store("r", 10)
		old, leader := rc.Active(), rc.Leader()
		late, err := leader.Keyring.Encrypt([]byte("late"), []byte("late"))
		if err != nil {
			t.Fatal(err)
		}
		rc.Rotate(keyring.RotateOptions{Full: true})
		time.Sleep(59 * time.Minute) // virtual
		if rc.State(old) != keyring.StateRekeying || rc.Under(old) > 0 {
			t.Errorf("%s with %d records", rc.State(old), rc.Under(old))
		}
		if _, err := keyringtest.PutRecords(leader.Raft, keyringtest.RecordPut{Ref: "late", New: late}); err != nil {
			t.Fatal(err)
		}
		rc.Written["late"] = "late"
		rc.Await(old, keyring.StateDeprecated)
		if rc.Check("moved"); rc.Under(old) > 0 {
			t.Errorf("deprecated with %d records", rc.Under(old))
		}
	})
}

// TestRekeyRateIsKept.
func TestRekeyRateIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) { cfg.RekeyRate = 100 })
		rc.Store("r", 1000)
		old := rc.Active()
		rc.Rotate(keyring.RotateOptions{Full: true})
		began := time.Now()
		rc.Await(old, keyring.StateDeprecated)
		if d := time.Since(began); d < 9*time.Second || d > 12*time.Second {
			t.Errorf("1000 records at 100 a second took %v", d)
		}
	})
}

// odd is SealedData that does not do what it should.
type odd struct {
	*keyringtest.RecordsData
	under   func(keyring.KeyID) iter.Seq2[keyring.Sealed, error]
	replace func() (int, error)
}

func (o odd) Under(ctx context.Context, id keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	if o.under != nil {
		return o.under(id)
	}
	return o.RecordsData.Under(ctx, id)
}

func (o odd) Replace(ctx context.Context, batch []keyring.Replacement) (int, error) {
	if o.replace != nil {
		return o.replace()
	}
	return o.RecordsData.Replace(ctx, batch)
}

// TestKeyStaysWhileItsDataCannotBeTold: an error in the middle of a scan is no clean scan, and a
// Replace that has no effect is reported and not repeated for ever.
func TestKeyStaysWhileItsDataCannotBeTold(t *testing.T) {
	t.Parallel()
	broken := errors.New("index is broken")
	var replaced atomic.Int64
	for what, o := range map[string]odd{
		"index is broken": {under: func(keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
			return func(yield func(keyring.Sealed, error) bool) { yield(keyring.Sealed{}, broken) }
		}},
		"as it was after Replace": {replace: func() (int, error) { replaced.Add(1); return 0, nil }},
	} {
		synctest.Test(t, func(t *testing.T) {
			rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) {
				o.RecordsData = cfg.Data.(*keyringtest.RecordsData)
				cfg.Data = o
			})
			rc.Store("r", 10)
			old := rc.Active()
			rc.Rotate(keyring.RotateOptions{Full: true})
			time.Sleep(time.Hour) // virtual
			if rc.State(old) != keyring.StateRekeying {
				t.Errorf("%s: %s", what, rc.State(old))
			}
			if st, err := rc.Leader().Keyring.Status(t.Context()); err != nil || !strings.Contains(fmt.Sprint(st.Problems), what) {
				t.Errorf("%v, %v", st.Problems, err)
			}
		})
	}
	if n := replaced.Load(); n == 0 || n > 200 {
		t.Errorf("Replace without effect was called %d times in an hour", n)
	}
}

// TestMovesThatOthersAreQuickerWithAreFewer: each is an entry of raft's log, whatever the host says of it.
func TestMovesThatOthersAreQuickerWithAreFewer(t *testing.T) {
	t.Parallel()
	for name, conflicts := range map[string]int{"all of them": 10, "some of them": 1} {
		var replaced atomic.Int64
		synctest.Test(t, func(t *testing.T) {
			rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) {
				cfg.Data = odd{RecordsData: cfg.Data.(*keyringtest.RecordsData), replace: func() (int, error) {
					replaced.Add(1)
					return conflicts, nil
				}}
			})
			rc.Store("r", 10)
			rc.Rotate(keyring.RotateOptions{Full: true})
			time.Sleep(time.Hour) // virtual
		})
		if n := replaced.Load(); n < 10 || n > 200 {
			t.Errorf("%s: Replace was called %d times in an hour", name, n)
		}
	}
}

// nomadData is records of Nomad's in a database.
type nomadData struct {
	mu  sync.Mutex // guards below
	all map[string]keyring.Sealed
}

func (d *nomadData) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		d.mu.Lock()
		all := slices.Collect(maps.Values(d.all))
		d.mu.Unlock()
		for _, s := range all {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func (d *nomadData) Replace(_ context.Context, batch []keyring.Replacement) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range batch {
		d.all[r.Ref] = keyring.Sealed{Ref: r.Ref, Ciphertext: r.New, AAD: r.AAD}
	}
	return 0, nil
}

// TestWhatNomadSealedIsMovedToo: an adopted key does not go while its data is Nomad's.
func TestWhatNomadSealedIsMovedToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk, keys, _ := nomadKeystore(t)
		k := keys[0]
		data := &nomadData{all: map[string]keyring.Sealed{}}
		for i := range 300 {
			ref := fmt.Sprint("var/", i)
			data.all[ref] = keyring.Sealed{Ref: ref, Ciphertext: k.Seal(ref), AAD: []byte(ref), Nomad: true}
		}
		c := keyringtest.NewCluster(t, keyringtest.Options{
			Disk:      func(raft.ServerID) *keyringtest.Disk { return disk },
			Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Data = data },
		})
		leader := keyringtest.Ready(t, c)
		if err := leader.Keyring.Remove(t.Context(), k.ID, keyring.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		for ref, s := range data.all {
			if got, err := leader.Keyring.Decrypt(s.Ciphertext, []byte(ref)); err != nil || string(got) != ref {
				t.Errorf("%s: %q, %v", ref, got, err)
			}
		}
	})
}

// TestWithoutDataNothingIsProven: no full rotation, no removal of a key that was active; with
// NoData both are, at once.
func TestWithoutDataNothingIsProven(t *testing.T) {
	t.Parallel()
	for _, data := range []keyring.SealedData{nil, keyring.NoData{}} {
		synctest.Test(t, func(t *testing.T) {
			c := keyringtest.NewCluster(t, keyringtest.Options{Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Data = data }})
			leader := keyringtest.Ready(t, c)
			old := keyring.Ring(leader.FSM).Active().ID
			want := error(nil)
			if data == nil {
				want = keyring.ErrNoData
			}
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); !errors.Is(err, want) {
				t.Errorf("full rotation with %T: %v", data, err)
			}
			if data == nil {
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if err := leader.Keyring.Remove(t.Context(), old, keyring.RemoveOptions{}); !errors.Is(err, want) {
				t.Errorf("remove with %T: %v", data, err)
			}
			if removed := keyring.Ring(leader.FSM).WasRemoved(old); removed != (data != nil) {
				t.Errorf("removed with %T: %t", data, removed)
			}
			if keys := keyring.Ring(leader.FSM).Keys; data == nil && (len(keys) != 2 || keys[0].State == meta.StateRekeying) {
				t.Errorf("%d keys", len(keys))
			}
		})
	}
}
