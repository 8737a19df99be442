package keyring_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestCheckMembersWantsAMajorityOfTheNewVoters asks about changes that are safe and ones that
// would leave a key to too few.
func TestCheckMembersWantsAMajorityOfTheNewVoters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		heal := keyringtest.Refuse(c, "fetch")
		fresh := c.Add("s4")
		time.Sleep(time.Minute) // virtual
		check := func(want bool, voters ...raft.ServerID) {
			t.Helper()
			err := leader.Keyring.CheckMembers(t.Context(), voters)
			if safe := err == nil; safe != want || err != nil && !errors.Is(err, keyring.ErrNotDurable) {
				t.Errorf("%v: %v, want safe %v", voters, err, want)
			}
		}
		check(true, "s1", "s2", "s3")
		check(true, "s1", "s2", "s4")
		check(false, "s1", "s4")
		check(false, "s4")
		check(false, "s1", "s2", "s4", "nobody")
		heal()
		keyringtest.AwaitKeys(t, c)
		check(true, "s1", "s4")
		check(true, "s4")
		if err := leader.Raft.DemoteVoter("s4", 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		check(true, "s4") // the voters to be are asked, not those that there are
		if err := leader.Keyring.CheckMembers(t.Context(), nil); err == nil {
			t.Error("no voters are safe")
		}
		if err := fresh.Keyring.CheckMembers(t.Context(), []raft.ServerID{"s1"}); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("on a follower: %v", err)
		}
	})
}

// TestFailedTransferDelaysNothing lets a transfer of leadership fail just as a key is due: raft
// refuses the activation, and tells of no change afterwards.
func TestFailedTransferDelaysNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		due := time.Now().Add(20 * time.Second)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: due})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		other := keyringtest.Follower(c)
		c.Partition(other)
		if err := leader.Raft.Barrier(0).Error(); err != nil { // the other one is behind now
			t.Fatal(err)
		}
		time.Sleep(time.Until(due) - 200*time.Millisecond) // virtual
		transfer := leader.Raft.LeadershipTransferToServer(other.ID, raft.ServerAddress(other.ID))
		time.Sleep(time.Minute) // virtual
		if transfer.Error() == nil || c.Leader() != leader {
			t.Fatalf("the transfer has not failed: %v", transfer.Error())
		}
		if got := keyringtest.StateOf(leader, key.ID); got != keyring.StateActive {
			t.Errorf("the key is %s a minute after it was due", got)
		}
	})
}

// TestOneFailedWrapBlocksNoRotation lets the only KEK fail once: it answers again at once, and
// a caller's own deadline is no fault of the KEK's.
func TestOneFailedWrapBlocksNoRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		only := kektest.New("only")
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.KEKs = []keyring.KEK{only}
		}})
		s := keyringtest.Ready(t, c)
		only.Set(func(k *kektest.KMS) { k.NoWrap = errors.New("throttled") })
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err == nil {
			t.Error("rotated under a KEK that does not wrap")
		}
		only.Set(func(k *kektest.KMS) { k.NoWrap = nil })
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("rotate with the KEK back: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		only.Set(func(k *kektest.KMS) { k.Hang = true })
		if _, err := s.Keyring.Rotate(ctx, keyring.RotateOptions{}); err == nil {
			t.Error("rotated with a KEK that hangs")
		}
		only.Set(func(k *kektest.KMS) { k.Hang = false })
		if p := keyringtest.Problems(t, s, keyring.ProblemKEKAway); len(p) > 0 {
			t.Errorf("the caller's deadline is blamed on the KEK: %v", p)
		}
		if err := s.Keyring.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestLeaderWithoutTheActiveKeyHandsOver to a server that holds it, when nobody gives it the key.
func TestLeaderWithoutTheActiveKeyHandsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		active := leader.Keyring.Keys()[0].ID
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if keyringtest.IsFetch(e, leader.ID) {
				return keyringtest.Reply{Err: errors.New("no way")}
			}
			return keyringtest.Reply{}
		})
		if err := keyring.Lose(leader.Keyring, active); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // virtual
		if c.Leader() != leader {
			t.Fatal("it gives up at once")
		}
		time.Sleep(10 * time.Second) // virtual
		next := c.Leader()
		if next == leader {
			t.Fatalf("%s still leads, and can't seal", leader.ID)
		}
		if _, err := next.Keyring.Encrypt([]byte("hello"), nil); err != nil {
			t.Error(err)
		}
		c.OnEvent(nil)
		keyringtest.AwaitKeys(t, c)
	})
}
