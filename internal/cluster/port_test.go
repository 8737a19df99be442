package cluster_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// portHost is a host with a raft of its own, which runs over a Port as the keyring does.
type portHost struct {
	raft *raft.Raft
	keys *keyring.Keyring
}

// startPortHosts starts three. Each is closed at the end: the keyring, raft, then the port.
func startPortHosts(t *testing.T, ctx context.Context) (*keyringtest.Nodes, map[raft.ServerID]portHost) {
	t.Helper()
	c, listeners := keyringtest.NewNodes(t, 3)
	var initial raft.Configuration
	for id, addr := range c.Addrs {
		initial.Servers = append(initial.Servers, raft.Server{ID: id, Address: raft.ServerAddress(addr)})
	}
	hosts := map[raft.ServerID]portHost{}
	for id, addr := range c.Addrs {
		port, err := cluster.Listen(cluster.PortConfig{
			ID: id, Cluster: "test", Addr: addr, Listener: listeners[id], Logger: hclog.NewNullLogger(),
			TLS: c.CA.Source("keyring://test/server/"+string(id), nil),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { port.Close() })
		conf, store, fsm := raft.DefaultConfig(), raft.NewInmemStore(), keyring.NewFSM()
		conf.LocalID, conf.Logger = id, hclog.NewNullLogger()
		trans, snaps := port.RaftTransport(store, fsm.CheckSnapshot), raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(conf, store, store, snaps, trans, initial); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(conf, fsm, store, store, snaps, trans)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Shutdown().Error() })
		port.Attach(r, func() error { return nil })
		keys, err := keyring.Open(ctx, keyring.Config{
			Dir: t.TempDir(), ID: id, Raft: r, FSM: fsm, Transport: port, KEKs: []keyring.KEK{keyring.InlineKEK()},
			Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { keys.Close() })
		port.Start(keys, map[string]cluster.Handler{cluster.PathKeyring: keys.ServePeer})
		hosts[id] = portHost{r, keys}
	}
	return c, hosts
}

// TestAHostWithARaftOfItsOwnRunsOverAPort: raft and the keyring, until a server is removed.
func TestAHostWithARaftOfItsOwnRunsOverAPort(t *testing.T) {
	ctx := keyringtest.UntilKilled(t)
	c, hosts := startPortHosts(t, ctx)
	for id, h := range hosts {
		if err := h.keys.WaitReady(ctx); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	_, leader := hosts["s1"].raft.LeaderWithID()
	sealed, err := hosts[leader].keys.Encrypt([]byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	keyringtest.AwaitHolders(hosts[leader].keys, hosts[leader].keys.Keys()[0].ID, 3)
	for id, h := range hosts {
		if got, err := h.keys.Decrypt(sealed, nil); err != nil || string(got) != "data" {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
	gone := keyringtest.Besides(leader)
	if err := hosts[leader].keys.RemoveServer(ctx, gone, keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	dialer := &peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/"+string(gone), nil)}
	if conn, err := dialer.Dial(ctx, string(leader), c.Addrs[leader], peer.ALPNRaft); err == nil {
		conn.Close()
		t.Error("raft of a removed server gets a connection")
	}
	if _, err := c.CallAs(ctx, gone, leader, cluster.PathKeyring, nil); !peer.Refused(err, peer.NotMember) {
		t.Errorf("the keyring of a removed server: %v", err)
	}
}

// TestPortThatHasNoRaftYetReachesNobody: the keyring makes calls as soon as it is open.
func TestPortThatHasNoRaftYetReachesNobody(t *testing.T) {
	c, listeners := keyringtest.NewNodes(t, 1)
	port, err := cluster.Listen(cluster.PortConfig{
		ID: "s1", Cluster: "test", Addr: c.Addrs["s1"], Listener: listeners["s1"], Logger: hclog.NewNullLogger(),
		TLS: c.CA.Source("keyring://test/server/s1", nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if _, err := port.Call(t.Context(), "s2", nil); err == nil {
		t.Error("it has reached a server")
	}
	if all := port.Members(); len(all) > 0 {
		t.Errorf("the members are %v", all)
	}
}

// oneSided starts the ports of two members, whose raft has the other one in its configuration and does not run over the port:
// what one asks over its transport comes out of the other's, and nobody answers.
func oneSided(t *testing.T) (ports map[raft.ServerID]*cluster.Port, trans map[raft.ServerID]raft.Transport, addrs map[raft.ServerID]string) {
	t.Helper()
	c, listeners := keyringtest.NewNodes(t, 2)
	var both raft.Configuration
	for id, addr := range c.Addrs {
		both.Servers = append(both.Servers, raft.Server{ID: id, Address: raft.ServerAddress(addr)})
	}
	ports, trans = map[raft.ServerID]*cluster.Port{}, map[raft.ServerID]raft.Transport{}
	for id, addr := range c.Addrs {
		port, err := cluster.Listen(cluster.PortConfig{
			ID: id, Cluster: "test", Addr: addr, Listener: listeners[id], Logger: hclog.NewNullLogger(),
			TLS: c.CA.Source("keyring://test/server/"+string(id), nil),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { port.Close() })
		conf, store, fsm := raft.DefaultConfig(), raft.NewInmemStore(), keyring.NewFSM()
		conf.LocalID, conf.Logger = id, hclog.NewNullLogger()
		ports[id], trans[id] = port, port.RaftTransport(store, fsm.CheckSnapshot)
		_, nowhere := raft.NewInmemTransport(raft.ServerAddress(addr))
		snaps := raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(conf, store, store, snaps, nowhere, both); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(conf, fsm, store, store, snaps, nowhere)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Shutdown().Error() })
		port.Attach(r, func() error { return nil })
		port.Start(still{}, nil)
	}
	return ports, trans, c.Addrs
}

// still is a Membership that does not change.
type still struct{}

func (still) Changed() <-chan struct{}  { return nil }
func (still) MembershipVersion() uint64 { return 0 }

// TestEndRaftEndsWhatRaftHasAsked: its shutdown waits for the answers, and those of a server that hangs are due in 10 seconds.
func TestEndRaftEndsWhatRaftHasAsked(t *testing.T) {
	ports, trans, addrs := oneSided(t)
	asked := make(chan error, 1)
	ask := func() error {
		return trans["s1"].RequestVote("s2", raft.ServerAddress(addrs["s2"]), &raft.RequestVoteRequest{Term: 2}, &raft.RequestVoteResponse{})
	}
	go func() { asked <- ask() }()
	<-trans["s2"].Consumer() // and nobody answers
	ports["s1"].EndRaft()
	if err := <-asked; err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("it has waited for the answer: %v", err)
	}
	if err := ask(); !errors.Is(err, context.Canceled) {
		t.Errorf("a connection is made after the end: %v", err)
	}
}
