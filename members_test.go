package keyring_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// TestCheckMembersWantsAMajorityOfTheNewVoters asks about changes that are safe and ones that
// would leave a key to too few.
func TestCheckMembersWantsAMajorityOfTheNewVoters(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, keyringtest.Options{Servers: 3})
		leader := ready(t, c)
		whole(t, c)
		heal := refuse(c, "fetch")
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
		whole(t, c)
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
		c := newCluster(t, keyringtest.Options{Servers: 3})
		leader := ready(t, c)
		due := time.Now().Add(20 * time.Second)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: due})
		if err != nil {
			t.Fatal(err)
		}
		whole(t, c)
		other := follower(c)
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
		if got := state(leader, key.ID); got != keyring.StateActive {
			t.Errorf("the key is %s a minute after it was due", got)
		}
	})
}

// suffrage is how the others' raft configuration has a server: nothing if it is not in it.
func suffrage(t *testing.T, k *keyring.Keyring, id raft.ServerID) string {
	t.Helper()
	st, err := k.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range st.Servers {
		if s.ID == id {
			return s.Suffrage.String()
		}
	}
	return ""
}

// TestWipedNodeVotesOnlyOnceItHoldsEveryKey brings a wiped server back that can't write keys:
// it must stay a non-voter. When it can, it becomes a voter.
func TestWipedNodeVotesOnlyOnceItHoldsEveryKey(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	leader := c.Nodes["s1"].Leader()
	keyringtest.AwaitHolders(c.Nodes[leader].Keyring(), c.Nodes[leader].Keyring().Keys()[0].ID, 3)
	wiped := raft.ServerID("s1")
	if leader == wiped {
		wiped = "s2"
	}
	if err := c.Nodes[wiped].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.Nodes, wiped)
	c.Dirs[wiped] = t.TempDir()
	broken := newKMS("kms")
	broken.Set(func(k *kms) { k.Err = errors.New("away") })
	cfg := c.Config(wiped)
	cfg.Peers, cfg.KEKs = c.Addrs, []keyring.KEK{keyring.InlineKEK(), broken}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes[wiped] = n
	k := c.Nodes[leader].Keyring()
	until := func(want string) {
		t.Helper()
		for {
			changed := k.Changed()
			if got := suffrage(t, k, wiped); got == want {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("the wiped server is %q, want %q", suffrage(t, k, wiped), want)
			}
		}
	}
	until("Nonvoter")
	for range 3 { // rotations go on without it
		if _, err := c.Nodes[leader].Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := suffrage(t, k, wiped); got != "Nonvoter" {
			t.Fatalf("a server that holds nothing is %s", got)
		}
	}
	broken.Set(func(k *kms) { k.Err = nil })
	until("Voter")
	for _, key := range k.Keys() {
		if len(key.Holders) != 3 {
			t.Errorf("key %s is held by %v", key.ID, key.Holders)
		}
	}
}

// TestNodeJoinsByAddress adds a fourth server that knows nothing but an address.
func TestNodeJoinsByAddress(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	sealed, err := c.Nodes["s1"].Encrypt(ctx, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ln := keyringtest.Listen(t)
	c.Addrs["s4"], c.Dirs["s4"] = ln.Addr().String(), t.TempDir()
	cfg := c.Config("s4")
	cfg.Listener, cfg.Join = ln, []string{"s1@127.0.0.1:1", "s2@" + c.Addrs["s2"]}
	if err := c.Nodes["s1"].AddServer(ctx, "s4", cfg.Addr); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	c.Ready(ctx)
	for suffrage(t, n.Keyring(), "s4") != "Voter" {
		changed := n.Keyring().Changed()
		if suffrage(t, n.Keyring(), "s4") == "Voter" {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("never became a voter")
		}
	}
	if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	// A second server under a living one's name is refused, and takes nobody's place.
	twin := c.Config("s4")
	twin.Dir, twin.Join = t.TempDir(), []string{"s1@" + c.Addrs["s1"]}
	twin.Listener = keyringtest.Listen(t)
	twin.Addr = twin.Listener.Addr().String()
	short, stop := context.WithTimeout(ctx, 2*time.Second)
	defer stop()
	if second, err := node.Start(short, twin); err == nil {
		second.Close()
		t.Error("a second s4 was taken in")
	}
	if got := suffrage(t, n.Keyring(), "s4"); got != "Voter" {
		t.Errorf("s4 is %s after its twin has asked", got)
	}
}

// TestClosedNodeSaysSo: what waits for a leader does not wait for one on a closed node.
func TestClosedNodeSaysSo(t *testing.T) {
	n, err := node.Start(t.Context(), node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Rotate(context.Background(), keyring.RotateOptions{}); !errors.Is(err, keyring.ErrClosed) {
		t.Errorf("Rotate: %v", err)
	}
	if _, err := n.Encrypt(context.Background(), nil, nil); !errors.Is(err, keyring.ErrClosed) {
		t.Errorf("Encrypt: %v", err)
	}
}

// TestOneFailedWrapBlocksNoRotation lets the only KEK fail once: it answers again at once, and
// a caller's own deadline is no fault of the KEK's.
func TestOneFailedWrapBlocksNoRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		only := newKMS("only")
		c := newCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.KEKs = []keyring.KEK{only}
		}})
		s := ready(t, c)
		only.Set(func(k *kms) { k.NoWrap = errors.New("throttled") })
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err == nil {
			t.Error("rotated under a KEK that does not wrap")
		}
		only.Set(func(k *kms) { k.NoWrap = nil })
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("rotate with the KEK back: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		only.Set(func(k *kms) { k.Hang = true })
		if _, err := s.Keyring.Rotate(ctx, keyring.RotateOptions{}); err == nil {
			t.Error("rotated with a KEK that hangs")
		}
		only.Set(func(k *kms) { k.Hang = false })
		if p := problems(t, s, keyring.ProblemKEKAway); len(p) > 0 {
			t.Errorf("the caller's deadline is blamed on the KEK: %v", p)
		}
		if err := s.Keyring.WaitReady(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
