package node_test

import (
	"context"
	"testing"
	"time"

	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
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
