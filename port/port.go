package port

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/peer"
	inner "example.com/keyring/internal/port"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Config configures Listen.
type Config struct {
	// ID is this server's ID in the raft configuration and in its certificate. Required.
	ID raft.ServerID
	// Cluster is the cluster's name in the certificates: 1 or more letters, digits, dots, dashes and
	// underscores. Required.
	Cluster string
	// Addr is the host:port on which this server listens and at which the others reach it, and its address in
	// the raft configuration: a name or an IP address of this server, and a port from 1 to 65535. Required.
	Addr string
	// Advertise is the host:port at which the others reach this server, if it differs from Addr. Then Addr
	// may be 0.0.0.0:7900 or :7900. Empty means Addr.
	Advertise string
	// Listener, if set, is used instead of listening on Addr. The Port closes it, even if Listen fails.
	Listener net.Listener
	// TLS returns this server's certificate and RootCAs: see keyring.TLSFiles, and keyring.ServerTLS for the
	// other fields. The certificate has keyring://<cluster>/server/<id> as a URI SAN, and is for both server
	// and client authentication. TLS is called for each connection and every 5 seconds, so that certificates
	// can be replaced. A connection ends when the certificate of either end expires, and within 5 seconds
	// when RootCAs or ClientCAs no longer vouch for the other end, or VerifyPeerCertificate or
	// VerifyConnection rejects it. TLS must not block. Required.
	TLS func() (*tls.Config, error)
	// Addresses are additional addresses of servers. A server that does not answer at its address in the raft
	// configuration is tried there too; it must still prove its ID. Nil means none.
	Addresses map[raft.ServerID]string
	// Logger receives who was rejected and why. Nil logs nothing.
	Logger hclog.Logger

	dial func(ctx context.Context, network, addr string) (net.Conn, error) // in place of net.Dialer's, for tests
}

// advertised is the address at which the others reach this server.
func (c Config) advertised() string { return cmp.Or(c.Advertise, c.Addr) }

// check says everything that is wrong with the configuration.
func (c Config) check() error {
	var wrong []error
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if err := peer.CheckServerID(string(c.ID)); err != nil {
		say("ID: %w", err)
	}
	if c.Cluster == "" {
		say("Cluster is empty")
	}
	if c.TLS == nil {
		say("TLS is nil")
	}
	if err := peer.CheckAddress(c.advertised()); err != nil && c.Advertise != "" {
		say("Advertise: %w", err)
	} else if err != nil {
		say("Addr: %w; set Advertise if this server only listens on Addr", err)
	}
	for id, addr := range c.Addresses {
		if err := peer.CheckAddress(addr); err != nil {
			say("Addresses: server %s: %w", id, err)
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("port configuration: %w", errors.Join(wrong...))
	}
	return nil
}

// Port is one server's port. Its methods are safe for concurrent use.
type Port struct {
	cfg  Config
	port *inner.Port

	mu       sync.Mutex // guards below
	opened   bool
	handlers map[string]Handler // not changed after Open
	once     sync.Once
	closed   error
}

// Listen opens the port. Until Open it rejects all connections. An invalid configuration is rejected with all
// that is wrong in one error, including a certificate that names another server.
func Listen(cfg Config) (*Port, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if err := cfg.check(); err != nil {
		if cfg.Listener != nil {
			err = errors.Join(err, cfg.Listener.Close())
		}
		return nil, err
	}
	p, err := inner.Listen(inner.Config{
		ID: cfg.ID, Cluster: cfg.Cluster, Addr: cfg.advertised(), Listen: cfg.Addr, Listener: cfg.Listener, TLS: cfg.TLS,
		Peers: cfg.Addresses, Errors: inner.Errors, Logger: cfg.Logger, DialContext: cfg.dial,
	})
	if err != nil {
		return nil, err
	}
	return &Port{cfg: cfg, port: p, handlers: map[string]Handler{}}, nil
}

// RaftTransport returns the transport for raft.NewRaft. Its LocalAddr is this server's address in the raft
// configuration. log is the store of raft's log; keys is the FSM of the keyring, whose section is the first
// of raft's snapshots. The transport passes only harmless requests to raft: it splits large ones, and rejects
// and logs those, from any server, on which raft would panic or from which it could not recover. It sends no
// entry of more than keyring.MaxCommand bytes: a host must not propose one, because raft would commit nothing
// after it. Call RaftTransport once, before Open.
//
// A server that has joined begins no election before it has caught up with the cluster, because the first
// entries that it gets may say that it is the only voter. If log is also a raft.StableStore, as raft-boltdb's
// is, the Port notes that there. Open then rejects a server that was restarted before it had caught up and
// might be elected. If a host makes such a server the only one by raft.RecoverCluster, it must delete the
// note first: Set the key keyring.introduction to nothing.
func (p *Port) RaftTransport(log raft.LogStore, keys *keyring.FSM) raft.Transport {
	return p.port.RaftTransport(log, keys.CheckSnapshot)
}

// StreamLayer returns raft's connections, for a host that makes its own raft.NetworkTransport. They connect
// members only. The requests on them are not checked: see RaftTransport. Its Close ends raft's connections,
// but not the Port.
func (p *Port) StreamLayer() raft.StreamLayer { return p.port.StreamLayer() }

// Join asks the cluster to add this server, or to readmit it if it is a member that has lost its raft log.
// When Join returns nil, this server is a member without a vote. Call it before raft is started, if raft's
// log is empty and there is no snapshot, and do not bootstrap: a voter that comes back without its log may
// vote twice. Join may be repeated, also after a crash.
//
//	last, err := log.LastIndex()
//	...
//	old, err := snapshots.List()
//	...
//	if last == 0 && len(old) == 0 {
//		err = p.Join(ctx, servers, token)
//	}
//
// servers are servers of the cluster: each as id@host:port, or as host:port with a token from
// keyring.MakeJoinToken. Without a token the cluster adds this server if it is a member, or was added with
// keyring.AddServer. This server trusts only a server that proves an ID from servers, one that such a server
// names as the leader, or one that knows the token.
//
// A host may keep its own call by which servers join. On the leader that call uses keyring.AddServer with the
// new server's ID and address instead of raft's AddVoter, and answers with the members. On any server these
// are, in the form for Join,
//
//	for _, s := range r.GetConfiguration().Configuration().Servers {
//		servers = append(servers, string(s.ID)+"@"+string(s.Address))
//	}
//
// That call needs TLS and must authenticate both ends: a server that it admits gets every key, and its answer
// decides which cluster is joined.
//
// While Join waits, the log says, at level Warn, why each of the servers can't be used: once for each cause,
// then seldom. When ctx ends, the error says the same.
func (p *Port) Join(ctx context.Context, servers []string, token string) error {
	var others []inner.Candidate
	for _, text := range servers {
		c, err := inner.ParseCandidate(text)
		if err != nil {
			return fmt.Errorf("join: %w", err)
		}
		others = append(others, c)
	}
	if len(others) == 0 {
		return errors.New("join: servers is empty")
	}
	if err := inner.Provable(others, token); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opened {
		return errors.New("join: raft has started already: call Join before raft is started")
	}
	return p.port.Join(ctx, others, token)
}

// Open opens the keyring, as keyring.Open does. From then on the Port answers the other servers, including
// their requests to raft. Set Raft, FSM, Dir and KEKs as for keyring.Open; ID, Transport and Logger default
// to the Port's. Call Open as soon as raft is started: until then raft reaches no other server. A raft
// without a configuration is rejected, unless Join was called: a host that calls BootstrapCluster of its
// *raft.Raft first waits for the Error of the future. After an error Open may be called again. After Close,
// which may come meanwhile, the error matches net.ErrClosed.
//
// From then on the leader's Port gives a vote to each member that has none and holds every key, except
// permanent non-voters, as a Node does: see keyring.PromoteServers. If the raft configuration has another
// address of this server, the Port tells the leader. A server that knows no leader asks the others whether it
// was removed, and reports that in Status.
func (p *Port) Open(ctx context.Context, cfg keyring.Config) (*keyring.Keyring, error) {
	switch {
	case cfg.ID == "":
		cfg.ID = p.cfg.ID
	case cfg.ID != p.cfg.ID:
		return nil, fmt.Errorf("port: the keyring's ID is %s, and the port's is %s", cfg.ID, p.cfg.ID)
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
	cfg.Problems = p.problemsAnd(cfg.Problems)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opened {
		return nil, errors.New("port: Open was called already")
	}
	if cfg.Raft != nil {
		if err := p.port.Attach(cfg.Raft, func() error { return nil }); err != nil {
			return nil, err
		}
	}
	if cfg.Raft != nil && !p.port.KnowsMembers() {
		return nil, errors.New("port: raft has no configuration, so no other server would be admitted: bootstrap the cluster and wait for that, as in r.BootstrapCluster(servers).Error(), or call Join before raft is started")
	}
	keys, err := keyring.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := p.port.Start(host{keys}, p.calls(keys)); err != nil {
		return nil, fmt.Errorf("port: %w", errors.Join(err, keys.Close()))
	}
	p.opened = true
	return keys, nil
}

// certificates are those that the port knows of.
func (p *Port) certificates() (all []keyring.Certificate, err error) {
	known, err := p.port.Certificates()
	for _, c := range known {
		all = append(all, keyring.Certificate(c))
	}
	return all, err
}

// problemsAnd returns a function that returns what is wrong here, and the host's problems, which may be nil.
func (p *Port) problemsAnd(hosts func() []keyring.Problem) func() []keyring.Problem {
	return func() (all []keyring.Problem) {
		for _, q := range p.port.Problems() {
			all = append(all, keyring.Problem{Kind: keyring.ProblemKind(q.Kind), Severity: keyring.Severity(q.Severity), Server: q.Server, Since: q.Since, Detail: q.Detail})
		}
		if hosts != nil {
			all = append(all, hosts()...)
		}
		return all
	}
}

// Call implements keyring.Transport.
func (p *Port) Call(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
	return p.port.Call(ctx, to, request)
}

// closePatience is how long Close waits.
const closePatience = 10 * time.Second

// Close closes the port and all connections. It ends the contexts of the calls in progress and waits for
// them; Join ends too. Close the keyring and shut down raft before. Close waits 10 seconds for Config.TLS and
// for Handlers. If one has not returned by then, the error says so, and the rest is done when it returns. A
// second Close returns the same result.
func (p *Port) Close() error {
	p.once.Do(func() { p.closed = p.close() })
	return p.closed
}

func (p *Port) close() error {
	ended := make(chan error, 1)
	go func() { ended <- p.port.Close() }()
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		return fmt.Errorf("close: Config.TLS or a call has not ended in %v: %w", closePatience, gate.ErrLeft)
	}
}

// host is the keyring as the port asks it.
type host struct{ *keyring.Keyring }

// LeaderProof implements inner.Host.
func (h host) LeaderProof(c inner.JoinConn, token string) ([]byte, error) {
	return h.Keyring.LeaderProof(keyring.JoinConn(c), token)
}

// AcceptJoin implements inner.Host.
func (h host) AcceptJoin(ctx context.Context, c inner.JoinConn, token string, proof []byte) error {
	return h.Keyring.AcceptJoin(ctx, keyring.JoinConn(c), token, proof)
}

// Move implements inner.Host.
func (h host) Move(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, mayMove func(context.Context, raft.Server) error) error {
	return h.Keyring.AddServer(ctx, id, addr, keyring.AddServerOptions{MayMove: mayMove})
}
