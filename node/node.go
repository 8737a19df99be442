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

// Node is a whole server: raft, its log and snapshots on disk, mutual TLS on one port, and the keyring. It is
// for a service that has no raft of its own. Its methods are safe for concurrent use.
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

// Start starts the server. It returns when raft and the keyring run, and does not wait for a leader or a key:
// see Keyring.WaitReady.
//
// A server without a raft log first bootstraps its cluster together with the other servers, or waits until it
// is added to one. Only ctx limits how long that may take. Meanwhile the log says, at level Warn, why each of
// the other servers can't be used: once for each cause, then seldom. When ctx ends, the error says the same.
// Start returns at once with an error that waiting can't cure: a malformed JoinToken, or a certificate of
// this server that has expired or is not valid yet, names another server or cluster, does not fit its private
// key, or does not chain to the CAs of Config.TLS.
//
// A server with a raft log does not wait for others. A certificate that has expired, is not valid yet, or is
// from another CA, is then only logged as an error. If the raft log belongs to a server with another ID,
// because Dir was copied, Start returns an error: that log carries the other server's vote.
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

// start does what Close undoes, even if it has done only a part.
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

// Close ends the server and waits for all of its parts. A leader first transfers its leadership to another
// voter, if there is one; that takes 3 seconds at most. Then Close waits 10 seconds each for Config.TLS and
// Config.Metrics, for the keyring, for calls of Apply, and for raft with the App. The error names the parts
// that have not ended; Close completes in the background when they do. A second Close returns the same
// result.
func (n *Node) Close() error {
	n.once.Do(func() { n.closed = n.close() })
	return n.closed
}

// closePatience is how long Close waits for calls of Apply after the keyring is closed, and then for
// raft and the port.
const closePatience = 10 * time.Second

// close ends what start began, the last first: the keyring before its raft. A raft that is shut down leaves
// unanswered what its FSM has not applied yet, so it has to answer the calls of Apply first.
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

// closeCluster closes raft and the port, and gives the directory back. Raft waits for the App and for its
// disk. If one of them hangs, the rest is done when it comes back.
func (n *Node) closeCluster() error {
	ended := make(chan error, 1)
	go func() { ended <- n.cluster.Close() }()
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		return fmt.Errorf("close: raft, the App, raft's disk or Config.TLS has not ended in %v: %w; the directory stays locked until it has", closePatience, gate.ErrLeft)
	}
}

// Keyring returns the server's keyring. The Node closes it.
func (n *Node) Keyring() *keyring.Keyring { return n.keys }

// Leader returns the ID of the cluster's leader, or "" if this server knows none.
func (n *Node) Leader() raft.ServerID { return n.cluster.Leader() }

// applyTimeout is how long a command may wait for raft to take it.
const applyTimeout = 5 * time.Second

// Apply appends a command of the App to raft's log and returns the result of the App's Apply; if that is an
// error, Apply returns it as its error. Leader only: on other servers the error matches keyring.ErrNotLeader.
// After that error, after keyring.ErrClosed, and after the error of ctx, the command may still be executed. A
// command of more than keyring.MaxCommand bytes is never executed: the error matches keyring.ErrTooLong.
func (n *Node) Apply(ctx context.Context, cmd []byte) (any, error) {
	if n.cfg.App == nil {
		return nil, errors.New("apply: the node has no App")
	}
	if len(cmd) > keyring.MaxCommand {
		return nil, fmt.Errorf("%w: a command of %d bytes, the maximum is %d", keyring.ErrTooLong, len(cmd), keyring.MaxCommand)
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
