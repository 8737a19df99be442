package node_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// TestNoCallFailsWhileLeadersAreClosed: each server is closed and started again while it leads, and calls on the
// others end without an error. When Close has returned, one of the others leads.
func TestNoCallFailsWhileLeadersAreClosed(t *testing.T) {
	t.Parallel()
	ctx, c := slowNodes(t)
	hello, err := c.Nodes["s1"].Encrypt(ctx, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		leader := c.Nodes["s1"].Leader()
		var others []*node.Node
		for id, n := range c.Nodes {
			if id != leader {
				others = append(others, n)
			}
		}
		calls := startCalls(ctx, t, hello, others)
		closeNode(t, c.Nodes[leader])
		delete(c.Nodes, leader)
		if !slices.ContainsFunc(others, node.Leads) {
			t.Errorf("%s is closed, and the others wait for it", leader)
		}
		calls.end()
		cfg := c.Config(leader)
		node.SlowRaft(&cfg)
		n, err := node.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Nodes[leader] = n
		c.Ready(ctx)
	}
}

// slowNodes are three that are ready, and elect no leader by themselves because the machine is slow.
func slowNodes(t *testing.T) (context.Context, *keyringtest.Nodes) {
	t.Helper()
	ctx := keyringtest.UntilKilled(t)
	c := keyringtest.StartNodes(t, 3, node.SlowRaft)
	c.Ready(ctx)
	return ctx, c
}

// calls are calls that go on until end is called.
type calls struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// startCalls calls each of the servers again and again, and returns when each call has succeeded once. No call may fail.
func startCalls(ctx context.Context, t *testing.T, hello []byte, nodes []*node.Node) *calls {
	on, cancel := context.WithCancel(ctx)
	c := &calls{cancel: cancel}
	var once sync.WaitGroup
	for _, n := range nodes {
		for name, call := range map[string]func() error{
			"Encrypt": func() error { _, err := n.Encrypt(ctx, []byte("x"), nil); return err },
			"Sign": func() error {
				_, err := n.Sign(ctx, map[string]any{"exp": time.Now().Add(time.Hour).Unix()})
				return err
			},
			"Status":  func() error { _, err := n.Status(ctx); return err },
			"Decrypt": func() error { _, err := n.Decrypt(ctx, hello, nil); return err },
		} {
			once.Add(1)
			c.wg.Go(func() {
				for first := true; first || on.Err() == nil; first = false {
					if err := call(); err != nil && ctx.Err() == nil {
						t.Errorf("%s: %v", name, err)
					}
					if first {
						once.Done()
					}
				}
			})
		}
	}
	once.Wait()
	return c
}

func (c *calls) end() {
	c.cancel()
	c.wg.Wait()
}

// TestTransferLeadership to any voter, and to one that is named, from every server.
func TestTransferLeadership(t *testing.T) {
	t.Parallel()
	ctx, c := slowNodes(t)
	for _, id := range slices.Sorted(maps.Keys(c.Nodes)) {
		n, was := c.Nodes[id], leaderOf(ctx, t, c)
		if err := n.TransferLeadership(ctx); err != nil {
			t.Fatalf("on %s: %v", id, err)
		}
		if now := leaderOf(ctx, t, c); now == was {
			t.Errorf("%s leads as before", now)
		}
		to := keyringtest.Besides(leaderOf(ctx, t, c))
		for range 2 { // the second one is to the leader itself
			if err := n.TransferLeadershipTo(ctx, to); err != nil {
				t.Fatalf("on %s, to %s: %v", id, to, err)
			}
			if now := leaderOf(ctx, t, c); now != to {
				t.Errorf("%s leads, want %s", now, to)
			}
		}
		for to, want := range map[raft.ServerID]string{"s9": keyring.ErrNotMember.Error(), "": "empty"} {
			if err := n.TransferLeadershipTo(ctx, to); err == nil || !strings.Contains(err.Error(), want) || to != "" && !errors.Is(err, keyring.ErrNotMember) {
				t.Errorf("to %q: %v", to, err)
			}
		}
	}
	alone := startAlone(t, t.TempDir())
	if err := alone.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := alone.TransferLeadership(ctx); err == nil || !strings.Contains(err.Error(), "no other voter") {
		t.Errorf("alone: %v", err)
	}
}

// leaderOf waits until one server leads and says so.
func leaderOf(ctx context.Context, t *testing.T, c *keyringtest.Nodes) raft.ServerID {
	t.Helper()
	st, err := c.Nodes["s1"].Status(ctx) // of the leader
	if err != nil {
		t.Fatal(err)
	}
	return st.ID
}

// TestLeaderThatClosesHasNotAnswered: its keyring is closed, not the one that was asked.
func TestLeaderThatClosesHasNotAnswered(t *testing.T) {
	_, err := node.AnswerOf(append([]byte{8}, "keyring closed"...))
	if !errors.Is(err, node.ErrUnreachable) || errors.Is(err, keyring.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// TestTransferWhoseAnswerIsLost is done when another server leads: that one is not asked to hand over too.
func TestTransferWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	ctx, c := slowNodes(t)
	was := leaderOf(ctx, t, c)
	moved := false
	err := node.UntilMoved(context.Background(), c.Nodes[keyringtest.Besides(was)], func() error {
		if !moved {
			moved = true
			if err := c.Nodes[was].TransferLeadership(ctx); err != nil {
				t.Error(err)
			}
		}
		return node.ErrUnreachable
	})
	if err != nil {
		t.Error(err)
	}
}
