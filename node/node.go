package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/gate"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Node is a whole server: raft, its log and snapshots on disk, mutual TLS on one port, and the keyring. It is for a
// service that has no raft of its own. Its methods may be called from several goroutines.
type Node struct {
	cfg     Config
	log     hclog.Logger
	cluster *cluster.Server
	keys    *keyring.Keyring
	open    atomic.Pointer[keyring.Keyring] // keys once it is open, for raft's disk
	gate    gate.Gate                       // of the calls of Apply

	once   sync.Once
	closed error
}

// Start starts the server. It returns when raft and the keyring run. A server that has no raft log yet first bootstraps
// its cluster together with the other servers, or is added to it. ctx bounds how long that may take, and nothing else does.
// While it waits the log says, at level Warn, why each of the others is of no use, once for each cause and then seldom; and
// so does the error when ctx ends. What can't come right by waiting is an error at once: a certificate of this server's own that is
// out of its time, names another server or cluster, does not belong to its private key, or for which Config.TLS's own CAs do
// not vouch, and a JoinToken that is malformed. With a raft log Start does not wait for others, and a certificate that is
// out of its time, or of another CA, is an error in the log alone. A raft log that is of a server of another ID, in a Dir that
// was copied, is an error: it has that server's vote. Start does not wait for a leader or a key: see Keyring.WaitReady.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	cfg = cfg.filled()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger}
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// start does what Close undoes, whatever part of it was done.
func (n *Node) start(ctx context.Context) (err error) {
	conf := n.cfg.cluster()
	conf.DiskChanged = n.diskChanged
	if n.cluster, err = cluster.Start(ctx, conf); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	keys := n.cfg.keyring()
	keys.Raft, keys.Problems = n.cluster.Raft(), n.problems
	if port := n.cluster.Port(); port != nil {
		keys.Transport, keys.Certificates = port, n.certificates
	}
	if n.keys, err = keyring.Open(ctx, keys); err != nil {
		return err
	}
	n.open.Store(n.keys)
	n.cluster.Serve(host{n.keys}, n.handlers())
	return nil
}

// certificates are those that the port knows of.
func (n *Node) certificates() (all []keyring.Certificate, err error) {
	known, err := n.cluster.Port().Certificates()
	for _, c := range known {
		all = append(all, keyring.Certificate(c))
	}
	return all, err
}

// problems says what of raft's can't be written, and what the port says.
func (n *Node) problems() (all []keyring.Problem) {
	for _, fault := range n.cluster.DiskFaults() {
		all = append(all, keyring.Problem{Kind: keyring.ProblemRaftDisk, Since: fault.Since, Detail: fault.String()})
	}
	if p := n.cluster.Port(); p != nil {
		for _, q := range p.Problems() {
			all = append(all, keyring.Problem{Kind: keyring.ProblemKind(q.Kind), Severity: keyring.Severity(q.Severity), Server: q.Server, Since: q.Since, Detail: q.Detail})
		}
	}
	return all
}

// diskChanged wakes all who wait for a change of Status.
func (n *Node) diskChanged() {
	if keys := n.open.Load(); keys != nil {
		keys.Notify()
	}
}

// Close ends the server and waits until all of it has ended. A leader first hands over to another voter, if there is one,
// which it tries for 3 seconds at most. Config.TLS and Config.Metrics, the keyring, calls of Apply, and raft with the App are waited
// for for 10 seconds each; what has not ended by then is named in the error, and the rest is done when that comes back. A second Close returns what the first has returned.
func (n *Node) Close() error {
	n.once.Do(func() { n.closed = n.close() })
	return n.closed
}

// closePatience is how long Close waits for calls of Apply after the keyring is closed, and then for
// raft and the port.
const closePatience = 10 * time.Second

// close ends what start began, the last first: the keyring before its raft. A raft that is shut down leaves unanswered
// what its FSM has not applied yet, so it has to answer the calls of Apply first.
func (n *Node) close() error {
	if n.keys != nil {
		n.resign()
	}
	var errs []error
	n.gate.Close(keyring.ErrClosed)
	if n.keys != nil {
		errs = append(errs, n.keys.Close())
	}
	errs = append(errs, inTime(n.gate.Wait, "calls of Apply have not ended"))
	if n.cluster != nil {
		errs = append(errs, n.closeCluster())
	}
	return errors.Join(errs...)
}

// inTime waits for closePatience at most. If that is not enough, the error says what has not ended.
func inTime(wait func(), what string) error {
	ended := make(chan struct{})
	go func() { wait(); close(ended) }()
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-timer.C:
		return fmt.Errorf("close: %s in %v: %w", what, closePatience, gate.ErrLeft)
	}
}

// closeCluster closes raft and the port, and gives the directory back. Raft waits for the App and for its disk. If one of
// them hangs, the rest is done when it comes back.
func (n *Node) closeCluster() error {
	ended := make(chan error, 1)
	go func() { ended <- n.cluster.Close() }()
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		return fmt.Errorf("close: raft, the App, raft's disk or Config.TLS has not ended in %v: %w; the directory is given back when it has", closePatience, gate.ErrLeft)
	}
}

// Keyring returns the server's keyring. The Node closes it.
func (n *Node) Keyring() *keyring.Keyring { return n.keys }

// Leader returns the ID of the cluster's leader, or nothing if none is known.
func (n *Node) Leader() raft.ServerID { return n.cluster.Leader() }

// applyTimeout is how long a command may wait for raft to take it.
const applyTimeout = 5 * time.Second

// Apply appends a command of the App to raft's log, and returns what the App's Apply has returned; if that is an error,
// it is the error. Leader only: on other servers the error matches keyring.ErrNotLeader. After that error, the one of
// ctx, and keyring.ErrClosed the command may still be executed. A command of more than keyring.MaxCommand bytes is
// never executed: its error matches keyring.ErrTooLong.
func (n *Node) Apply(ctx context.Context, cmd []byte) (any, error) {
	if n.cfg.App == nil {
		return nil, errors.New("apply: the node has no App")
	}
	if len(cmd) > keyring.MaxCommand {
		return nil, fmt.Errorf("%w: a command of %d bytes, at most %d are taken", keyring.ErrTooLong, len(cmd), keyring.MaxCommand)
	}
	return gate.Through(ctx, &n.gate, func(ctx context.Context) (any, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f := n.cluster.Raft().Apply(cmd, applyTimeout)
		if err := f.Error(); err != nil {
			return nil, n.outcome(err)
		}
		if err, ok := f.Response().(error); ok {
			return nil, err
		}
		return f.Response(), nil
	})
}

// outcome returns an error of raft's as one of the keyring's.
func (n *Node) outcome(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return keyring.NotLeaderError{Leader: n.Leader()}
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", keyring.ErrClosed, err)
	}
	return fmt.Errorf("apply: %w", err)
}
