package port_test

import (
	"crypto/tls"
	"fmt"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// hosts are servers of a service that has a raft of its own, for synctest: their ports are on a network of pipes.
type hosts struct {
	t       *testing.T
	ca      *keyringtest.CA
	pipes   *keyringtest.Pipes
	initial raft.Configuration // they bootstrap with this
	all     map[raft.ServerID]*host
}

// host is one of them. What is not started is nil.
type host struct {
	id    raft.ServerID
	addr  string
	dir   string
	store *raft.InmemStore
	snaps *raft.InmemSnapshotStore
	tls   func() (*tls.Config, error)
	port  *port.Port
	raft  *raft.Raft
	fsm   *keyring.FSM
	keys  *keyring.Keyring
}

// newHosts makes n servers, h1 to hn, that are not started.
func newHosts(t *testing.T, n int) *hosts {
	t.Helper()
	hs := &hosts{t: t, ca: keyringtest.NewCA(t), pipes: &keyringtest.Pipes{}, all: map[raft.ServerID]*host{}}
	for i := range n {
		h := hs.add(raft.ServerID(fmt.Sprintf("h%d", i+1)))
		hs.initial.Servers = append(hs.initial.Servers, raft.Server{ID: h.id, Address: raft.ServerAddress(h.addr)})
	}
	return hs
}

// startHosts makes n servers, starts them and waits until they are ready.
func startHosts(t *testing.T, n int) *hosts {
	t.Helper()
	hs := newHosts(t, n)
	for _, h := range hs.all {
		hs.start(h, true)
	}
	for id, h := range hs.all {
		if err := h.keys.WaitReady(t.Context()); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	return hs
}

// add makes a server that no other one knows.
func (hs *hosts) add(id raft.ServerID) *host {
	h := &host{
		id: id, addr: string(id) + ".test:7900", dir: hs.t.TempDir(), store: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore(),
		tls: hs.ca.Source(uri(id), nil),
	}
	hs.all[id] = h
	return h
}

func uri(id raft.ServerID) string { return "keyring://test/server/" + string(id) }

// config is that of a server's port.
func (hs *hosts) config(h *host) port.Config {
	cfg := port.Config{
		ID: h.id, Cluster: "test", Addr: h.addr, Listener: hs.pipes.Listen(hs.t, h.addr), TLS: h.tls, Logger: keyringtest.Logger().Named(string(h.id)),
	}
	port.DialWith(&cfg, hs.pipes.DialContext)
	return cfg
}

// listen opens a server's port. Everything of the server ends with the test.
func (hs *hosts) listen(h *host, change ...func(*port.Config)) {
	hs.t.Helper()
	cfg := hs.config(h)
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if h.port, err = port.Listen(cfg); err != nil {
		hs.t.Fatal(err)
	}
	hs.t.Cleanup(func() { hs.stop(h) })
}

// run starts raft and the keyring. A server that is one of the first bootstraps.
func (hs *hosts) run(h *host, bootstraps bool) {
	hs.t.Helper()
	hs.raftAlone(h, bootstraps)
	var err error
	if h.keys, err = h.port.Open(hs.t.Context(), h.keyring()); err != nil {
		hs.t.Fatal(err)
	}
}

// raftAlone starts raft.
func (hs *hosts) raftAlone(h *host, bootstraps bool) {
	hs.t.Helper()
	h.fsm = keyring.NewFSM()
	trans := h.port.RaftTransport(h.store, h.fsm)
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = h.id, hclog.NewNullLogger()
	if bootstraps {
		if err := raft.BootstrapCluster(conf, h.store, h.store, h.snaps, trans, hs.initial); err != nil {
			hs.t.Fatal(err)
		}
	}
	var err error
	if h.raft, err = raft.NewRaft(conf, h.fsm, h.store, h.store, h.snaps, trans); err != nil {
		hs.t.Fatal(err)
	}
}

// keyring is how a server opens its keyring.
func (h *host) keyring() keyring.Config {
	return keyring.Config{
		Dir: h.dir, Raft: h.raft, FSM: h.fsm, KEKs: []keyring.KEK{keyring.InlineKEK()},
		Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"}, EveryBuild: true,
	}
}

func (hs *hosts) start(h *host, bootstraps bool) {
	hs.t.Helper()
	hs.listen(h)
	hs.run(h, bootstraps)
}

// stop ends a server. It may have been stopped before.
func (hs *hosts) stop(h *host) {
	hs.t.Helper()
	if h.keys != nil {
		if err := h.keys.Close(); err != nil {
			hs.t.Errorf("%s: %v", h.id, err)
		}
	}
	if h.raft != nil {
		if err := h.raft.Shutdown().Error(); err != nil {
			hs.t.Errorf("%s: %v", h.id, err)
		}
	}
	if err := h.port.Close(); err != nil {
		hs.t.Errorf("%s: %v", h.id, err)
	}
}

// leader waits for a leader, as the first of the servers knows it.
func (hs *hosts) leader() *host {
	hs.t.Helper()
	for {
		changed := hs.all["h1"].keys.Changed()
		if _, id := hs.all["h1"].raft.LeaderWithID(); id != "" {
			return hs.all[id]
		}
		<-changed
	}
}

// other is a server that does not lead.
func (hs *hosts) other(leader *host) *host {
	for _, s := range hs.initial.Servers {
		if s.ID != leader.id {
			return hs.all[s.ID]
		}
	}
	return nil
}
