package keyring

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/raftwire"
	"github.com/hashicorp/raft"
)

// Paths of the calls between nodes.
const (
	pathKeys    = "/keyring"      // to ServePeer
	pathHello   = "/node/hello"   // what a server is, for one that has no raft log
	pathJoin    = "/node/join"    // to be taken into the configuration
	pathProof   = "/node/proof"   // of the cluster, to a server that has a join token
	pathEncrypt = "/node/encrypt" // forwarded to the leader
	pathDecrypt = "/node/decrypt"
	pathSign    = "/node/sign"
	pathRotate  = "/node/rotate"
	pathRemove  = "/node/remove"
	pathReady   = "/node/ready"
	pathStatus  = "/node/status"

	pathAddServer    = "/node/add-server"
	pathRemoveServer = "/node/remove-server"
	pathJoinToken    = "/node/join-token"
	pathWithdraw     = "/node/withdraw-join-token"
)

// startPatience is how long a connection of raft's waits for raft.
const startPatience = time.Second

// network is a node's port and its connections to the ports of others. It is the keyring's
// Transport and raft's StreamLayer.
type network struct {
	node   *Node
	port   *peer.Port
	server *peer.Server
	client *peer.Client
	dialer *peer.Dialer
	raft   net.Listener
	trans  *raft.NetworkTransport
	checks *raftwire.Transport // around trans
	fresh  atomic.Bool         // this server has found no raft log, and has not founded one yet
	join   []candidate         // who may know the leader that is to take this server in; nil if it need not be

	// sponsors are the servers of the configuration that took this one in: until raft has told it,
	// they are all that it knows. Set before raft runs.
	sponsors []string
	seldom   seldom     // log lines that a peer can cause
	refusals seldom     // those about raft's requests
	joins    seldomEach // those about servers that may not join
	closed   chan struct{}

	mu     sync.Mutex // guards below
	dialed map[*dialed]bool
	moved  map[string]string // where members have said that they are

	founders map[string][]string // whom servers that are to found the cluster with this one have named, by their ID
}

func listen(n *Node) (*network, error) {
	w := &network{
		node: n, closed: make(chan struct{}), dialed: map[*dialed]bool{}, moved: map[string]string{}, founders: map[string][]string{},
		dialer: &peer.Dialer{Cluster: n.cfg.Cluster, TLS: n.cfg.TLS},
	}
	w.dialer.Elsewhere = w.elsewhere
	if err := n.cfg.checkCertificate(); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	conf, err := peer.ServerConfig(n.cfg.TLS, n.cfg.Cluster, w.admit, peer.ALPNRaft, peer.ALPNPeer)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	ln := n.cfg.Listener
	if ln == nil {
		if ln, err = net.Listen("tcp", n.cfg.listen); err != nil {
			return nil, fmt.Errorf("node: %w", err)
		}
	}
	w.port = peer.Listen(ln, peer.PortOptions{
		TLS:    conf,
		Member: func(id peer.Identity) bool { return w.ready() && slices.Contains(w.members(), id.ID) },
		OnRefuse: func(remote net.Addr, err error) {
			n.log.Warn("connection refused", "from", remote, "error", err)
		},
	})
	w.client = peer.NewClient(w.dialer)
	w.raft = w.port.Listener(peer.ALPNRaft)
	w.server = peer.Serve(w.port.Listener(peer.ALPNPeer), w.serve, peer.ServerOptions{
		OnError: func(from peer.Identity, path string, err error) {
			w.seldom.Do(func() { n.log.Warn("peer call", "from", from, "path", path, "error", err) })
		},
	})
	return w, nil
}

// checkCertificate requires that this server's own certificate names it: the others would
// refuse it one by one, in their logs.
func (c NodeConfig) checkCertificate() error {
	conf, err := c.TLS()
	if err != nil {
		return fmt.Errorf("TLS configuration: %w", err)
	}
	if conf == nil || len(conf.Certificates) == 0 || len(conf.Certificates[0].Certificate) == 0 {
		return nil // it comes from a callback
	}
	leaf, err := x509.ParseCertificate(conf.Certificates[0].Certificate[0])
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	id, err := peer.ParseIdentity(leaf)
	if err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	if want := (peer.Identity{Cluster: c.Cluster, Role: peer.RoleServer, ID: string(c.ID)}); id != want {
		return fmt.Errorf("own certificate is that of %s, want %s", id, want)
	}
	return nil
}

// close ends the port, the calls of others and the calls to others.
func (w *network) close() error {
	close(w.closed)
	w.client.Close()
	var errs []error
	if w.trans != nil {
		errs = append(errs, w.trans.Close())
	}
	w.hangUp(func(peer.Identity) bool { return true })
	errs = append(errs, w.server.Close(), w.port.Close())
	if w.checks != nil {
		w.checks.Stop()
	}
	return errors.Join(errs...)
}

// ready reports whether raft and the keyring are there.
func (w *network) ready() bool {
	select {
	case <-w.node.opened:
		return true
	default:
		return false
	}
}

// admit is asked in each handshake. Raft's connections are for members alone; calls are looked at one
// by one. A leader dials a server as soon as it has taken it in, and one that is refused waits longer
// before it dials again than a start takes.
func (w *network) admit(id peer.Identity, alpn string) error {
	if alpn != peer.ALPNRaft {
		return nil
	}
	select {
	case <-w.node.opened:
	case <-w.closed:
		return net.ErrClosed
	case <-time.After(startPatience):
		return errors.New("raft does not run here yet")
	}
	if !slices.Contains(w.members(), id.ID) {
		return errors.New("not in the raft configuration")
	}
	return nil
}

// members returns the servers of the latest raft configuration or, while there is none, of the
// one that has taken this server in.
func (w *network) members() []string {
	if ids := servers(w.node.raft); len(ids) > 0 {
		return ids
	}
	return w.sponsors
}

// followMembers closes the connections of who is no member, each time the configuration has changed: one
// that came and went in between is in no list of before. Who joins, and is cut off, asks again. It runs
// until Close.
func (w *network) followMembers(ctx context.Context) {
	type state struct {
		configurations, restores uint64
		leader                   raft.ServerID // another one may have undone what was not committed
	}
	var seen state
	fsm := w.node.keys.fsm
	for {
		changed := fsm.changed.wait()
		if now := (state{fsm.configs.Load(), fsm.restores.Load(), w.node.Leader()}); now != seen {
			seen = now
			w.dropStrangers()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// recheckEvery is how often connections are held against the CAs of now.
const recheckEvery = 5 * time.Second

// followCertificates closes connections whose other end the CAs of now do not vouch for, and those that have
// outlived their certificates. It runs until Close.
func (w *network) followCertificates(ctx context.Context) {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := errors.Join(w.port.Recheck(w.node.cfg.TLS), w.dialer.Recheck()); err != nil {
			w.refusals.Do(func() { w.node.log.Warn("certificates of connections can't be looked at", "error", err) })
		}
	}
}

// dropStrangers closes all connections, of both ways, but those of members.
func (w *network) dropStrangers() {
	stranger := func(id peer.Identity) bool { return !slices.Contains(w.members(), id.ID) }
	w.port.Drop(stranger)
	w.client.CloseIdle()
	w.hangUp(stranger)
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.moved, func(id, _ string) bool { return stranger(peer.Identity{ID: id}) })
}

// hangUp closes connections of raft's that this server has made.
func (w *network) hangUp(to func(peer.Identity) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.dialed {
		if to(c.peer.Identity()) {
			delete(w.dialed, c)
			c.peer.NetConn().Close() // raft closes the rest, if it still uses it
		}
	}
}

// seldom does things at most once in ten seconds.
type seldom struct{ next atomic.Int64 } // a mono.Time

// Do does it, or leaves it.
func (s *seldom) Do(do func()) {
	next, at := s.next.Load(), mono.Now()
	if at >= mono.Time(next) && s.next.CompareAndSwap(next, int64(at.Add(10*time.Second))) {
		do()
	}
}

// seldomEach is seldom for each of some names. Names beyond maxSeldom in ten seconds have one turn in common.
type seldomEach struct {
	mu   sync.Mutex
	of   map[string]*seldom
	rest seldom
}

const maxSeldom = 64

// Do does it, or leaves it.
func (s *seldomEach) Do(name string, do func()) { s.turn(name).Do(do) }

func (s *seldomEach) turn(name string) *seldom {
	s.mu.Lock()
	defer s.mu.Unlock()
	if one := s.of[name]; one != nil {
		return one
	}
	if len(s.of) >= maxSeldom {
		now := int64(mono.Now())
		maps.DeleteFunc(s.of, func(_ string, one *seldom) bool { return one.next.Load() <= now })
	}
	if len(s.of) >= maxSeldom {
		return &s.rest
	}
	if s.of == nil {
		s.of = map[string]*seldom{}
	}
	one := new(seldom)
	s.of[name] = one
	return one
}

// dialed is a connection of raft's that this server has made.
type dialed struct {
	net.Conn
	peer *peer.Conn // below it
	net  *network
}

// Close implements net.Conn.
func (c *dialed) Close() error {
	c.net.mu.Lock()
	delete(c.net.dialed, c)
	c.net.mu.Unlock()
	return c.Conn.Close()
}

// Call implements Transport.
func (w *network) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	return w.call(ctx, to, pathKeys, request)
}

// call calls a server of the configuration.
func (w *network) call(ctx context.Context, to raft.ServerID, path string, body []byte) ([]byte, error) {
	s, known := w.node.serverOf(to)
	if !known {
		return nil, fmt.Errorf("server %q is not in the raft configuration", to)
	}
	return w.client.Call(ctx, string(to), string(s.Address), path, body)
}

// serve answers the calls of other servers.
func (w *network) serve(ctx context.Context, from peer.Identity, path string, body []byte) ([]byte, error) {
	if path == pathHello {
		w.noteMoved(from, body)
		w.noteFounders(from, body)
		return w.hello()
	}
	if !w.ready() {
		return nil, &peer.Refusal{Code: peer.NotReady}
	}
	switch path {
	case pathProof:
		return w.serveProof(ctx, from, body)
	case pathJoin:
		return w.serveJoin(ctx, from, body)
	}
	if !w.node.member(raft.ServerID(from.ID)) {
		return nil, &peer.Refusal{Code: peer.NotMember}
	}
	switch path {
	case pathKeys:
		return w.node.keys.ServePeer(ctx, raft.ServerID(from.ID), body)
	case pathEncrypt, pathDecrypt, pathSign, pathRotate, pathRemove, pathReady, pathStatus,
		pathAddServer, pathRemoveServer, pathJoinToken, pathWithdraw:
		return w.node.serveForwarded(ctx, from, path, body)
	}
	return nil, &peer.Refusal{Code: peer.Unsupported}
}

// raftTransport makes raft's transport on the port. It does not pipeline: at v1.7.3 a leader that
// is deposed under load can block for ever on a full pipeline, and its shutdown with it
// (hashicorp/raft issue 612). Entries go in batches all the same.
func (w *network) raftTransport() raft.Transport {
	w.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: w, MaxPool: 3, MaxRPCsInFlight: 1, Timeout: 10 * time.Second, Logger: w.node.log.Named("raft"),
	})
	w.checks = raftwire.New(w.trans, raftwire.Checks{
		View: w.raftView, Section: w.checkSection,
		Refused: func(err error) {
			w.refusals.Do(func() { w.node.log.Warn("raft: what a member sent is refused", "error", err) })
		},
	})
	return w.checks
}

// Dial implements raft.StreamLayer. The address has to be that of a server in the
// configuration, whose ID the other side must prove. It is looked for everywhere that it may be: so
// a cluster finds itself whose servers have all moved.
func (w *network) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if !w.ready() {
		return nil, fmt.Errorf("dial %s: not started yet", addr)
	}
	all := w.node.raft.GetConfiguration().Configuration().Servers
	i := slices.IndexFunc(all, func(s raft.Server) bool { return s.Address == addr })
	if i < 0 {
		return nil, fmt.Errorf("dial %s: no server of the raft configuration has that address", addr)
	}
	return w.dial(ctx, all[i].ID, string(addr))
}

// elsewhere is where a server of the configuration may be that is not found there.
func (w *network) elsewhere(id, addr string) []string {
	if !w.ready() {
		return nil
	}
	if s, known := w.node.serverOf(raft.ServerID(id)); known && string(s.Address) == addr {
		return w.places(s)[1:]
	}
	return nil
}

// places is where a server may be: as the configuration has it, as Peers has it, and as it has said itself.
func (w *network) places(s raft.Server) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := []string{string(s.Address)}
	for _, addr := range []string{w.node.cfg.Peers[s.ID], w.moved[string(s.ID)]} {
		if addr != "" && !slices.Contains(all, addr) {
			all = append(all, addr)
		}
	}
	return all
}

func (w *network) dial(ctx context.Context, id raft.ServerID, addr string) (net.Conn, error) {
	conn, err := w.dialer.Dial(ctx, string(id), addr, peer.ALPNRaft)
	if err != nil {
		return nil, err
	}
	c := &dialed{peer.RaftAnswers(conn), conn, w}
	w.mu.Lock()
	w.dialed[c] = true
	w.mu.Unlock()
	if !w.node.member(id) { // it was removed in between
		c.Close()
		return nil, fmt.Errorf("dial %s: server %q was removed", addr, id)
	}
	return c, nil
}

// Accept implements raft.StreamLayer.
func (w *network) Accept() (net.Conn, error) {
	c, err := w.raft.Accept()
	if err != nil {
		return nil, err
	}
	return peer.RaftRequests(c), nil
}

// Close implements raft.StreamLayer.
func (w *network) Close() error { return w.raft.Close() }

// Addr implements raft.StreamLayer: it is what raft takes for this server's address.
func (w *network) Addr() net.Addr { return address(w.node.cfg.Addr) }

// raftView is what this server's raft knows. Before raft is there nobody is admitted who could ask.
func (w *network) raftView() (raftwire.View, bool) {
	if !w.ready() {
		return raftwire.View{}, false
	}
	return raftwire.View{
		Term: w.node.raft.CurrentTerm(), Commit: w.node.raft.CommitIndex(),
		TermAt: func(index uint64) (uint64, bool) {
			var e raft.Log
			err := w.node.store.GetLog(index, &e)
			return e.Term, err == nil
		},
	}, true
}

// checkSection reads the keyring's section of a snapshot, if it has one, and returns a reader of all of it: one
// that is damaged, or of a newer build, would take the place of a good one on disk before raft finds out.
func (w *network) checkSection(r io.Reader) (io.Reader, error) {
	raw, err := readRaw(r)
	if err != nil {
		return r, err
	}
	if bytes.HasPrefix(raw, []byte(magic)) {
		if _, err := ringOf(raw, w.node.keys.fsm.build); err != nil {
			return r, err
		}
	}
	return io.MultiReader(bytes.NewReader(raw), r), nil
}
