package scenarios_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// TestRemoveLooksOnceMoreAtADeprecatedKey: where Apply does not ask Admit, a writer can store under it
// after the last scan.
func TestRemoveLooksOnceMoreAtADeprecatedKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, true, nil)
		rc.Store("early", 10)
		old, k := rc.Active(), rc.Leader().Keyring
		late, err := k.Encrypt([]byte("late"), []byte("late"))
		if err != nil {
			t.Fatal(err)
		}
		rc.Rotate(keyring.RotateOptions{Full: true})
		rc.Await(old, keyring.StateDeprecated)
		errs, err := keyringtest.PutRecords(rc.Leader().Raft, keyringtest.RecordPut{Ref: "late", New: late})
		if err := errors.Join(append(errs, err)...); err != nil {
			t.Fatal(err)
		}
		if err := k.Remove(t.Context(), old, keyring.RemoveOptions{}); err == nil || !strings.Contains(err.Error(), `"late"`) {
			t.Errorf("remove: %v", err)
		}
		time.Sleep(time.Second) // virtual: the others learn of it
		rc.Check("the removal was refused")
		for _, s := range rc.Live() {
			if got, err := s.Keyring.DecryptDeprecated(s.App.(*keyringtest.Records).Copy()["late"], []byte("late")); err != nil || string(got) != "late" {
				t.Errorf("%s: %q, %v", s.ID, got, err)
			}
		}
		if err := rc.StoreOne("late", "again"); err != nil {
			t.Fatal(err)
		}
		if err := k.Remove(t.Context(), old, keyring.RemoveOptions{}); err != nil {
			t.Errorf("once it is overwritten: %v", err)
		}
		rc.Check("removed")
	})
}

// TestEncryptToGivesUpOnAnFSMThatNobodyFeeds: the host asks another one than raft applies to.
func TestEncryptToGivesUpOnAnFSMThatNobodyFeeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, false, nil)
		k := keyringtest.Ready(t, rc.Cluster).Keyring
		other := keyring.NewFSM()
		err := k.EncryptTo(t.Context(), nil, nil, func(_ context.Context, c []byte) error { return other.Admit(c) })
		if !errors.Is(err, keyring.ErrNotReady) {
			t.Errorf("%v, want ErrNotReady", err)
		}
		// One that is always stale, for whatever reason, does not spin, and says so in the end.
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		tries := 0
		err = k.EncryptTo(ctx, nil, nil, func(context.Context, []byte) error { tries++; return keyring.ErrStaleKey })
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, keyring.ErrStaleKey) || tries < 60 || tries > 200 {
			t.Errorf("%d tries in an hour, %v", tries, err)
		}
	})
}

// TestRemovalThatEndsEarlySaysWhatHoldsItUp and is in the key's metadata.
func TestRemovalThatEndsEarlySaysWhatHoldsItUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 1, false, nil)
		rc.Store("r", 3)
		rc.Spoil("r/1")
		old := rc.Active()
		rc.Rotate(keyring.RotateOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		err := rc.Leader().Keyring.Remove(ctx, old, keyring.RemoveOptions{})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, keyring.ErrDecrypt) || !strings.Contains(err.Error(), `"r/1"`) {
			t.Errorf("%v", err)
		}
		if keys := rc.Leader().Keyring.Keys(); !slices.ContainsFunc(keys, func(k keyring.Key) bool { return k.ID == old && k.Removing }) {
			t.Errorf("%+v", keys)
		}
	})
}

// TestGraceIsOverBeforeTheScanThatCounts begins: without a fence, a writer may store under the key behind
// the scan's back while the grace lasts, however long the scan takes.
func TestGraceIsOverBeforeTheScanThatCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const grace = time.Minute
		rc := keyringtest.NewRecordsCluster(t, 1, true, func(cfg *keyring.Config) { cfg.RekeyGrace = grace })
		rc.Store("early", 1)
		leader, old := rc.Leader(), rc.Active()
		late, err := leader.Keyring.Encrypt([]byte("late"), []byte("late"))
		if err != nil {
			t.Fatal(err)
		}
		rc.Written["late"] = "late"
		d := rc.DataOf(leader)
		var stored sync.Once
		d.Note(func() {
			d.Scanned = func() {
				if n, _ := d.Count(t.Context(), old); n > 0 {
					return
				}
				stored.Do(func() {
					errs, err := keyringtest.PutRecords(leader.Raft, keyringtest.RecordPut{Ref: "late", New: late})
					if err := errors.Join(append(errs, err)...); err != nil {
						t.Error(err)
					}
					time.Sleep(2 * grace) // virtual: the scan has yet to end
				})
			}
		})
		rc.Rotate(keyring.RotateOptions{Full: true})
		rc.Await(old, keyring.StateDeprecated)
		if n := rc.Under(old); n > 0 {
			t.Errorf("%d records are under a key that is deprecated", n)
		}
		rc.Check("moved")
	})
}

// TestLeaderThatIsCutOffSealsNoLongerThanItsLease, and what it has sealed until then is refused after
// the next leader's rotation, whichever writer brings it. Without the fence it is stored under the old key.
func TestLeaderThatIsCutOffSealsNoLongerThanItsLease(t *testing.T) {
	t.Parallel()
	for _, noFence := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			rc := keyringtest.NewRecordsCluster(t, 3, noFence, nil)
			old := rc.Leader()
			keyringtest.AwaitKeys(t, rc.Cluster)
			oldKey := rc.Active()
			rc.Partition(old)
			cut := time.Now()
			var last []byte
			for {
				c, err := old.Keyring.Encrypt([]byte("late"), []byte("late"))
				if errors.Is(err, keyring.ErrNotLeader) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				last = c
				time.Sleep(10 * time.Millisecond) // virtual
			}
			if took := time.Since(cut); took > 2*time.Second { // a heartbeat and a lease at this pace
				t.Errorf("it went on for %v", took)
			}
			next := rc.Leader()
			if next == old {
				t.Fatal("it still leads")
			}
			rc.Rotate(keyring.RotateOptions{})
			rc.Partition()
			errs, err := keyringtest.PutRecords(rc.Leader().Raft, keyringtest.RecordPut{Ref: "late", New: last})
			if err := errors.Join(append(errs, err)...); errors.Is(err, keyring.ErrStaleKey) == noFence {
				t.Errorf("without a fence: %t, the late record: %v", noFence, err)
			}
			if n := rc.Under(oldKey); n > 0 != noFence {
				t.Errorf("without a fence: %t, %d records are under the old key", noFence, n)
			}
		})
	}
}

func TestAdmitTakesTheActiveKeysCiphertextsOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		s := keyringtest.Ready(t, c)
		first, err := s.Keyring.Encrypt([]byte("x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.FSM.Admit(first); err != nil {
			t.Errorf("under the active key: %v", err)
		}
		pre, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.FSM.Admit(keyringtest.Naming(first, pre.ID)); !errors.Is(err, keyring.ErrStaleKey) {
			t.Errorf("under a prepublished key: %v", err)
		}
		if err := s.FSM.Admit(first); err != nil {
			t.Errorf("under the active key, with another prepublished: %v", err)
		}
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		second, err := s.Keyring.Encrypt(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.FSM.Admit(second); err != nil {
			t.Errorf("of an empty plaintext: %v", err)
		}
		for name, b := range map[string][]byte{
			"an inactive key": first,
			"an unknown key":  keyringtest.Naming(first, keyring.KeyID{1}),
			"the zero ID":     keyringtest.Naming(first, keyring.KeyID{}),
			"an inactive key, with a body that is not its": append(first[:17:17], make([]byte, 100)...),
		} {
			if err := s.FSM.Admit(b); !errors.Is(err, keyring.ErrStaleKey) {
				t.Errorf("under %s: %v", name, err)
			}
		}
		for name, b := range map[string][]byte{
			"nil": nil, "empty": {}, "text": []byte("hello"), "cut short": second[:keyring.Overhead-1],
			"zeros": make([]byte, 100), "another version": append([]byte{2}, second[1:]...),
		} {
			if err := s.FSM.Admit(b); !errors.Is(err, keyring.ErrDecrypt) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := keyring.NewFSM().Admit(second); !errors.Is(err, keyring.ErrNotReady) || errors.Is(err, keyring.ErrStaleKey) {
			t.Errorf("before the first key: %v", err)
		}
	})
}
