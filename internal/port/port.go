package port

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/raftwire"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// startPatience is how long a connection of raft's waits for raft to start.
const startPatience = time.Second

// recheckEvery is how often connections are checked against the present CAs.
const recheckEvery = 5 * time.Second

// PathKeyring is the path of the calls between the keyrings.
const PathKeyring = "/keyring"

// Config is what Listen needs.
type Config struct {
	ID      raft.ServerID
	Cluster string // the cluster's name in the certificates
	Addr    string // the host:port at which the other servers reach this one
	Listen  string // the host:port to listen at
	// Listener is used in place of listening at Listen, unless it is nil. The Port closes it.
	Listener net.Listener
	// TLS returns this server's certificate and the CAs. It is called for each connection.
	TLS func() (*tls.Config, error)
	// Peers are further addresses at which servers are tried that are not found where raft's configuration says.
	Peers  map[raft.ServerID]string
	Errors ErrorCodes // that keep their identity in this server's answers as the leader
	Logger hclog.Logger
	// Fresh is asked before Start by which servers the cluster is to be bootstrapped, see HelloAnswer.InitialServers, if this
	// server knows of none yet, and told what another server has said with its question. Nil means that it is not known.
	Fresh func(from raft.ServerID, body []byte) (initial []string, fresh bool)
	// DialContext makes the TCP connections. Nil means net.Dialer's. It is for tests.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Handler answers a call of another server, which has proved that it is the server of that ID. An error that is a
// *peer.Refusal goes to the caller as it is; of any other one the caller learns only that there was one.
type Handler func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error)

// Port is a listener of one server, and its connections to the ports of the other servers, with mutual TLS. On it
// run raft, over its StreamLayer, and the calls of the keyrings, for which it is the keyring.Transport. Each server proves its ID with its certificate, and has to be in raft's latest configuration.
type Port struct {
	cfg       Config
	port      *peer.Port
	server    *peer.Server
	client    *peer.Client
	dialer    *peer.Dialer
	raftConns net.Listener
	running   chan struct{} // closed by Start
	closed    chan struct{}
	loops     sync.WaitGroup

	// Log lines that another server can cause.
	failedCalls, refusedRequests mono.Limit

	dialing context.Context // of raft's connections, ended by endRaft
	endDial context.CancelFunc

	log       raft.LogStore          // set by RaftTransport
	inner     *raft.NetworkTransport // likewise
	transport *raftwire.Transport    // around inner

	parked func() error // set by Attach

	introduction        atomic.Pointer[introduction] // of a server that has joined, until it has caught up
	introducedBefore    bool                         // it is from before the last start; set by Attach
	heartbeat, election time.Duration                // raft's timeouts after that; zero if no election is held; set by Attach
	joining             atomic.Bool                  // Join asks

	raft  atomic.Pointer[raft.Raft] // set by Attach
	host  Host                      // set by Start
	calls map[string]Handler        // likewise
	open  map[string]Handler        // calls that a server may make which is no member

	tlsCalls     gate.Calls // of Config.TLS
	certificates certificates

	removed   atomic.Pointer[[]raft.ServerID] // by what these servers say; nil or empty: no
	displaced atomic.Pointer[string]          // why another server has this one's place; nil or empty: none has

	refused mono.Limits // log lines about servers that may not join
	claims  claims

	mu     sync.Mutex         // guards below
	over   bool               // Close was called
	end    context.CancelFunc // of the loops; nil before Start
	dialed map[*dialed]bool
	moved  map[raft.ServerID]string // where members have said that they are
}

// Listen opens the port. Before Start it answers nothing but what it is, see Hello.
func Listen(cfg Config) (*Port, error) {
	p, err := listen(cfg)
	if err != nil && cfg.Listener != nil {
		cfg.Listener.Close()
	}
	return p, err
}

func listen(cfg Config) (*Port, error) {
	p := &Port{
		running: make(chan struct{}), closed: make(chan struct{}),
		dialed: map[*dialed]bool{}, moved: map[raft.ServerID]string{},
	}
	cfg.TLS = p.watchTLS(cfg.TLS)
	p.cfg = cfg
	p.dialer = &peer.Dialer{Cluster: cfg.Cluster, TLS: cfg.TLS, DialContext: cfg.DialContext}
	p.dialing, p.endDial = context.WithCancel(context.Background())
	p.dialer.Elsewhere = p.elsewhere
	p.open = map[string]Handler{pathHello: p.serveHello, pathProof: p.whenRunning(p.serveProof), pathJoin: p.whenRunning(p.serveJoin)}
	conf, err := peer.ServerConfig(cfg.TLS, cfg.Cluster, p.admit, peer.ALPNRaft, peer.ALPNPeer)
	if err != nil {
		return nil, fmt.Errorf("port: %w", err)
	}
	if err := cfg.checkCertificate(); err != nil {
		return nil, fmt.Errorf("port: %w", err)
	}
	ln := cfg.Listener
	if ln == nil {
		if ln, err = net.Listen("tcp", cfg.Listen); err != nil {
			return nil, fmt.Errorf("port: %w", err)
		}
	}
	p.port = peer.Listen(ln, peer.PortOptions{
		TLS:    conf,
		Member: func(id peer.Identity) bool { return p.Running() && p.isMember(id) },
		OnRefuse: func(remote net.Addr, err error) {
			cfg.Logger.Warn("rejected a connection", "from", remote, "error", err)
		},
	})
	p.client = peer.NewClient(p.dialer)
	p.raftConns = p.port.Listener(peer.ALPNRaft)
	p.server = peer.Serve(p.port.Listener(peer.ALPNPeer), p.serve, peer.ServerOptions{
		OnError: func(from peer.Identity, path string, err error) {
			p.failedCalls.Do(func() { cfg.Logger.Warn("could not answer a call", "from", from, "path", path, "error", err) })
		},
	})
	return p, nil
}

// checkCertificate requires that this server's own certificate names it: the others would refuse it one by one, in
// their logs.
func (c Config) checkCertificate() error {
	conf, err := peer.Load(c.TLS)
	if err != nil {
		return err
	}
	return peer.CheckOwn(conf, c.identity())
}

// identity is what this server's own certificate has to name.
func (c Config) identity() peer.Identity {
	return peer.Identity{Cluster: c.Cluster, Role: peer.RoleServer, ID: string(c.ID)}
}

// RaftTransport returns raft's transport on the port. It is called once, before Start. Log is raft's own log; section
// checks the start of a snapshot and returns a reader of all of it.
//
// The transport does not pipeline: at v1.7.3 a leader that is deposed under load can block for ever on a full
// pipeline, and its shutdown with it (hashicorp/raft issue 612). Entries go in batches all the same.
func (p *Port) RaftTransport(log raft.LogStore, section func(io.Reader) (io.Reader, error)) raft.Transport {
	p.log = log
	p.inner = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: p.StreamLayer(), MaxPool: 3, MaxRPCsInFlight: 1, Timeout: 10 * time.Second, Logger: p.cfg.Logger.Named("raft"),
	})
	p.transport = raftwire.New(p.inner, raftwire.Checks{
		View:    func() (raftwire.View, error) { return p.raftView(log) },
		Section: section,
		Refused: func(err error) {
			p.refusedRequests.Do(func() { p.cfg.Logger.Warn("rejected a request of a member to raft", "error", err) })
		},
	})
	return p.transport
}

// raftView is what this server's raft knows. Before raft runs nobody is admitted who could ask.
func (p *Port) raftView(log raft.LogStore) (raftwire.View, error) {
	if !p.Running() {
		return raftwire.View{}, errors.New("raft does not run here yet")
	}
	if err := p.parked(); err != nil {
		return raftwire.View{}, err
	}
	r := p.raft.Load()
	return raftwire.View{
		Term: r.CurrentTerm(), Commit: r.CommitIndex(),
		TermAt: func(index uint64) (uint64, bool) {
			var e raft.Log
			err := log.GetLog(index, &e)
			return e.Term, err == nil
		},
	}, nil
}

// Attach tells the Port its raft, and what says why raft takes nothing from other servers now. It is called before the
// keyring is opened, which makes calls at once, and before Start.
func (p *Port) Attach(r *raft.Raft, parked func() error) error {
	p.parked = parked
	if err := p.beginCatchUp(r); err != nil {
		return err
	}
	p.raft.Store(r)
	r.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool { // called by raft itself
		if state, is := o.Data.(raft.RaftState); is && state == raft.Shutdown {
			p.endRaft()
		}
		return false
	}))
	return nil
}

// Start has the Port answer the members' calls, by path, and who asks to join, and closes connections of servers that are
// members no longer. From then on it gives servers that have joined a vote, on the leader, keeps this server's address in
// the raft configuration, and looks whether this server was removed, and at certificates. It is called once, after Attach, when the keyring runs.
// After Close it does nothing, and the error matches net.ErrClosed.
func (p *Port) Start(h Host, calls map[string]Handler) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return net.ErrClosed
	}
	p.host, p.calls = h, calls
	ctx, end := context.WithCancel(context.Background())
	p.end = end
	close(p.running)
	p.loops.Go(func() { p.followMembers(ctx) })
	p.loops.Go(func() { p.catchUp(ctx) })
	p.loops.Go(func() { p.followCertificates(ctx) })
	p.loops.Go(func() { p.watchCertificates(ctx) })
	p.loops.Go(func() { p.onChange(ctx, time.Minute, p.promote) })
	p.loops.Go(func() { p.watchRemoval(ctx) })
	p.loops.Go(func() { p.onChange(ctx, 3*time.Second, p.keepAddress) }) // no other server may find it meanwhile
	return nil
}

// Running reports whether Start was called.
func (p *Port) Running() bool {
	select {
	case <-p.running:
		return true
	default:
		return false
	}
}

// endRaft closes the connections that raft has made, and refuses it others. It is called when raft has been told to shut
// down: raft waits for the answers of servers that hang, or can't be reached, and for as long as it takes to dial them.
func (p *Port) endRaft() {
	p.endDial()
	p.hangUp(func(peer.Identity) bool { return true })
}

// Close ends the port, the calls of others and the calls to others, and Join. Raft has to be shut down before.
func (p *Port) Close() error {
	p.mu.Lock()
	p.over = true
	if p.end != nil {
		p.end()
	}
	p.mu.Unlock()
	p.loops.Wait()
	close(p.closed)
	p.client.Close()
	var errs []error
	if p.inner != nil {
		errs = append(errs, p.inner.Close())
	}
	p.endRaft()
	errs = append(errs, p.port.Close(), p.server.Close()) // this one waits for handlers: they must not hold on to the listener
	if p.transport != nil {
		p.transport.Stop()
	}
	return errors.Join(errs...)
}

// admit is asked in each handshake. Raft's connections are for members alone; calls are checked one by one. A
// leader dials a server as soon as it has added it, and when it is refused it waits longer before it dials again than
// a start takes.
func (p *Port) admit(id peer.Identity, alpn string) error {
	if alpn != peer.ALPNRaft {
		return nil
	}
	select {
	case <-p.running:
	case <-p.closed:
		return net.ErrClosed
	case <-time.After(startPatience):
		return errors.New("raft does not run here yet")
	}
	if !p.isMember(id) {
		return errors.New("not in the raft configuration")
	}
	return nil
}

// serve answers the calls of other servers.
func (p *Port) serve(ctx context.Context, from peer.Identity, path string, body []byte) ([]byte, error) {
	id := raft.ServerID(from.ID)
	if h := p.open[path]; h != nil {
		return h(ctx, id, body)
	}
	if !p.Running() {
		return nil, &peer.Refusal{Code: peer.NotReady}
	}
	if !p.isMember(from) {
		return nil, &peer.Refusal{Code: peer.NotMember}
	}
	if h := p.calls[path]; h != nil {
		return h(ctx, id, body)
	}
	return nil, &peer.Refusal{Code: peer.Unsupported}
}

// Leader returns the ID of the leader, or nothing if none is known. It is called after Attach.
func (p *Port) Leader() raft.ServerID {
	_, leader := p.raft.Load().LeaderWithID()
	return leader
}

// Members returns the servers of raft's latest configuration, in its order. There are none before Attach.
func (p *Port) Members() []raft.Server {
	if r := p.raft.Load(); r != nil {
		return r.GetConfiguration().Configuration().Servers
	}
	return nil
}

// Member returns a server of raft's latest configuration.
func (p *Port) Member(id raft.ServerID) (raft.Server, bool) {
	return Find(p.Members(), id)
}

// Find returns the server of that ID.
func Find(all []raft.Server, id raft.ServerID) (raft.Server, bool) {
	i := slices.IndexFunc(all, func(s raft.Server) bool { return s.ID == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return all[i], true
}

// KnowsMembers reports whether this server knows who is a member: else it admits nobody. It is called after Attach.
func (p *Port) KnowsMembers() bool { return len(p.Members()) > 0 || p.introduction.Load() != nil }

// isMember reports whether a server is in raft's latest configuration or, until this server has caught up, in the one that
// has added it.
func (p *Port) isMember(id peer.Identity) bool {
	_, member := p.Member(raft.ServerID(id.ID))
	return member || p.introduces(id.ID)
}

// followMembers closes the connections of servers that are not members, each time the configuration has changed. It
// counts the changes: a server that was added and removed in between is in none of the lists that it sees. A server
// that joins, and is cut off, asks again. It runs until Close.
func (p *Port) followMembers(ctx context.Context) {
	type state struct {
		version uint64
		leader  raft.ServerID // another one may have undone what was not committed
	}
	var seen state
	for {
		changed := p.host.Changed()
		if now := (state{p.host.MembershipVersion(), p.Leader()}); now != seen {
			seen = now
			p.dropNonMembers()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// followCertificates closes connections whose other end the present CAs do not vouch for, and those that have
// outlived their certificates. It runs until Close.
func (p *Port) followCertificates(ctx context.Context) {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := errors.Join(p.port.Recheck(p.cfg.TLS), p.dialer.Recheck()); err != nil {
			p.refusedRequests.Do(func() { p.cfg.Logger.Warn("could not check the certificates of connections", "error", err) })
		}
	}
}

// dropNonMembers closes all connections, in both directions, but those of members.
func (p *Port) dropNonMembers() {
	gone := func(id peer.Identity) bool { return !p.isMember(id) }
	p.port.Drop(gone)
	p.client.CloseIdle()
	p.hangUp(gone)
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.moved, func(id raft.ServerID, _ string) bool { return gone(peer.Identity{ID: string(id)}) })
}
