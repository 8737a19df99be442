package node_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

var badAddresses = []string{
	"", "s1", "s1:", ":7900", "0.0.0.0:7900", "[::]:7900", "[::ffff:0.0.0.0]:7900", "0:7900", "0x0:7900", "127.1:7900",
	"224.0.0.1:7900", "[ff02::1]:7900", "255.255.255.255:7900", "s1:0", "s1:00", "s1:07900", "s1:+7900", "s1:65536", "s1:-1", "s1:http",
	"foo:bar", "s1:7900 ", " s1:7900", "s1 :7900", "s1/x:7900", "http://s1:7900", "s1:7900:7901", "::1:7900", ".:7900", "a@b:7900",
	strings.Repeat("a", 250) + ":79000", strings.Repeat("a", 256) + ":7900",
}

// Whatever takes an address refuses the bad ones, before anything listens or is written.
func TestNobodyTakesAnAddressThatOthersCantReach(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	config := func(change func(*node.Config)) node.Config {
		cfg := node.Config{
			ID: "s1", Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Addr: "127.0.0.1:7900", Cluster: "test",
			TLS: func() (*tls.Config, error) { return nil, errors.New("asked for") },
		}
		change(&cfg)
		return cfg
	}
	for _, addr := range badAddresses {
		for name, cfg := range map[string]node.Config{
			"Addr":      config(func(cfg *node.Config) { cfg.Addr = addr; cfg.Join = []string{"s2:7900"} }),
			"Advertise": config(func(cfg *node.Config) { cfg.Advertise = addr }),
			"Peers": config(func(cfg *node.Config) {
				cfg.Peers = map[raft.ServerID]string{"s1": cfg.Addr, "s2": addr}
			}),
			"Join": config(func(cfg *node.Config) { cfg.Join = []string{"s2:7900", addr} }),
		} {
			if addr == "" && name == "Advertise" || name == "Join" && strings.Contains(addr, "@") {
				continue // none, and a server named by its ID
			}
			if n, err := node.Start(ctx, cfg); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s %.100q: %v", name, addr, err)
				if n != nil {
					n.Close()
				}
			}
		}
	}
	twice := config(func(cfg *node.Config) { cfg.Peers = map[raft.ServerID]string{"s1": cfg.Addr, "s2": "b:1", "s3": "b:1"} })
	if _, err := node.Start(ctx, twice); err == nil || !strings.Contains(err.Error(), "s2 and s3 have the same address, b:1") {
		t.Errorf("two servers at one address: %v", err)
	}
	c := keyringtest.StartNodes(t, 1, nil)
	c.Ready(ctx)
	for _, addr := range badAddresses {
		if err := c.Nodes["s1"].AddServer(ctx, "s4", addr); err == nil {
			t.Errorf("AddServer takes %q", addr)
		}
	}
}

// TestAdvertisedAddressIsWhatOthersAreTold: the server listens at any address of the machine.
func TestAdvertisedAddressIsWhatOthersAreTold(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		_, port, err := net.SplitHostPort(cfg.Addr)
		if err != nil {
			t.Error(err)
		}
		cfg.Advertise, cfg.Addr = cfg.Addr, ":"+port
	})
	c.Ready(ctx)
	s, err := c.Nodes["s1"].Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range s.Servers {
		if string(server.Address) != c.Addrs[server.ID] {
			t.Errorf("%s is at %s", server.ID, server.Address)
		}
	}
	old := c.Nodes["s2"]
	delete(c.Nodes, "s2")
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := c.Config("s2")
	cfg.KEKs = c.KEKs["s2"]
	_, port, _ := net.SplitHostPort(cfg.Addr)
	cfg.Advertise, cfg.Addr = cfg.Addr, "0.0.0.0:"+port // without a Listener
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s2"] = n
	c.Ready(ctx)
}

// TestLeaderKeepsTheAddressThatItAnswersAt, as every other member.
func TestLeaderKeepsTheAddressThatItAnswersAt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	for id, n := range c.Nodes {
		for _, other := range []raft.ServerID{n.Leader(), keyringtest.Besides(n.Leader())} {
			if err := n.AddServer(ctx, other, "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "answers at") {
				t.Errorf("%s moves %s: %v", id, other, err)
			}
		}
		if err := n.AddServer(ctx, n.Leader(), c.Addrs[n.Leader()]); err != nil {
			t.Error(err)
		}
	}
}

func TestRemoveServerOfNobodyIsAnError(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	wantNobody := func(n *node.Node, id raft.ServerID) {
		t.Helper()
		err := n.RemoveServer(ctx, id, keyring.RemoveServerOptions{Force: true})
		if !errors.Is(err, keyring.ErrNotMember) || !strings.Contains(err.Error(), `"s1" "s2"`) {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, n := range c.Nodes { // the leader, and those that forward
		for _, id := range []raft.ServerID{"s9", "S3", "s3 ", ""} {
			wantNobody(n, id)
		}
	}
	if err := c.Nodes["s1"].RemoveServer(ctx, "s3", keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	wantNobody(c.Nodes["s1"], "s3")
	wantNobody(c.Nodes["s2"], "s3")
	for range 2 {
		if err := c.Nodes["s3"].Leave(ctx); err != nil {
			t.Errorf("one that has left, leaves: %v", err)
		}
	}
}

// cutting closes connections at the first write after it is time to, those that were accepted before.
type cutting struct {
	net.Listener
	due func() bool
}

func (l cutting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil || l.due() {
		return c, err
	}
	return &cuttingConn{c, l.due}, nil
}

type cuttingConn struct {
	net.Conn
	due func() bool
}

func (c *cuttingConn) Write(b []byte) (int, error) {
	if c.due() {
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

// TestRemovalWithoutAnAnswerSucceeds: the server that asks asks again, and is told that there is no such member.
func TestRemovalWithoutAnAnswerSucceeds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var leads atomic.Pointer[node.Node]
	removed := func() bool { n := leads.Load(); return n != nil && len(node.MembersOf(n)) == 2 }
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.Listener = cutting{cfg.Listener, removed} })
	c.Ready(ctx)
	leader := c.Nodes["s1"].Leader()
	asks := keyringtest.Besides(leader)
	n := c.Nodes[asks]
	if err := n.RemoveServer(ctx, "s9", keyring.RemoveServerOptions{}); !errors.Is(err, keyring.ErrNotMember) {
		t.Fatal(err) // and now there is a connection
	}
	leads.Store(c.Nodes[leader])
	if err := n.RemoveServer(ctx, keyringtest.Besides(asks), keyring.RemoveServerOptions{}); err != nil {
		t.Error(err)
	}
	if !removed() {
		t.Errorf("the members are %q", node.MembersOf(c.Nodes[leader]))
	}
}
