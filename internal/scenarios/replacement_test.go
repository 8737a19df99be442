package scenarios_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestKeysSurviveTheReplacementOfAllServers: three servers become six, and those become the three
// that were not there at first, while keys rotate all the time. Who leaves is gone with its disk.
func TestKeysSurviveTheReplacementOfAllServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, func(cfg *keyring.Config) { cfg.Rotation.Every = 2 * time.Second })
		meanwhile := func() { time.Sleep(10 * time.Second) } // virtual
		for i := range 3 {
			meanwhile()
			rc.Store(fmt.Sprintf("with %d more", i), 20)
			rc.Add(raft.ServerID(fmt.Sprintf("s%d", i+4)))
		}
		for i, s := range slices.Clone(rc.Servers[:3]) {
			meanwhile()
			rc.Store(fmt.Sprintf("with %d less", i), 20)
			leave(rc, s)
		}
		rc.Store("in the end", 20)
		meanwhile()
		keyringtest.AwaitKeys(t, rc.Cluster)
		rc.Check("all servers are others")
		if keys := len(rc.Leader().Keyring.Keys()); keys < 20 {
			t.Errorf("only %d keys", keys)
		}
	})
}

// leave takes a server out of the cluster as the README has it: when CheckMembers says that the
// others can do without it. It may be the leader.
func leave(rc *keyringtest.RecordsCluster, s *keyringtest.Server) {
	rc.TB.Helper()
	var rest []raft.ServerID
	for _, other := range rc.Live() {
		if other != s {
			rest = append(rest, other.ID)
		}
	}
	var err error
	for range 1000 {
		if err = keyringtest.Ready(rc.TB, rc.Cluster).Keyring.CheckMembers(rc.TB.Context(), rest); err == nil {
			break
		}
		time.Sleep(time.Second) // virtual
	}
	if err != nil {
		rc.TB.Fatalf("%s can't leave: %v", s.ID, err)
	}
	rc.Stop(s)
	rc.Remove(s)
	rc.Servers = slices.DeleteFunc(rc.Servers, func(other *keyringtest.Server) bool { return other == s })
}

// TestLeaderThatIsCutOffSealsNoLongerThanItsLease, and what it has sealed until then is refused after
// the next leader's rotation, whoever brings it. Without the fence it is stored under the old key.
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
