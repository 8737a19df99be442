package keyring_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestNodeThatHasMovedIsFound: one server after the other comes back under another address, the leader
// first, and nobody but itself is told.
func TestNodeThatHasMovedIsFound(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := startNodes(t, 3, nil)
	c.ready(ctx)
	order := []raft.ServerID{c.nodes["s1"].Leader()}
	for id := range c.nodes {
		if id != order[0] {
			order = append(order, id)
		}
	}
	for _, id := range order {
		if err := c.nodes[id].Close(); err != nil {
			t.Fatal(err)
		}
		delete(c.nodes, id)
		c.move(ctx, id)
		// Activated with two holders, and then with all: the others reach it, and it them.
		key, err := c.nodes[id].Rotate(ctx, keyring.RotateOptions{})
		if err != nil {
			t.Fatalf("%s, moved: %v", id, err)
		}
		for _, n := range c.nodes {
			keyring.AwaitHolders(n.Keyring(), key.ID, 3)
			c.awaitAddress(ctx, n, id)
		}
	}
}

// says reports whether the raft configuration has that server.
func says(tb testing.TB, k *keyring.Keyring, want raft.Server) bool {
	tb.Helper()
	st, err := k.Status(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return slices.Contains(st.Servers, want)
}

// TestServersThatHaveMovedAreElectorsOfOneThatHasNot: most have moved, and the only one that can be elected,
// for it alone has the whole log, does not know where to. They tell it.
func TestServersThatHaveMovedAreElectorsOfOneThatHasNot(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := startNodes(t, 3, func(cfg *keyring.NodeConfig) { cfg.App = nullFSM{} })
	c.ready(ctx)
	leader := c.nodes["s1"].Leader()
	var others []raft.ServerID
	for id := range c.nodes {
		if id != leader {
			others = append(others, id)
		}
	}
	// The leader's log goes on for a moment after the last of the others has ended.
	n := c.nodes[leader]
	var load sync.WaitGroup
	load.Go(func() {
		for n.Leader() == leader {
			soon, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			n.Apply(soon, []byte("more"))
			cancel()
		}
	})
	for _, id := range others {
		if err := c.nodes[id].Close(); err != nil {
			t.Fatal(err)
		}
		delete(c.nodes, id)
	}
	load.Wait()
	for _, id := range others {
		c.move(ctx, id)
	}
	for _, id := range others {
		c.awaitAddress(ctx, n, id)
	}
}

// TestCallsFindAMemberWhereItSaysThatItIs, although the configuration says something else: until a leader
// has written it down, nobody else would find it.
func TestCallsFindAMemberWhereItSaysThatItIs(t *testing.T) {
	t.Parallel()
	ctx, c, _ := founded3(t)
	leader := c.nodes["s1"].Leader()
	id := besides(leader)
	if err := c.nodes[id].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.nodes, id)
	called := make(chan string, 100)
	at, stop := c.mute(id, called)
	defer stop()
	keyring.SaysItIsAt(c.nodes[leader], id, at)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	go keyring.CallPeer(ctx, c.nodes[leader], id)
	select {
	case <-called:
	case <-ctx.Done():
		t.Error("it is called nowhere but at its old address")
	}
}

// TestCallsFindAMemberWhereItIsInSpiteOfWhatItSaid: it has gone back to where the configuration has it.
func TestCallsFindAMemberWhereItIsInSpiteOfWhatItSaid(t *testing.T) {
	t.Parallel()
	ctx, c, _ := founded3(t)
	leader := c.nodes["s1"].Leader()
	id := besides(leader)
	keyring.SaysItIsAt(c.nodes[leader], id, "127.0.0.1:1")
	if err := keyring.CallPeer(ctx, c.nodes[leader], id); err != nil {
		t.Error(err)
	}
}

// TestACallToALeaderEndsWithItsTerm as far as it tells where a server is.
func TestACallToALeaderEndsWithItsTerm(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := startNodes(t, 3, nil)
	c.ready(ctx)
	leader := c.nodes["s1"].Leader()
	for id, n := range c.nodes {
		if id == leader {
			continue
		}
		call, end := context.WithCancel(ctx)
		defer end()
		watched := make(chan struct{})
		go func() {
			keyring.WhileLeads(call, n, leader, end)
			close(watched)
		}()
		if err := c.nodes[leader].Close(); err != nil {
			t.Fatal(err)
		}
		delete(c.nodes, leader)
		<-watched
		if call.Err() == nil || ctx.Err() != nil {
			t.Errorf("%v, %v: the call goes on", call.Err(), ctx.Err())
		}
		return
	}
}

// move starts a node that was closed, under another address.
func (c *nodes) move(ctx context.Context, id raft.ServerID) {
	c.tb.Helper()
	ln := keyringtest.Listen(c.tb)
	c.addrs[id] = ln.Addr().String()
	cfg := c.config(id)
	cfg.Listener = ln
	n, err := keyring.Start(ctx, cfg)
	if err != nil {
		c.tb.Fatal(err)
	}
	c.nodes[id] = n
}

// awaitAddress waits until the configuration that a node has says where another is.
func (c *nodes) awaitAddress(ctx context.Context, n *keyring.Node, id raft.ServerID) {
	c.tb.Helper()
	for {
		changed := n.Keyring().Changed()
		if says(c.tb, n.Keyring(), raft.Server{ID: id, Address: raft.ServerAddress(c.addrs[id])}) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.tb.Fatalf("%s has moved to %s, and the configuration never says so", id, c.addrs[id])
		}
	}
}
