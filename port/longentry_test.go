package port_test

import (
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
)

// TestEntryThatIsTooLongGoesWithTheLeader: it reaches no other server. When another leads, and the one that has it is started
// again, all go on.
func TestEntryThatIsTooLongGoesWithTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := startHosts(t, 3)
		old := hs.leader()
		bad := old.raft.Apply(make([]byte, keyring.MaxCommand+1<<20), 0)
		next := old.raft.Apply([]byte("next"), 0)
		time.Sleep(time.Minute) // virtual
		if applied, last := old.raft.AppliedIndex(), old.raft.LastIndex(); applied > last-2 {
			t.Fatalf("%d of %d entries are applied: this is no test", applied, last)
		}

		// As a process that ends does: Keyring.Close would wait 10 seconds for proposals that raft does not answer.
		if err := old.raft.Shutdown().Error(); err != nil {
			t.Error(err)
		}
		hs.stop(old)
		if bad.Error() == nil || next.Error() == nil {
			t.Error("raft says that it has applied them")
		}
		time.Sleep(time.Minute) // virtual: another is elected
		leader := hs.other(old)
		if _, id := leader.raft.LeaderWithID(); id != leader.id {
			leader = hs.all[id]
		}
		if leader == nil || leader == old {
			t.Fatal("no other leads")
		}
		if _, err := leader.keys.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Error(err)
		}
		hs.start(old, false)
		if err := old.keys.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
		if err := leader.raft.Barrier(0).Error(); err != nil {
			t.Error(err)
		}
		for id, h := range hs.all {
			if len(h.keys.Keys()) != 2 {
				t.Errorf("%s has %d keys", id, len(h.keys.Keys()))
			}
		}
	})
}
