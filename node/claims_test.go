package node_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// twice reports whether a status says that there are two servers of one ID, with these words in the detail.
func twice(st keyring.Status, about raft.ServerID, words ...string) bool {
	return slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool {
		for _, w := range words {
			if !strings.Contains(p.Detail, w) {
				return false
			}
		}
		return p.Kind == keyring.ProblemIDTwice && p.Server == about && p.Severity == keyring.SeverityCritical
	})
}

// copied stops s1, copies its directory and starts it again. It returns the configuration of a server on the copy.
func copied(t *testing.T, c *keyringtest.Nodes) node.Config {
	t.Helper()
	closeNode(t, c.Nodes["s1"])
	delete(c.Nodes, "s1")
	cfg := c.Config("s1")
	cfg.Dir = t.TempDir()
	if err := os.CopyFS(cfg.Dir, os.DirFS(c.Dirs["s1"])); err != nil {
		t.Fatal(err)
	}
	cfg.Listener = keyringtest.Listen(t)
	cfg.Addr = cfg.Listener.Addr().String()
	return cfg
}

// startS1 starts a server on that configuration of s1's.
func startS1(t *testing.T, ctx context.Context, c *keyringtest.Nodes, cfg node.Config) *node.Node {
	t.Helper()
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s1"] = n
	return n
}

// TestTwoServersOfOneID: the copy is refused while the server runs, takes its place when it is stopped, and then the server
// is refused. It is the member again when the copy is stopped. The one that is refused and the leader say so.
func TestTwoServersOfOneID(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	var warned atomic.Int32
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		cfg.Logger = whenLogged("changing the address of a member", func() { warned.Add(1) })
		cfg.Logger.SetLevel(hclog.Warn)
	})
	c.Ready(ctx)
	own, copied := c.Config("s1"), copied(t, c)
	start := func(cfg node.Config) *node.Node { return startS1(t, ctx, c, cfg) }
	isMember := func(n *node.Node, addr string) {
		c.Addrs["s1"] = addr
		for _, n := range c.Nodes {
			c.AwaitAddress(ctx, n, "s1")
		}
		c.Await(ctx, n, "in its place", func(st keyring.Status) bool { return st.Leader != "" && st.Leader != "s1" && !twice(st, "") })
		if err := n.Keyring().WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(n *node.Node, at, answers string) {
		c.Await(ctx, n, "told that another server has its ID", func(st keyring.Status) bool {
			return twice(st, "", "this server, at "+at, "answers at "+answers)
		})
		over, end := context.WithCancel(ctx)
		end()
		if _, err := n.Encrypt(over, nil, nil); !errors.Is(err, keyring.ErrNotReady) || errors.Is(err, keyring.ErrNoLeader) || !strings.Contains(err.Error(), answers) {
			t.Errorf("encrypt: %v", err)
		}
		leader := c.Nodes[c.Nodes["s2"].Leader()]
		c.Await(ctx, leader, "told that two have one ID", func(st keyring.Status) bool {
			return twice(st, "s1", "the member answers at "+answers, "the other one is at "+at)
		})
	}
	first := start(own)
	isMember(first, own.Addr)
	second := start(copied)
	defer second.Close()
	refused(second, copied.Addr, own.Addr)
	if warned.Load() > 0 {
		t.Error("a server has moved")
	}
	closeNode(t, first)
	isMember(second, copied.Addr)
	if warned.Load() == 0 {
		t.Error("the leader's log does not have that s1 has moved")
	}
	first = start(own)
	refused(first, own.Addr, copied.Addr)
	closeNode(t, second)
	isMember(first, own.Addr)
	for _, n := range c.Nodes {
		c.Await(ctx, n, "without a word of two servers", func(st keyring.Status) bool { return !twice(st, "s1") })
	}
}
