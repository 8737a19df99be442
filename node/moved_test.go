package node_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// TestACallToALeaderEndsWithItsTerm as far as it tells where a server is.
func TestACallToALeaderEndsWithItsTerm(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	leader := c.Nodes["s1"].Leader()
	for id, n := range c.Nodes {
		if id == leader {
			continue
		}
		call, end := context.WithCancel(ctx)
		defer end()
		watched := make(chan struct{})
		go func() {
			node.WhileLeads(call, n, leader, end)
			close(watched)
		}()
		if err := c.Nodes[leader].Close(); err != nil {
			t.Fatal(err)
		}
		delete(c.Nodes, leader)
		<-watched
		if call.Err() == nil || ctx.Err() != nil {
			t.Errorf("%v, %v: the call goes on", call.Err(), ctx.Err())
		}
		return
	}
}

// TestNodeThatHasMovedIsFound: one server after the other comes back under another address, the leader
// first, and nobody but itself is told.
func TestNodeThatHasMovedIsFound(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	order := []raft.ServerID{c.Nodes["s1"].Leader()}
	for id := range c.Nodes {
		if id != order[0] {
			order = append(order, id)
		}
	}
	for _, id := range order {
		if err := c.Nodes[id].Close(); err != nil {
			t.Fatal(err)
		}
		delete(c.Nodes, id)
		c.Move(ctx, id)
		// Activated with two holders, and then with all: the others reach it, and it them.
		key, err := c.Nodes[id].Rotate(ctx, keyring.RotateOptions{})
		if err != nil {
			t.Fatalf("%s, moved: %v", id, err)
		}
		for _, n := range c.Nodes {
			keyringtest.AwaitHolders(n.Keyring(), key.ID, 3)
			c.AwaitAddress(ctx, n, id)
		}
	}
}

// TestServersThatHaveMovedAreElectorsOfOneThatHasNot: most have moved, and the only one that can be elected,
// for it alone has the whole log, does not know where to. They tell it.
func TestServersThatHaveMovedAreElectorsOfOneThatHasNot(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.App = keyringtest.NullFSM{} })
	c.Ready(ctx)
	leader := c.Nodes["s1"].Leader()
	var others []raft.ServerID
	for id := range c.Nodes {
		if id != leader {
			others = append(others, id)
		}
	}
	// The leader's log goes on for a moment after the last of the others has ended.
	n := c.Nodes[leader]
	var load sync.WaitGroup
	load.Go(func() {
		for n.Leader() == leader {
			soon, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			n.Apply(soon, []byte("more"))
			cancel()
		}
	})
	for _, id := range others {
		if err := c.Nodes[id].Close(); err != nil {
			t.Fatal(err)
		}
		delete(c.Nodes, id)
	}
	load.Wait()
	for _, id := range others {
		c.Move(ctx, id)
	}
	for _, id := range others {
		c.AwaitAddress(ctx, n, id)
	}
}
