package port_test

import (
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// silence is a listener to which nobody comes.
type silence struct{ closed chan struct{} }

func (s silence) Accept() (net.Conn, error) { <-s.closed; return nil, net.ErrClosed }
func (s silence) Addr() net.Addr            { return &net.TCPAddr{} }
func (s silence) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

// alone is a server that is the only voter of its raft's configuration.
type alone struct {
	t     *testing.T
	port  *port.Port
	conf  *raft.Config
	store *raft.InmemStore
	trans raft.Transport
}

func newAlone(t *testing.T, ca *keyringtest.CA) *alone {
	t.Helper()
	p, err := port.Listen(port.Config{
		ID: "s1", Cluster: "test", Addr: "127.0.0.1:1", Listener: silence{make(chan struct{})}, Logger: hclog.NewNullLogger(),
		TLS: ca.Source("keyring://test/server/s1", nil),
	})
	if err != nil {
		t.Fatal(err)
	}
	a := &alone{t: t, port: p, conf: raft.DefaultConfig(), store: raft.NewInmemStore()}
	a.trans = p.RaftTransport(a.store, keyring.NewFSM().CheckSnapshot)
	a.conf.LocalID, a.conf.Logger = "s1", hclog.NewNullLogger()
	first := raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: "127.0.0.1:1"}}}
	if err := raft.BootstrapCluster(a.conf, a.store, a.store, raft.NewInmemSnapshotStore(), a.trans, first); err != nil {
		t.Fatal(err)
	}
	return a
}

// run runs raft, and the port, for a virtual minute, and returns what raft is then.
func (a *alone) run() (state raft.RaftState, attached error) {
	a.t.Helper()
	r, err := raft.NewRaft(a.conf, keyring.NewFSM(), a.store, a.store, raft.NewInmemSnapshotStore(), a.trans)
	if err != nil {
		a.t.Fatal(err)
	}
	attached = a.port.Attach(r, func() error { return nil })
	if attached == nil {
		a.port.Start(still{}, nil)
		time.Sleep(time.Minute)
	}
	state = r.State()
	if err := r.Shutdown().Error(); err != nil {
		a.t.Error(err)
	}
	if err := a.port.Close(); err != nil {
		a.t.Error(err)
	}
	return state, attached
}

// TestServerThatHasNotCaughtUpElectsNobody: of the configuration of the past it is the only voter. It has joined since, and was
// started again before it had the log up to there.
func TestServerThatHasNotCaughtUpElectsNobody(t *testing.T) {
	for name, c := range map[string]struct {
		index uint64 // up to which it has not caught up; zero: it has not joined
		held  bool   // HoldElections is called
		want  raft.RaftState
		fails bool // to start
		after bool // it is to catch up still
	}{
		"it has not joined":    {0, true, raft.Leader, false, false},
		"it has not caught up": {9, true, raft.Follower, false, true},
		"it can't be held":     {9, false, raft.Follower, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			ca := keyringtest.NewCA(t)
			synctest.Test(t, func(t *testing.T) {
				a := newAlone(t, ca)
				if c.index > 0 {
					if err := port.Introduce(a.store, c.index, "s1", "s2"); err != nil {
						t.Fatal(err)
					}
				}
				if c.held {
					if err := a.port.HoldElections(a.conf); err != nil {
						t.Fatal(err)
					}
				}
				state, err := a.run()
				if (err != nil) != c.fails || err != nil && !strings.Contains(err.Error(), "let it join again") {
					t.Errorf("started: %v", err)
				}
				if state != c.want {
					t.Errorf("after a minute it is %v, want %v", state, c.want)
				}
				if is := port.Introduced(a.store); is != c.after {
					t.Errorf("after a minute it is to catch up: %v", is)
				}
			})
		})
	}
}
