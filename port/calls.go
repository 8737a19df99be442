package port

// The host's own calls between its servers.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	inner "example.com/keyring/internal/port"
	"github.com/hashicorp/raft"
)

// Handler answers a call from another server of the cluster, which has proved the ID from, or from this
// server. The caller gets the text of its error. ctx ends when the caller has gone or the Port is closed.
// Like a context of keyring.WithForwarder, it rejects changes of the members if the caller is no longer a
// member.
type Handler func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error)

// MaxBody is the maximum size in bytes of the body or the answer of a call.
const MaxBody = 1<<20 - 1024

// callTimeout is how long a call may take whose context has no deadline.
const callTimeout = 10 * time.Second

// hostPaths is what the paths of the host's calls have before them on the wire.
const hostPaths = "/host"

// Handle registers the Handler of the host's own calls with that path, which begins with a slash, such as
// "/write". Only members can call it, and only after Open. Call Handle before Open, once for each path.
func (p *Port) Handle(path string, h Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opened || !strings.HasPrefix(path, "/") || p.handlers[path] != nil || h == nil {
		panic(fmt.Sprintf("port: Handle of %q: after Open, twice, without a slash or without a handler", path))
	}
	p.handlers[path] = h
}

// Request makes a call to a member, or to the leader if to is empty, and returns the result of its Handler.
// Use it to forward a write to the leader, for example. If this server is the target, the Handler is called
// directly. A call whose context has no deadline has 10 seconds.
//
// An error of the Handler keeps its text and, if it matches an error of package keyring, matches that too;
// raft.ErrNotLeader and raft.ErrLeadershipTransferInProgress become keyring.ErrNotLeader. While a transfer
// runs, the leader that the error names may still be the old one: retry. If no leader is known, the error
// matches keyring.ErrNoLeader. After any other error the call may still have been executed.
func (p *Port) Request(ctx context.Context, to raft.ServerID, path string, body []byte) ([]byte, error) {
	if !p.port.Running() {
		return nil, fmt.Errorf("call %s: %w: Open has not returned", path, keyring.ErrNotReady)
	}
	if to == "" {
		to = p.port.Leader()
	}
	if to == "" {
		return nil, keyring.NotLeaderError{}
	}
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	if to == p.cfg.ID {
		h := p.handlers[path]
		if h == nil {
			return nil, fmt.Errorf("call %s: this server has no handler for it", path)
		}
		out, err := h(ctx, to, body)
		return out, p.known(err)
	}
	b, err := p.port.CallMember(ctx, to, hostPaths+path, body)
	switch {
	case inner.IsRefusal(err, peer.NotReady):
		return nil, fmt.Errorf("%w: %w", keyring.ErrNotReady, err)
	case inner.IsRefusal(err, peer.NotMember):
		return nil, fmt.Errorf("%w: %w", keyring.ErrNotMember, err)
	case inner.IsRefusal(err, peer.Unsupported):
		return nil, fmt.Errorf("server %s has no handler for the call: %w", to, err)
	case err != nil:
		return nil, err
	}
	return inner.Errors.DecodeReply(b)
}

// calls are what this server answers, by path.
func (p *Port) calls(keys *keyring.Keyring) map[string]inner.Handler {
	calls := map[string]inner.Handler{inner.PathKeyring: keys.ServePeer, inner.PathPlace: p.port.ServePlace}
	for path, h := range p.handlers {
		calls[hostPaths+path] = func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
			out, err := h(keyring.WithForwarder(ctx, from), from, body)
			if err == nil && len(out) > MaxBody {
				err = fmt.Errorf("call %s: the answer has %d bytes, the maximum is %d", path, len(out), MaxBody)
			}
			return inner.Errors.EncodeReply(out, p.known(err)), nil
		}
	}
	return calls
}

// known returns raft's error as the keyring's.
func (p *Port) known(err error) error {
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipTransferInProgress) { // raft has not taken it
		return keyring.NotLeaderError{Leader: p.port.Leader()}
	}
	return err
}
