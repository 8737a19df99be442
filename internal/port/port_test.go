package port_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// oneSided starts the ports of two members, whose raft has the other one in its configuration and does not run over the port:
// what one asks over its transport comes out of the other's, and nobody answers.
func oneSided(t *testing.T) (rafts map[raft.ServerID]*raft.Raft, trans map[raft.ServerID]raft.Transport, addrs map[raft.ServerID]string) {
	t.Helper()
	c, listeners := keyringtest.NewNodes(t, 2)
	var both raft.Configuration
	for id, addr := range c.Addrs {
		both.Servers = append(both.Servers, raft.Server{ID: id, Address: raft.ServerAddress(addr)})
	}
	rafts, trans = map[raft.ServerID]*raft.Raft{}, map[raft.ServerID]raft.Transport{}
	for id, addr := range c.Addrs {
		p, err := port.Listen(port.Config{
			ID: id, Cluster: "test", Addr: addr, Listener: listeners[id], Logger: hclog.NewNullLogger(),
			TLS: c.CA.Source("keyring://test/server/"+string(id), nil),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		conf, store, fsm := raft.DefaultConfig(), raft.NewInmemStore(), keyring.NewFSM()
		conf.LocalID, conf.Logger = id, hclog.NewNullLogger()
		trans[id] = p.RaftTransport(store, fsm.CheckSnapshot)
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
		rafts[id] = r
		if err := p.Attach(r, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		p.Start(still{}, nil)
	}
	return rafts, trans, c.Addrs
}

// still is a host whose members do not change.
type still struct{ port.Host }

func (still) Changed() <-chan struct{}  { return nil }
func (still) MembershipVersion() uint64 { return 0 }
func (still) Notify()                   {}
func (still) Leading() error            { return errors.New("it does not lead") }
func (still) Move(context.Context, raft.ServerID, raft.ServerAddress, func(context.Context, raft.Server) error) error {
	return errors.New("it does not lead")
}

// TestShutdownEndsWhatRaftHasAsked: it waits for the answers, and those of a server that hangs are due in 10 seconds.
func TestShutdownEndsWhatRaftHasAsked(t *testing.T) {
	rafts, trans, addrs := oneSided(t)
	asked := make(chan error, 1)
	ask := func() error {
		return trans["s1"].RequestVote("s2", raft.ServerAddress(addrs["s2"]), &raft.RequestVoteRequest{Term: 2}, &raft.RequestVoteResponse{})
	}
	go func() { asked <- ask() }()
	<-trans["s2"].Consumer() // and nobody answers
	rafts["s1"].Shutdown()
	if err := <-asked; err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("it has waited for the answer: %v", err)
	}
	if err := ask(); !errors.Is(err, context.Canceled) {
		t.Errorf("a connection is made after the end: %v", err)
	}
}
