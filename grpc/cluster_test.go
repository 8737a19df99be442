package keyringgrpc_test

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// hosts are servers of a host that run as the example has them, on real ports.
type hosts struct {
	t       *testing.T
	ctx     context.Context
	ca      *ca
	ids     []raft.ServerID // of all
	all     []*server
	sources map[raft.ServerID]*changing
	addrs   map[raft.ServerID]raft.ServerAddress
}

// newHosts starts a cluster of three.
func newHosts(t *testing.T) *hosts {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	h := &hosts{t: t, ctx: ctx, ca: newCA(), sources: map[raft.ServerID]*changing{}, addrs: map[raft.ServerID]raft.ServerAddress{}}
	var first []raft.Server
	var ports []net.Listener
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		ln := h.listen(id)
		ports = append(ports, ln)
		first = append(first, raft.Server{ID: id, Address: h.addrs[id]})
	}
	for i, s := range first {
		h.start(s.ID, ports[i], first)
	}
	return h
}

func (h *hosts) listen(id raft.ServerID) net.Listener {
	h.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.addrs[id] = raft.ServerAddress(ln.Addr().String())
	return ln
}

func (h *hosts) start(id raft.ServerID, ln net.Listener, first []raft.Server) *server {
	h.t.Helper()
	h.sources[id] = newChanging(h.ca.server(string(id)))
	s, err := start(h.ctx, id, h.t.TempDir(), ln, h.sources[id].get, first)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { s.close() })
	h.ids, h.all = append(h.ids, id), append(h.all, s)
	return s
}

// works requires that the servers rotate, and that all of them open what the leader seals; and that clients are served.
func (h *hosts) works(when string, roots *ca) {
	h.t.Helper()
	sealed, err := seal(h.ctx, h.all, []byte("secret"))
	if err != nil {
		h.t.Fatalf("%s: %v", when, err)
	}
	for i, s := range h.all {
		if got, err := open(h.ctx, s, sealed); err != nil || string(got) != "secret" {
			h.t.Errorf("%s: %s opens %q, %v", when, h.ids[i], got, err)
		}
		cc, err := grpc.NewClient(string(h.addrs[h.ids[i]]), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots.pool()})))
		must(err)
		if err := healthy(h.ctx, cc); err != nil {
			h.t.Errorf("%s: a client of %s: %v", when, h.ids[i], err)
		}
		cc.Close()
	}
}

// follower returns a server that does not lead.
func (h *hosts) follower() int {
	h.t.Helper()
	var leader raft.ServerID
	must(soon(h.ctx, h.all, func() error {
		if _, leader = h.all[0].raft.LeaderWithID(); leader == "" {
			return keyring.ErrNotLeader
		}
		return nil
	}))
	return slices.IndexFunc(h.ids, func(id raft.ServerID) bool { return id != leader })
}

// add starts a new server, and has it join.
func (h *hosts) add(id raft.ServerID) {
	h.t.Helper()
	h.start(id, h.listen(id), nil)
	err := onLeader(h.ctx, h.all, func(s *server) error { return s.keys.AddVoter(h.ctx, id, h.addrs[id], keyring.AddServerOptions{}) })
	if err != nil {
		h.t.Fatalf("add: %v", err)
	}
}

// remove removes a server that does not lead, and returns it. It runs on.
func (h *hosts) remove() (raft.ServerID, *server) {
	h.t.Helper()
	i := h.follower()
	id, gone := h.ids[i], h.all[i]
	h.ids, h.all = slices.Delete(slices.Clone(h.ids), i, i+1), slices.Delete(slices.Clone(h.all), i, i+1)
	err := onLeader(h.ctx, h.all, func(s *server) error { return s.keys.RemoveServer(h.ctx, id, keyring.RemoveServerOptions{}) })
	if err != nil {
		h.t.Fatalf("remove: %v", err)
	}
	return id, gone
}

// TestRaftKeyringAndClientsOnOnePort: a cluster forms, grows, loses a server and gets other certificates.
func TestRaftKeyringAndClientsOnOnePort(t *testing.T) {
	h := newHosts(t)
	h.works("three servers", h.ca)
	h.add("s4")
	h.works("four servers", h.ca)
	id, gone := h.remove()
	h.works("after "+string(id)+" was removed", h.ca)
	for i, other := range h.ids {
		must(soon(h.ctx, h.all, func() error { // until this one has heard of it
			servers := h.all[i].raft.GetConfiguration().Configuration().Servers
			if slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == id }) {
				return keyring.ErrNotReady
			}
			return nil
		}))
		if got, err := gone.peers.Call(h.ctx, other, []byte(`{"version":1,"hello":{}}`)); err == nil {
			t.Errorf("%s answers the server that was removed: %q", other, got)
		}
		conn, err := gone.peers.StreamLayer().Dial(h.addrs[other], time.Minute)
		if err != nil {
			continue
		}
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%s: raft of the server that was removed reads %d bytes, %v", other, n, err)
		}
		conn.Close()
	}
}

// TestOpenIsForOneServer, and may be called again after an error.
func TestOpenIsForOneServer(t *testing.T) {
	h := newHosts(t)
	s := h.all[0]
	if _, err := s.peers.Open(h.ctx, keyring.Config{ID: "s2", Raft: s.raft}); err == nil || !strings.Contains(err.Error(), `the keyring's ID is "s2", want "s1"`) {
		t.Errorf("of another server: %v", err)
	}
	if _, err := s.peers.Open(h.ctx, keyring.Config{Raft: s.raft}); err == nil || !strings.Contains(err.Error(), "Dir is empty") {
		t.Errorf("not enough: %v", err)
	}
	h.works("after that", h.ca)
}

// TestCertificatesAreReplacedInARunningCluster: first all know both CAs, then they have certificates of the new one, then they
// know the new one alone.
func TestCertificatesAreReplacedInARunningCluster(t *testing.T) {
	h := newHosts(t)
	h.works("at first", h.ca)
	next := newCA()
	both := h.ca.pool()
	both.AddCert(next.cert)
	for _, s := range h.sources {
		old, err := s.get()
		must(err)
		s.set(func() (*tls.Config, error) { return &tls.Config{Certificates: old.Certificates, RootCAs: both}, nil })
	}
	h.works("both CAs are known", h.ca)
	for id, s := range h.sources {
		own, err := next.server(string(id))()
		must(err)
		s.set(func() (*tls.Config, error) { return &tls.Config{Certificates: own.Certificates, RootCAs: both}, nil })
	}
	h.works("new certificates", next)
	for id, s := range h.sources {
		s.set(next.server(string(id)))
	}
	h.works("the old CA is forgotten", next)
}

// TestServerJoinsAgainWhereTheLeaderCameLater: what raft sends first has configurations without the leader, and in them this server
// votes.
func TestServerJoinsAgainWhereTheLeaderCameLater(t *testing.T) {
	h := newHosts(t)
	err := onLeader(h.ctx, h.all, func(s *server) error {
		if err := s.keys.Leading(); err != nil {
			return err
		}
		for range 200 { // more than raft sends at once
			if err := s.raft.Barrier(0).Error(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h.add("s4")
	if err := onLeader(h.ctx, h.all, func(s *server) error { return s.keys.TransferLeadershipTo(h.ctx, "s4") }); err != nil {
		t.Fatal(err)
	}
	must(soon(h.ctx, h.all, func() error {
		if _, leader := h.all[0].raft.LeaderWithID(); leader != "s4" {
			return keyring.ErrNotLeader
		}
		return nil
	}))
	id, gone := h.remove()
	if err := gone.close(); err != nil {
		t.Fatal(err)
	}
	h.add(id) // under its ID, with nothing
	h.works("it has joined again", h.ca)
	err = soon(h.ctx, h.all, func() error {
		if h.all[len(h.all)-1].raft.ReloadableConfig().HeartbeatTimeout > time.Minute {
			return keyring.ErrNotReady
		}
		return nil
	})
	if err != nil {
		t.Errorf("it has caught up, and begins no election: %v", err)
	}
}
