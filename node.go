package keyring

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Node is a whole server: raft, its log and snapshots on disk, mutual TLS on one port, and
// the keyring, for a service that has no raft of its own.
type Node struct {
	cfg    NodeConfig
	log    hclog.Logger
	dir    *cluster.Dir
	disk   *cluster.Disk // what is in dir, for raft
	raft   *raft.Raft
	keys   *Keyring
	net    *network      // nil for a server alone
	opened chan struct{} // closed once keys is set
	cancel context.CancelFunc
	loops  sync.WaitGroup
	once   sync.Once
	closed error
}

// NodeConfig is what Start needs. With Dir and KEKs alone it is one server without a port.
type NodeConfig struct {
	// ID is this server's ID in the cluster and in its certificate. Empty means "server",
	// which is enough for a server alone.
	ID raft.ServerID
	// Dir holds the keystore, in Dir/keystore, and raft's log and snapshots, in Dir/raft.
	// It is created if it is missing.
	Dir string
	// KEKs wrap the key material. See Config.
	KEKs []KEK
	// OldKEKs open material that was wrapped under them. See Config.
	OldKEKs []KEK

	// Addr is the host:port at which this server listens and the others reach it: a name or an IP
	// address of this server's, and a port from 1 to 65535. Empty means that there are no others, and no
	// port. It may change between two starts: the server tells the leader. If most servers move at once,
	// Peers has to have the new addresses.
	Addr string
	// Advertise is the host:port at which the others reach this server, if that is not Addr: then Addr may be
	// 0.0.0.0:7900 or :7900, and whatever is said of Addr elsewhere, in Peers too, is of Advertise. Empty
	// means Addr.
	Advertise string
	// Listener, if set, is listened on in place of Addr. The Node closes it.
	Listener net.Listener
	// Cluster is the cluster's name in the certificates. Required with Addr.
	Cluster string
	// TLS returns this server's certificate, with keyring://<cluster>/server/<id> as a
	// URI SAN and for both server and client authentication, and RootCAs. It is called for
	// each connection, and every 5 seconds, so that certificates can be replaced: connections end at
	// NotAfter of the certificates of both ends, and within 5 seconds when RootCAs, or ClientCAs, vouch for the
	// other end no more. It must not block. Required with Addr.
	TLS func() (*tls.Config, error)
	// Peers are the addresses of the servers that found the cluster, by ID, this one
	// included and the same on each; where they differ, Start waits, logs both, and has both in its
	// error when its context ends. Correct the wrong ones; the others go on by themselves. While this
	// server has no raft log: when each of them has answered that it has none either, the cluster is
	// founded; when one has, this server joins it anew. Later they are where a server is tried that
	// does not answer at the address that the raft configuration has, for addresses can change: see
	// Addr.
	Peers map[raft.ServerID]string
	// Join are servers of a cluster to join, if this server has no raft log, each as id@host:port, or as
	// host:port where there is a JoinToken. The cluster takes this server in if it was a member under its ID
	// before, or was admitted with Node.AddServer, or has a JoinToken; it becomes a voter once it holds every
	// key. It takes nobody for the cluster but a server that proves the ID which is written here or in Peers,
	// or which such a server says leads, or that knows the JoinToken.
	Join []string
	// JoinToken is from Node.JoinToken of a member. Empty means none. It is looked at only while this server
	// has no raft log, where one that is malformed is an error, and may stay when it has ended.
	JoinToken string

	// App is the service's own FSM, which rides the same raft. Nil means none.
	App raft.FSM
	// Keys is the keyring's FSM, made with NewFSM: the one on which App calls Admit. Nil makes one,
	// for an App that does not.
	Keys *FSM
	// Data is where what was sealed is found, to be sealed anew: see Config. It may be asked
	// before Start has returned. RekeyGrace and RekeyRate are Config's too.
	Data       SealedData
	RekeyGrace time.Duration
	RekeyRate  int
	// Rotation is when keys rotate. Zero means every 30 days.
	Rotation RotationPolicy
	// Tokens is how tokens are signed and verified. Zero means RS256 and at most 24 hours.
	Tokens TokenPolicy
	// Audit is told of every step in the life of a key. Metrics receives the figures of this server every
	// MetricsEvery. See Config for the three.
	Audit        func(Event)
	Metrics      Metrics
	MetricsEvery time.Duration
	// Logger gets what raft and the keyring log. Nil logs nothing.
	Logger hclog.Logger

	listen string // what Addr was; filled makes Addr what the others are told

	wrapLog func(raft.LogStore) raft.LogStore // around raft's log, for tests
}

// check says all that is wrong with the configuration.
func (c NodeConfig) check() error {
	var w wrongs
	w.unless(c.Dir != "", "Dir is empty")
	if c.Addr == "" {
		w.unless(len(c.Peers)+len(c.Join) == 0 && c.Listener == nil && c.Advertise == "", "Addr is empty, with Peers, Join, Listener or Advertise set")
	} else {
		w.unless(c.Cluster != "", "Cluster is empty, with Addr set")
		w.unless(c.TLS != nil, "TLS is nil, with Addr set")
		c.checkAddresses(&w)
		addr, named := c.Peers[c.ID]
		w.unless(len(c.Peers) == 0 || named && addr == c.Addr, "Peers does not name this server, %s, with Addr %s", c.ID, c.Addr)
	}
	if err := c.keyring().Check(); err != nil {
		w = append(w, err)
	}
	if err := errors.Join(w...); err != nil {
		return fmt.Errorf("node configuration: %w", err)
	}
	return nil
}

// checkAddresses wants addresses at which others can be reached.
func (c NodeConfig) checkAddresses(w *wrongs) {
	err := peer.CheckAddress(c.Addr)
	if c.Advertise == "" {
		w.unless(err == nil, "Addr: %w; with one that is only listened at, set Advertise", err)
	} else {
		w.unless(err == nil, "Advertise: %w", err)
		_, _, err = net.SplitHostPort(c.listen)
		w.unless(err == nil || c.Listener != nil, "Addr: %w", err)
	}
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		err := peer.CheckAddress(c.Peers[id])
		w.unless(err == nil, "Peers: server %s: %w", id, err)
	}
	for _, entry := range c.Join {
		_, err := cluster.ParseCandidate(entry)
		w.unless(err == nil, "Join: %w", err)
	}
}

// filled returns the configuration with what Start puts where nothing is set.
func (c NodeConfig) filled() NodeConfig {
	if c.ID == "" {
		c.ID = "server"
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.listen == "" {
		c.listen, c.Addr = c.Addr, cmp.Or(c.Advertise, c.Addr)
	}
	return c
}

// keyring is what goes to the keyring as it is.
func (c NodeConfig) keyring() Config {
	return Config{
		ID: c.ID, KEKs: c.KEKs, OldKEKs: c.OldKEKs, Rotation: c.Rotation, Tokens: c.Tokens,
		Data: c.Data, RekeyGrace: c.RekeyGrace, RekeyRate: c.RekeyRate,
		Audit: c.Audit, Metrics: c.Metrics, MetricsEvery: c.MetricsEvery, EveryBuild: true,
	}
}

// Start starts the server. It returns when raft and the keyring run, which for a server
// with no raft log of its own means that its cluster is founded or has accepted it; ctx
// bounds that. It does not wait for a leader or a key: see Keyring.WaitReady.
func Start(ctx context.Context, cfg NodeConfig) (*Node, error) {
	cfg = cfg.filled()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.Background())
	n := &Node{cfg: cfg, log: cfg.Logger, cancel: cancel, opened: make(chan struct{})}
	if err := n.start(ctx, life); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// start does what Close undoes, whatever part of it was done.
func (n *Node) start(ctx, life context.Context) error {
	if n.cfg.Addr != "" {
		net, err := listen(n)
		if err != nil {
			return err
		}
		n.net = net
	}
	fsm := cmp.Or(n.cfg.Keys, NewFSM())
	if err := n.startRaft(ctx, fsm); err != nil {
		return err
	}
	cfg := n.cfg.keyring()
	cfg.Dir, cfg.Raft, cfg.FSM = filepath.Join(n.cfg.Dir, "keystore"), n.raft, fsm
	cfg.Logger, cfg.Problems = n.log.Named("keyring"), n.problems
	if n.net != nil {
		cfg.Transport = n.net
	}
	var err error
	if n.keys, err = Open(ctx, cfg); err != nil {
		return err
	}
	close(n.opened)
	if n.net == nil {
		return nil
	}
	n.net.Start(n.raft, membership{n.keys}, n.calls())
	n.loops.Go(func() { n.onChange(life, time.Minute, n.promote) })
	n.loops.Go(func() { n.onChange(life, 3*time.Second, n.keepAddress) }) // nobody may find it meanwhile
	return nil
}

// onChange does something now and after each change of the FSM; if it fails, after a while, a longer one
// each time, up to most. It returns when ctx ends.
func (n *Node) onChange(ctx context.Context, most time.Duration, do func(context.Context) error) {
	for tries := 0; ; {
		changed := n.keys.Changed()
		var retry <-chan time.Time
		if err := do(ctx); err == nil {
			tries = 0
		} else { // trying has changed something by itself: that is no reason to try again
			changed, retry = nil, time.After(min(most, plan.Backoff(tries+3, rand.Float64())))
			tries++
		}
		select {
		case <-changed:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// problems says which writes of raft's fail.
func (n *Node) problems() (all []Problem) {
	for _, fault := range n.disk.Faults() {
		all = append(all, Problem{Kind: ProblemRaftDisk, Detail: fault})
	}
	return all
}

// notify has those look at Status who wait for a change.
func (n *Node) notify() {
	select {
	case <-n.opened:
		n.keys.Notify()
	default: // nobody can have looked
	}
}

// Close ends the server and waits for all of it. A second Close returns what the first did.
func (n *Node) Close() error {
	n.once.Do(func() { n.closed = n.close() })
	return n.closed
}

// close ends what start began, the last first: the keyring before its raft, raft before its
// log and its port. A raft that is shut down leaves unanswered what its FSM has not applied yet,
// so it has to answer first.
func (n *Node) close() error {
	n.cancel()
	n.loops.Wait()
	var errs []error
	if n.keys != nil {
		errs = append(errs, n.keys.Close()) // and with it all calls of Apply
	}
	if n.raft != nil {
		errs = append(errs, n.raft.Shutdown().Error())
	}
	if n.net != nil {
		errs = append(errs, n.net.Close())
	}
	if n.dir != nil {
		errs = append(errs, n.dir.Close())
	}
	return errors.Join(errs...)
}

// Keyring returns the server's keyring. The Node closes it.
func (n *Node) Keyring() *Keyring { return n.keys }

// Leader returns the ID of the cluster's leader, or nothing if none is known.
func (n *Node) Leader() raft.ServerID {
	_, leader := n.raft.LeaderWithID()
	return leader
}

// Apply puts a command of App's into the log and returns what its Apply answered, or that
// answer as the error if it is one. Leader only: elsewhere the error matches ErrNotLeader.
// That error, ctx's own and ErrClosed leave open whether the command is executed. A command of
// more than MaxCommand bytes never is: its error matches ErrTooLong.
func (n *Node) Apply(ctx context.Context, cmd []byte) (any, error) {
	if n.cfg.App == nil {
		return nil, errors.New("apply: the node has no App")
	}
	if len(cmd) > MaxCommand {
		return nil, commandTooLong(len(cmd))
	}
	return gate.Through(ctx, &n.keys.gate, func(ctx context.Context) (any, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f := n.raft.Apply(cmd, proposeTimeout)
		if err := f.Error(); err != nil {
			return nil, outcome(n.raft, err)
		}
		if err, ok := f.Response().(error); ok {
			return nil, err
		}
		return f.Response(), nil
	})
}
