package keyring_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestNodeThatHasMovedIsFound: one server after the other comes back under another address, the leader
// first, and nobody but itself is told.
func TestNodeThatHasMovedIsFound(t *testing.T) {
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
		ln := keyringtest.Listen(t)
		c.addrs[id] = ln.Addr().String()
		cfg := c.config(id)
		cfg.Listener = ln
		n, err := keyring.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes[id] = n
		// Activated with two holders, and then with all: the others reach it, and it them.
		key, err := n.Rotate(ctx, keyring.RotateOptions{})
		if err != nil {
			t.Fatalf("%s, moved: %v", id, err)
		}
		for _, n := range c.nodes {
			keyring.AwaitHolders(n.Keyring(), key.ID, 3)
			for !says(t, n.Keyring(), raft.Server{ID: id, Address: raft.ServerAddress(c.addrs[id])}) {
				changed := n.Keyring().Changed()
				if says(t, n.Keyring(), raft.Server{ID: id, Address: raft.ServerAddress(c.addrs[id])}) {
					break
				}
				select {
				case <-changed:
				case <-ctx.Done():
					t.Fatalf("%s has moved to %s, and the configuration never says so", id, c.addrs[id])
				}
			}
		}
	}
}

// says reports whether the raft configuration has that server.
func says(t *testing.T, k *keyring.Keyring, want raft.Server) bool {
	t.Helper()
	st, err := k.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(st.Servers, want)
}
