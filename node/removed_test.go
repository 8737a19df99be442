package node_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// removedProblem is what a server's status says of its removal.
func removedProblem(st keyring.Status) string {
	for _, p := range st.Problems {
		if p.Kind == keyring.ProblemRemoved {
			return p.Detail
		}
	}
	return ""
}

// removeWhileDown removes s3 while it is closed, and starts it again: it never gets the entry of raft's that says so.
func removeWhileDown(t *testing.T) (context.Context, *keyringtest.Nodes) {
	t.Helper()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	keyringtest.AwaitHolders(c.Nodes["s1"].Keyring(), c.Nodes["s1"].Keyring().Keys()[0].ID, 3)
	closeNode(t, c.Nodes["s3"])
	delete(c.Nodes, "s3")
	if err := c.Nodes["s1"].RemoveServer(ctx, "s3", keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, c.Config("s3"))
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s3"] = n
	return ctx, c
}

// TestServerThatHasNotHeardOfItsRemovalSaysSo: the others do, and it has nobody else to ask.
func TestServerThatHasNotHeardOfItsRemovalSaysSo(t *testing.T) {
	t.Parallel()
	ctx, c := removeWhileDown(t)
	n := c.Nodes["s3"]
	c.Await(ctx, n, "told of its removal", func(st keyring.Status) bool {
		detail := removedProblem(st)
		return strings.Contains(detail, `"s1"`) && strings.Contains(detail, `"s2"`) && strings.Contains(detail, "not one of them")
	})
	if _, err := n.Encrypt(context.Background(), nil, nil); !errors.Is(err, keyring.ErrNotMember) || errors.Is(err, keyring.ErrNoLeader) || !strings.Contains(err.Error(), `"s1" "s2"`) {
		t.Errorf("encrypt: %v", err)
	}
	for range 2 {
		if err := n.Leave(context.Background()); err != nil {
			t.Errorf("leave: %v", err)
		}
	}
	if got := len(node.RaftServers(n)); got != 3 {
		t.Errorf("its own raft configuration has %d servers: it is to say what the others say, and no more", got)
	}
	if files, err := filepath.Glob(filepath.Join(c.Dirs["s3"], "keystore", "*.nks.json")); err != nil || len(files) != 1 {
		t.Errorf("its key files are %v, %v", files, err)
	}
	if err := c.Nodes["s2"].AddServer(ctx, "s3", c.Addrs["s3"]); err != nil { // it has a leader again
		t.Fatal(err)
	}
	c.Await(ctx, n, "a member again", func(st keyring.Status) bool { return st.Leader != "" && removedProblem(st) == "" })
}

// TestLeaveOfAServerThatWasRemovedIsNoError, also before its status tells.
func TestLeaveOfAServerThatWasRemovedIsNoError(t *testing.T) {
	t.Parallel()
	ctx, c := removeWhileDown(t)
	if err := c.Nodes["s3"].Leave(ctx); err != nil {
		t.Error(err)
	}
}

// TestServerWithoutALeaderIsNotRemoved: one of the two others is down, and the one that is left says nothing of the kind.
func TestServerWithoutALeaderIsNotRemoved(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	for _, gone := range []raft.ServerID{"s1", "s2"} {
		closeNode(t, c.Nodes[gone])
		delete(c.Nodes, gone)
	}
	c.Await(ctx, c.Nodes["s3"], "without a leader", func(st keyring.Status) bool { return st.Leader == "" })
	if by := node.AskWhetherRemoved(ctx, c.Nodes["s3"]); len(by) > 0 {
		t.Errorf("%v say so, and do not run", by)
	}
	st, err := c.Nodes["s3"].Keyring().Status(ctx)
	if err != nil || removedProblem(st) != "" {
		t.Errorf("%q, %v", removedProblem(st), err)
	}
	c.Restart(ctx, "s3")
	n, err := node.Start(ctx, c.Config("s1"))
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s1"] = n
	c.Await(ctx, c.Nodes["s3"], "with a leader", func(st keyring.Status) bool { return st.Leader != "" && removedProblem(st) == "" })
}
