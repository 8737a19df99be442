package keyringgrpc

// Peers: Config, its life, and who the members are.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	patience     = 10 * time.Second // of a dial, a handshake, a body
	callTimeout  = 30 * time.Second // of a call, on the server that answers
	recheckEvery = 5 * time.Second  // how often connections are looked at

	maxClients = 1024 // connections of clients, unless Config says otherwise
)

// Config configures New. ID, Cluster, Addr and TLS are required.
type Config struct {
	// ID is this server's ID in raft's configuration and in its certificate.
	ID raft.ServerID
	// Cluster is the cluster's name in the certificates.
	Cluster string
	// Addr is the host:port at which the other servers reach this one: the port of its grpc.Server. If raft
	// uses StreamLayer, it is this server's address in raft's configuration.
	Addr string
	// TLS returns this server's certificate and RootCAs: see keyring.TLSFiles, and keyring.ServerTLS for the
	// other fields. It is called for each connection and every 5 seconds, and must not block. Its result is
	// not modified.
	TLS func() (*tls.Config, error)
	// Clients returns the configuration for connections of clients, which are not servers of the cluster. Its
	// ClientAuth says which certificates they need; if ClientCAs is nil, RootCAs is used. It is called for
	// each connection. It may be the same function as TLS: then clients need no certificate. Nil means that
	// only servers may connect.
	Clients func() (*tls.Config, error)
	// MaxClients limits the number of client connections at a time. More are rejected. Zero means 1024.
	MaxClients int
	// AddrOf returns the host:port of a member's grpc.Server, if that differs from its address in raft's
	// configuration. It must not block. Nil means that it does not differ.
	AddrOf func(raft.Server) (string, error)
	// Logger receives who was rejected and why, at most 10 lines a second, and no bodies. Nil logs nothing.
	Logger hclog.Logger
}

// Peers connects one server to the other servers of its cluster over gRPC. It implements keyring.Transport.
type Peers struct {
	cfg     Config
	log     refusals
	conns   conns
	calls   places
	raft    *streamLayer
	life    context.Context // ends with Close
	end     context.CancelFunc
	dialRaw func(ctx context.Context, network, addr string) (net.Conn, error)
	loops   sync.WaitGroup
	member  atomic.Pointer[func() []raft.Server] // of attach
	keys    atomic.Pointer[host]                 // of start

	newcomer            atomic.Bool   // see beginCatchUp
	heartbeat, election time.Duration // raft's timeouts when it is no newcomer any more

	mu     sync.Mutex // guards below
	closed bool
	links  map[raft.ServerID]*link
}

// host is what Peers needs of a Keyring.
type host interface {
	ServePeer(ctx context.Context, from raft.ServerID, request []byte) ([]byte, error)
	Changed() <-chan struct{}
	MembershipVersion() uint64
	Leading() error
	PromoteServers(ctx context.Context) error
}

// New returns the Peers of a server. It answers nobody before Open. The error says what is wrong with the
// configuration or with this server's own certificate.
func New(cfg Config) (*Peers, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.MaxClients == 0 {
		cfg.MaxClients = maxClients
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("keyring over gRPC: %w", err)
	}
	p := &Peers{
		cfg: cfg, log: refusals{to: cfg.Logger}, dialRaw: new(net.Dialer).DialContext, links: map[raft.ServerID]*link{},
		conns: conns{maxClients: cfg.MaxClients, open: map[*conn]bool{}}, calls: places{of: map[raft.ServerID]*place{}},
	}
	p.life, p.end = context.WithCancel(context.Background())
	p.raft = newStreamLayer(p)
	return p, nil
}

func (c Config) check() error {
	if c.ID == "" || c.TLS == nil {
		return errors.New("ID is empty, or TLS is nil")
	}
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		return fmt.Errorf("Addr: %w", err)
	}
	if c.MaxClients < 0 {
		return fmt.Errorf("MaxClients %d is negative", c.MaxClients)
	}
	nobody := func(raft.ServerID) error { return nil }
	if _, err := keyring.ServerTLS(c.TLS, c.Cluster, nobody, callProtocol); err != nil {
		return err
	}
	if _, err := keyring.ClientTLS(c.TLS, c.Cluster, c.ID, callProtocol); err != nil {
		return err
	}
	if err := c.checkOwn(); err != nil {
		return fmt.Errorf("own certificate: %w", err)
	}
	if c.Clients != nil {
		if _, err := clientConfig(c.Clients, nil); err != nil {
			return err
		}
	}
	return nil
}

// checkOwn requires that this server's certificate names it: else the others refuse it one by one, in their
// logs. One that comes from a callback is not looked at.
func (c Config) checkOwn() error {
	base, err := c.TLS()
	if base == nil || len(base.Certificates) == 0 {
		return err
	}
	leaf, err := leafOf(&base.Certificates[0])
	if err != nil {
		return err
	}
	inTime := *leaf
	inTime.NotAfter = time.Now().Add(time.Hour) // whether it has ended is for the others to say: it may be replaced in time
	id, err := keyring.PeerID(&tls.ConnectionState{
		HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{&inTime}},
	}, c.Cluster)
	if err == nil && id != c.ID {
		err = fmt.Errorf("it is that of server %q, want %q", id, c.ID)
	}
	return err
}

// Open opens the keyring, as keyring.Open does. From then on Peers answers the other servers. Set Raft, FSM,
// Dir and KEKs as for keyring.Open; ID, Transport, Logger and Certificates default to those of Peers. While
// this server leads, servers that were added get their votes: see Keyring.PromoteServers. Call Open as soon
// as raft.NewRaft has returned: until then raft reaches no other server, and no server may connect. After an
// error it may be called again.
func (p *Peers) Open(ctx context.Context, cfg keyring.Config) (*keyring.Keyring, error) {
	switch {
	case cfg.ID == "":
		cfg.ID = p.cfg.ID
	case cfg.ID != p.cfg.ID:
		return nil, fmt.Errorf("keyring over gRPC: the keyring's ID is %q, want %q", cfg.ID, p.cfg.ID)
	}
	if cfg.Transport == nil {
		cfg.Transport = p
	}
	if cfg.Logger == nil {
		cfg.Logger = p.cfg.Logger.Named("keyring")
	}
	if cfg.Certificates == nil {
		cfg.Certificates = p.certificates
	}
	if r := cfg.Raft; r != nil {
		if err := p.beginCatchUp(r); err != nil {
			return nil, err
		}
		p.follow(r)
	}
	k, err := keyring.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p.start(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.loops.Go(func() { p.releaseElections(cfg.Raft, k) })
	}
	return k, nil
}

// follow has raft's members let in, and ends raft's connections when raft has been told to shut down.
func (p *Peers) follow(r *raft.Raft) {
	p.attach(func() []raft.Server { return r.GetConfiguration().Configuration().Servers })
	r.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool { // called by raft itself
		if state, is := o.Data.(raft.RaftState); is && state == raft.Shutdown {
			p.raft.hangUp()
		}
		return false
	}))
}

// attach tells who the members are. Before, nobody is let in.
func (p *Peers) attach(members func() []raft.Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.member.Swap(&members) == nil && !p.closed {
		p.loops.Go(p.recheck)
	}
}

// start answers the other servers with a keyring, unless that is closed by now.
func (p *Peers) start(k host) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.keys.Store(&k)
	p.loops.Go(func() { p.followMembers(k) })
	p.loops.Go(func() { p.promote(k) })
}

// Close ends the connections to and from other servers, including those of raft, and rejects new ones,
// including those of clients. It waits for the goroutines of this package, but not for calls that the
// grpc.Server still answers. After 10 seconds it returns an error: then a function of Config has not
// returned. It may be called again.
//
// Before Close, the host closes the Keyring and shuts down raft. That waits for no server that hangs, because
// raft's connections end as soon as the shutdown begins. After Close, the host stops the grpc.Server.
func (p *Peers) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.end()
	p.closeLinks(func(raft.ServerID) bool { return true })
	p.raft.Close()
	p.conns.close()
	ended := make(chan struct{})
	go func() {
		p.loops.Wait()
		close(ended)
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-ended:
		return nil
	case <-late.C:
		return fmt.Errorf("keyring over gRPC: close: Config.TLS or AddrOf has not returned in %v", patience)
	}
}

// members are the servers of raft's latest configuration.
func (p *Peers) members() ([]raft.Server, error) {
	members := p.member.Load()
	if members == nil {
		return nil, errors.New("raft does not run here yet")
	}
	return (*members)(), nil
}

// admits is whether a server may have a connection. A server that is to be added learns from raft who the
// others are: until it has caught up, all may that have a certificate of the cluster.
func (p *Peers) admits(id raft.ServerID) error {
	all, err := p.members()
	if err != nil {
		return err
	}
	if len(all) > 0 && !p.newcomer.Load() && !slices.ContainsFunc(all, func(s raft.Server) bool { return s.ID == id }) {
		return errors.New("not in the raft configuration")
	}
	return nil
}

// find returns the member for which is returns true.
func (p *Peers) find(what string, is func(raft.Server) bool) (raft.Server, error) {
	all, err := p.members()
	if err != nil {
		return raft.Server{}, err
	}
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i], nil
	}
	return raft.Server{}, fmt.Errorf("%s is not in the raft configuration", what)
}

func (p *Peers) memberOf(id raft.ServerID) (raft.Server, error) {
	return p.find(fmt.Sprintf("server %q", id), func(s raft.Server) bool { return s.ID == id })
}

func (p *Peers) memberAt(addr string) (raft.Server, error) {
	return p.find("a server at "+addr, func(s raft.Server) bool { return string(s.Address) == addr })
}

// addr returns where a member is to be called.
func (p *Peers) addr(id raft.ServerID) (string, error) {
	s, err := p.memberOf(id)
	if err != nil {
		return "", err
	}
	return p.addrOf(s)
}

func (p *Peers) addrOf(s raft.Server) (string, error) {
	if p.cfg.AddrOf != nil {
		return p.cfg.AddrOf(s)
	}
	return string(s.Address), nil
}

// followMembers ends the connections of servers that were removed, until Close.
func (p *Peers) followMembers(k host) {
	for seen := uint64(0); ; {
		changed := k.Changed()
		if now := k.MembershipVersion(); now != seen {
			seen = now
			p.sweep(p.wrongMember)
		}
		select {
		case <-changed:
		case <-p.life.Done():
			return
		}
	}
}

// promote gives servers that were added their votes, on the leader, once they hold every key, until Close.
func (p *Peers) promote(k host) {
	for {
		changed := k.Changed()
		var again <-chan time.Time
		err := k.Leading()
		if err == nil {
			err = k.PromoteServers(p.life)
		}
		switch {
		case errors.Is(err, keyring.ErrClosed):
			return
		case err != nil && !errors.Is(err, keyring.ErrNotLeader) && !errors.Is(err, keyring.ErrNotReady):
			changed, again = nil, time.After(recheckEvery) // to have tried is a change by itself
		}
		select {
		case <-changed:
		case <-again:
		case <-p.life.Done():
			return
		}
	}
}

// recheck looks at each connection now and then, until Close. It begins before there can be any.
func (p *Peers) recheck() {
	ticks := time.NewTicker(recheckEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-p.life.Done():
		}
		if p.life.Err() != nil { // both may have come
			return
		}
		p.sweep(p.wrongMember)
		base, err := p.cfg.TLS()
		if err != nil {
			p.log.note("could not read the certificates", "error", err)
		}
		if usable(base, err) != nil {
			continue
		}
		p.sweep(func(c *conn) error { return c.outlived(base) })
	}
}

// sweep ends the connections that are wrong, and those to servers that are no members.
func (p *Peers) sweep(wrong func(*conn) error) {
	for _, c := range p.conns.all() {
		if err := wrong(c); err != nil {
			c.cut()
			if c.dialled != "" && c.protocol == callProtocol {
				p.retire(c.server) // its grpc.ClientConn may take the next call before it has noticed
			}
			p.log.note("closed a connection", "server", c.server, "error", err)
		}
	}
	p.hangUp()
}

// wrongMember is why a connection is none to or from a member. A member that has moved is dialled where it is
// now.
func (p *Peers) wrongMember(c *conn) error {
	if err := p.admits(c.server); err != nil || c.dialled == "" {
		return err
	}
	if addr, err := p.addr(c.server); err == nil && addr != c.dialled {
		return fmt.Errorf("it is at %s now, no longer at %s", addr, c.dialled)
	}
	return nil
}
