package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/go-hclog"
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
		rc.Store("a", 8) // seals it again
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
		var log keyringtest.Log
		rc := keyringtest.NewRecordsCluster(t, 1, false, func(cfg *keyring.Config) {
			cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &log})
		})
		rc.Store("r", 37)
		old := rc.Active()
		rc.Rotate(keyring.RotateOptions{})
		if err := rc.Leader().Keyring.Remove(t.Context(), old, keyring.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		if text := string(log.Bytes()); !strings.Contains(text, "records=37") {
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
			retired := keyringtest.Ring(rc.Leader().FSM).Key(meta.KeyID(old)).Retired
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
