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

// Handler answers a call of another server of the cluster, which has proved that ID, or of this one. Its error goes back with its
// text. ctx ends when the caller has gone or the Port is closed; as from a context of keyring.WithForwarder, changes of the
// members are refused if the caller is no member any longer.
type Handler func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error)

// MaxBody is how much a body or an answer of a call may have, in bytes.
const MaxBody = peer.MaxMessage - 1024

// callTimeout is how long a call may take whose context has no deadline.
const callTimeout = 10 * time.Second

// hostPaths is what the paths of the host's calls have before them on the wire.
const hostPaths = "/host"

// Handle has this server answer the host's own calls of that path, which begins with a slash, as in "/write": only calls of members,
// and only after Open. It is called before Open, once for each path.
func (p *Port) Handle(path string, h Handler) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opened || !strings.HasPrefix(path, "/") || p.handlers[path] != nil || h == nil {
		panic(fmt.Sprintf("port: Handle of %q: after Open, twice, without a slash or without a handler", path))
	}
	p.handlers[path] = h
}

// Request makes a call of a member, or of the leader if the ID is empty, and returns what its Handler returns: to forward a
// write to the leader, say. On the server itself it calls the Handler. A call whose context has no deadline has 10 seconds.
//
// The error of a Handler has its text and, if it matches one of keyring's, matches that; raft.ErrNotLeader becomes
// keyring.ErrNotLeader. If no leader is known the error matches keyring.ErrNoLeader. After an error that is not the Handler's the
// call may still have been made.
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
				err = fmt.Errorf("call %s: the answer has %d bytes, at most %d fit", path, len(out), MaxBody)
			}
			return inner.Errors.EncodeReply(out, p.known(err)), nil
		}
	}
	return calls
}

// known returns raft's error as the keyring's.
func (p *Port) known(err error) error {
	if errors.Is(err, raft.ErrNotLeader) {
		return keyring.NotLeaderError{Leader: p.port.Leader()}
	}
	return err
}
