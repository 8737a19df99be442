package port

// How the leader answers a server that wants in. What a request must look like is said in mayAdd. Whether a token admits
// a server is decided by plan.JoinRefusal. A member that comes back with its certificate alone is readmitted.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"example.com/keyring/internal/join"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// Host is what a Port asks of the keyring that runs on it.
type Host interface {
	// Changed returns a channel that is closed at the next change of the raft configuration, or earlier.
	Changed() <-chan struct{}
	// MembershipVersion returns another number after each change of the raft configuration.
	MembershipVersion() uint64
	// Notify wakes all who wait for a change of Status: Port.Problems or Certificates returns something else than before.
	Notify()
	// Leading returns nil if this server can act as the leader.
	Leading() error
	// LeaderProof proves to a server that wants to join that this one leads the cluster which has made a token. An
	// error that matches join.ErrRefused is for the log alone.
	LeaderProof(c JoinConn, token string) ([]byte, error)
	// AcceptJoin adds a server that proves to have a token. An error that matches join.ErrRefused is for the log alone.
	AcceptJoin(ctx context.Context, c JoinConn, token string, proof []byte) error
	// ReadmitServer makes a member that has lost its raft log a member without a vote. An error that matches
	// peer.ErrNotMember says that there is no such member any longer.
	ReadmitServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress) error
	// PromoteServers gives a vote to each member that has none and is to have one, if it holds every key.
	PromoteServers(ctx context.Context) error
	// Move gives a member another address, if mayMove does not refuse.
	Move(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, mayMove func(context.Context, raft.Server) error) error
}

// JoinConn is keyring.JoinConn.
type JoinConn struct {
	Exporter             []byte
	Cluster              string
	Leader, Joiner       raft.ServerID
	LeaderKey, JoinerKey []byte
	Addr                 raft.ServerAddress
}

// serveProof proves to a server that wants to join that this one knows the secret of its token: it is the leader of
// the cluster that made it. The server believes nothing before that.
func (p *Port) serveProof(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
	q, err := proofRequestType.Decode(body)
	if err != nil {
		return nil, &peer.Refusal{Code: peer.Unsupported}
	}
	if err := p.mayAdd(from, q.Addr); err != nil {
		return nil, err
	}
	m, err := p.meetingOf(ctx, q.Addr)
	if err != nil {
		return nil, p.refuse(from, q.Addr, err)
	}
	proof, err := p.host.LeaderProof(m, q.Token.String())
	if err != nil && !errors.Is(err, join.ErrRefused) { // it leads no longer
		return nil, &peer.Refusal{Code: peer.NotLeader, Leader: string(p.Leader())}
	}
	if err != nil {
		return nil, p.refuse(from, q.Addr, err)
	}
	return json.Marshal(proofAnswer{proof})
}

// whenRunning refuses calls before raft and the keyring run.
func (p *Port) whenRunning(h Handler) Handler {
	return func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
		if !p.Running() {
			return nil, &peer.Refusal{Code: peer.NotReady}
		}
		return h(ctx, from, body)
	}
}

// refuse tells the log why a server may not join. The server learns the same in all cases.
func (p *Port) refuse(from raft.ServerID, addr string, err error) error {
	p.refused.Do(string(from), func() {
		p.cfg.Logger.Warn("rejected a server that wants to join", "id", from, "addr", addr, "error", err)
	})
	return &peer.Refusal{Code: peer.NotMember}
}

// mayAdd refuses a request if this server can add none, or not that one.
func (p *Port) mayAdd(from raft.ServerID, addr string) error {
	if from == p.cfg.ID || peer.CheckServerID(string(from)) != nil || peer.CheckAddress(addr) != nil {
		return &peer.Refusal{Code: peer.BadRequest}
	}
	if err := p.host.Leading(); err != nil {
		return &peer.Refusal{Code: peer.NotLeader, Leader: string(p.Leader())}
	}
	return nil
}

// meetingOf is the connection of a call to this server, the leader, for the proofs on both sides.
func (p *Port) meetingOf(ctx context.Context, addr string) (JoinConn, error) {
	c := peer.ConnOf(ctx)
	if c == nil {
		return JoinConn{}, errors.New("a call of no connection")
	}
	ch, err := c.Channel()
	if err != nil {
		return JoinConn{}, err
	}
	return JoinConn{
		Exporter: ch.Exporter, Cluster: p.cfg.Cluster,
		Leader: p.cfg.ID, LeaderKey: ch.Own,
		Joiner: raft.ServerID(c.Identity().ID), JoinerKey: ch.Other, Addr: raft.ServerAddress(addr),
	}, nil
}

// serveJoin adds a server without a raft log to the configuration, without a vote: one that is a member already, or
// proves that it has a token.
func (p *Port) serveJoin(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
	q, err := joinRequestType.Decode(body)
	if err != nil {
		return nil, &peer.Refusal{Code: peer.Unsupported}
	}
	if err := p.mayAdd(from, q.Addr); err != nil {
		return nil, err
	}
	if was, known := p.Member(from); known {
		err = p.CheckGone(ctx, was, "")
		p.NoteClaim(from, q.Addr, err)
		if err != nil {
			return p.cfg.Errors.EncodeReply(nil, err), nil
		}
		err = p.host.ReadmitServer(ctx, from, raft.ServerAddress(q.Addr))
	} else {
		err = p.acceptToken(ctx, q)
	}
	switch {
	case errors.Is(err, join.ErrRefused):
		return nil, p.refuse(from, q.Addr, err)
	case errors.Is(err, peer.ErrNotMember): // it was removed meanwhile
		return nil, &peer.Refusal{Code: peer.NotMember}
	case err != nil:
		return p.cfg.Errors.EncodeReply(nil, fmt.Errorf("join of %s: %w", from, err)), nil
	}
	a := joinAnswer{Index: p.raft.Load().CommitIndex()}
	for _, member := range p.Members() {
		a.Servers = append(a.Servers, string(member.ID))
	}
	b, err := json.Marshal(a)
	return p.cfg.Errors.EncodeReply(b, err), nil
}

// acceptToken adds a server that proves on this connection that it has a token.
func (p *Port) acceptToken(ctx context.Context, q joinRequest) error {
	if q.ID == (meta.TokenID{}) {
		return fmt.Errorf("%w: no join token, or one of an older build", join.ErrRefused)
	}
	m, err := p.meetingOf(ctx, q.Addr)
	if err != nil {
		return fmt.Errorf("%w: %w", join.ErrRefused, err)
	}
	return p.host.AcceptJoin(ctx, m, q.ID.String(), q.Proof)
}
