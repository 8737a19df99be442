package node_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

func hasProblem(st keyring.Status, kind keyring.ProblemKind) bool {
	return slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == kind })
}

// TestServerThatCameAndWentIsCutOff everywhere: a follower may learn of both at once.
func TestServerThatCameAndWentIsCutOff(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.App = keyringtest.NullFSM{} }) // which is told of no configuration
	c.Ready(ctx)
	thief := &peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/s9", nil)}
	if err := c.Nodes["s1"].AddServer(ctx, "s9", "127.0.0.1:9"); err != nil {
		t.Fatal(err)
	}
	var open []*peer.Conn
	for id, n := range c.Nodes {
		c.Await(ctx, n, "told of s9", func(st keyring.Status) bool { return len(st.Servers) == 4 })
		conn, err := thief.Dial(ctx, string(id), c.Addrs[id], peer.ALPNRaft)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	if err := c.Nodes["s2"].RemoveServer(ctx, "s9", keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	keyringtest.WantClosed(ctx, t, open)
}

// TestRemovedServerGetsNothing: its connections are closed, those of both protocols, and it gets no other.
func TestRemovedServerGetsNothing(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	leader := c.Nodes["s1"].Leader()
	gone := keyringtest.Besides(leader)
	thief := &peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/"+string(gone), nil)}
	var open []*peer.Conn
	for _, alpn := range []string{peer.ALPNRaft, peer.ALPNPeer} {
		conn, err := thief.Dial(ctx, string(leader), c.Addrs[leader], alpn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	asked := c.Nodes[gone]
	if err := c.Nodes[leader].RemoveServer(ctx, gone, keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	keyringtest.WantClosed(ctx, t, open)
	if _, err := thief.Dial(ctx, string(leader), c.Addrs[leader], peer.ALPNRaft); err == nil {
		t.Error("raft takes it")
	}
	client := peer.NewClient(thief)
	defer client.Close()
	for _, path := range []string{"/keyring", "/node/encrypt", "/node/status", "/node/add-server", "/node/join"} {
		body := []byte(`{"addr":"127.0.0.1:9"}`)
		_, err := client.Call(ctx, string(leader), c.Addrs[leader], path, body)
		if r := (*peer.Refusal)(nil); !errors.As(err, &r) || r.Code != peer.NotMember {
			t.Errorf("%s answers it: %v", path, err)
		}
	}
	// The last that it gets of raft may or may not be the entry that removes it.
	c.Await(ctx, asked, "without a leader, or told that it is removed", func(st keyring.Status) bool {
		return st.Leader == "" || hasProblem(st, keyring.ProblemRemoved)
	})
	if _, err := c.Nodes[leader].Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Error(err)
	}
}

// TestServerRemovedWhileItJoinsIsNoMember, although its connection is still there: the leader looks once
// more, when nothing else changes.
func TestServerRemovedWhileItJoinsIsNoMember(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	leader := c.Nodes[c.Nodes["s1"].Leader()]
	called := make(chan string, 10)
	at, stop := c.Mute("s9", called)
	defer stop()
	if err := leader.AddServer(ctx, "s9", at); err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	go func() {
		_, err := c.CallAs(ctx, "s9", leader.Leader(), "/node/join", []byte(`{"addr":"`+at+`"}`))
		asked <- err
	}()
	<-called // the leader looks whether it is there
	if err := leader.RemoveServer(ctx, "s9", keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	stop()
	if <-asked == nil { // it is refused, unless its connection has been closed before
		t.Error("it has joined")
	}
	if servers := node.RaftServers(leader); len(servers) != 3 {
		t.Errorf("it is back: %v", servers)
	}
}

// TestMemberThatIsStartingIsAlive: it has no answer yet, and nobody takes its place.
func TestMemberThatIsStartingIsAlive(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	leader := c.Nodes["s1"].Leader()
	starting := keyringtest.Besides(leader)
	if err := c.Nodes[starting].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.Nodes, starting)
	ln, err := net.Listen("tcp", c.Addrs[starting])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Pose(starting, ln, func(context.Context, peer.Identity, string, []byte) ([]byte, error) {
		return nil, &peer.Refusal{Code: peer.NotReady}
	})()
	source := c.CA.Source("keyring://test/server/"+string(starting), nil)
	client := peer.NewClient(&peer.Dialer{Cluster: "test", TLS: source})
	defer client.Close()
	answer, err := client.Call(ctx, string(leader), c.Addrs[leader], "/node/join", []byte(`{"addr":"127.0.0.1:9"}`))
	if err != nil || !bytes.Contains(answer, []byte("a member already")) {
		t.Errorf("%q, %v", answer, err)
	}
	if got := suffrage(t, c.Nodes[leader].Keyring(), starting); got != "Voter" {
		t.Errorf("it is %q", got)
	}
}

// TestServerIsAtTwoAddresses, and is known by the one of its configuration.
func TestServerIsAtTwoAddresses(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	leader := c.Nodes["s1"].Leader()
	id := keyringtest.Besides(leader)
	if err := c.Nodes[id].Close(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", c.Addrs[id])
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(c.Addrs[id])
	if err != nil {
		t.Fatal(err)
	}
	c.Addrs[id] = net.JoinHostPort("localhost", port)
	cfg := c.Config(id)
	cfg.Listener = ln
	if c.Nodes[id], err = node.Start(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	c.Settled(ctx)
}

// TestServerThatIsDownKeepsNoOtherFromAVote, though it is before it in the list.
func TestServerThatIsDownKeepsNoOtherFromAVote(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	leader := c.Nodes["s1"].Leader()
	down := keyringtest.Besides(leader)
	keyringtest.AwaitHolders(c.Nodes[leader].Keyring(), c.Nodes[leader].Keyring().Keys()[0].ID, 3)
	if err := c.Nodes[down].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.Nodes, down)
	if err := node.Demote(c.Nodes[leader], down); err != nil {
		t.Fatal(err)
	}
	cfg := c.Newcomer("s4")
	cfg.Join = []string{string(leader) + "@" + c.Addrs[leader]}
	if err := c.Nodes[leader].AddServer(ctx, "s4", cfg.Addr); err != nil {
		t.Fatal(err)
	}
	c.Start(ctx, cfg)
	c.Await(ctx, c.Nodes[leader], "naming who is down", func(st keyring.Status) bool {
		return slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool {
			return p.Kind == keyring.ProblemNonvoter && p.Server == down && strings.Contains(p.Detail, "answer")
		})
	})
}

// TestServerThatNeverAnsweredGetsNoVote, not even while there is no key to hold.
func TestServerThatNeverAnsweredGetsNoVote(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	down := kektest.New("kms")
	down.Set(func(k *kektest.KMS) { k.Err = errors.New("down") })
	tried := make(chan struct{}, 1)
	c := keyringtest.StartNodes(t, 1, func(cfg *node.Config) {
		cfg.KEKs = []keyring.KEK{keyring.InlineKEK(), down}
		cfg.Logger = whenLogged("could not promote a server: id=s9", func() {
			select {
			case tried <- struct{}{}:
			default:
			}
		})
	})
	n := c.Nodes["s1"]
	if err := n.AddServer(ctx, "s9", "127.0.0.1:9"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tried:
	case <-ctx.Done():
		t.Fatal("it is not tried")
	}
	if got := suffrage(t, n.Keyring(), "s9"); got != "Nonvoter" {
		t.Errorf("it is %q", got)
	}
}

// TestRemoveServerPutsNoKeyAtRisk: with one server down, the two that are left both have to stay. And a
// key that is lost for good stops every removal, until it is forced.
func TestRemoveServerPutsNoKeyAtRisk(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	key := c.Nodes["s1"].Keyring().Keys()[0]
	keyringtest.AwaitHolders(c.Nodes["s1"].Keyring(), key.ID, 3)
	down := raft.ServerID("s3")
	if err := c.Nodes[down].Close(); err != nil {
		t.Fatal(err)
	}
	delete(c.Nodes, down)
	if err := c.Nodes["s1"].RemoveServer(ctx, "s2", keyring.RemoveServerOptions{}); !errors.Is(err, keyring.ErrNotDurable) {
		t.Errorf("one of the last two holders is removed: %v", err)
	}
	if _, err := c.Nodes["s1"].Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	for id, n := range c.Nodes {
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(c.Dirs[id], "keystore", key.ID.String()+".nks.json")); err != nil {
			t.Fatal(err)
		}
		delete(c.Nodes, id)
	}
	for _, id := range []raft.ServerID{"s1", "s2"} {
		cfg := c.Config(id)
		cfg.Peers = c.Addrs
		n, err := node.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Nodes[id] = n
	}
	c.Ready(ctx)
	for _, n := range c.Nodes {
		if err := n.RemoveServer(ctx, down, keyring.RemoveServerOptions{}); !errors.Is(err, keyring.ErrNotDurable) {
			t.Errorf("it is removed: %v", err)
		}
	}
	if err := c.Nodes["s2"].RemoveServer(ctx, down, keyring.RemoveServerOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if st, err := c.Nodes["s1"].Status(ctx); err != nil || len(st.Servers) != 2 {
		t.Errorf("%+v, %v", st.Servers, err)
	}
	if err := c.Nodes["s1"].RemoveServer(ctx, down, keyring.RemoveServerOptions{}); !errors.Is(err, keyring.ErrNotMember) {
		t.Errorf("removed twice: %v", err)
	}
}

// TestLeaderIsRemovedFromAnotherServer after it has handed over.
func TestLeaderIsRemovedFromAnotherServer(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	leader := c.Nodes["s1"].Leader()
	other := keyringtest.Besides(leader)
	keyringtest.AwaitHolders(c.Nodes[leader].Keyring(), c.Nodes[leader].Keyring().Keys()[0].ID, 3)
	if err := c.Nodes[other].RemoveServer(ctx, leader, keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	st, err := c.Nodes[other].Status(ctx)
	if err != nil || len(st.Servers) != 2 || st.Leader == leader || st.ID != st.Leader {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestLastServerStays.
func TestLastServerStays(t *testing.T) {
	t.Parallel()
	n, err := node.Start(t.Context(), node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, force := range []bool{false, true} {
		if err := n.RemoveServer(t.Context(), "server", keyring.RemoveServerOptions{Force: force}); err == nil {
			t.Errorf("the last server is removed, force %t", force)
		}
	}
	if err := n.Keyring().WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestServersThatHaveAllMovedFindEachOther by the addresses in Peers.
func TestServersThatHaveAllMovedFindEachOther(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	c.Close()
	clear(c.Nodes)
	var cfgs []node.Config
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		cfg := c.Config(id)
		cfg.Listener = keyringtest.Listen(t)
		cfg.Addr = cfg.Listener.Addr().String()
		c.Addrs[id] = cfg.Addr
		cfgs = append(cfgs, cfg)
	}
	for _, cfg := range cfgs {
		cfg.Peers = c.Addrs
		n, err := node.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.Nodes[cfg.ID] = n
	}
	c.Settled(ctx)
}
