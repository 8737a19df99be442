package port

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// A server that joins takes no other server for one of the cluster unless that proves it: by its certificate where its
// ID is known, and else by the join token. What other servers say is where to look, and no more.

// joinTimeout covers the live question and two changes of the configuration.
const joinTimeout = 10 * time.Second

// joinRequest is what a server asks that has no raft log.
type joinRequest struct {
	Addr  string       `json:"addr" bound:"bytes=1024"`
	Token string       `json:"token,omitempty" bound:"bytes=1024"` // of older builds: it counts for nothing
	ID    meta.TokenID `json:"id,omitzero"`                        // of the token
	Proof []byte       `json:"proof,omitempty" bound:"bytes=32"`
}

// joinAnswer lists the servers of the configuration that has added the one that asked, and up to where raft's log is
// committed. Older builds do not say that.
type joinAnswer struct {
	Servers []string `json:"servers" bound:"elements=4096,bytes=255"`
	Index   uint64   `json:"index,omitempty"`
}

// proofRequest asks a server to prove that it knows a token's secret.
type (
	proofRequest struct {
		Token meta.TokenID `json:"token"`
		Addr  string       `json:"addr" bound:"bytes=1024"`
	}
	proofAnswer struct {
		Proof []byte `json:"proof" bound:"bytes=32"`
	}
)

var (
	joinRequestType  = bounded.For[joinRequest](peer.MaxMessage)
	joinAnswerType   = bounded.For[joinAnswer](peer.MaxMessage)
	proofRequestType = bounded.For[proofRequest](peer.MaxMessage)
	proofAnswerType  = bounded.For[proofAnswer](peer.MaxMessage)
)

// Provable says why a server without a raft log could not tell the cluster from any server that has a certificate of its
// CA: a join token that is malformed, or none where the ID of a candidate is not known.
func Provable(others []Candidate, token string) error {
	if token != "" {
		if _, err := join.Parse(token); err != nil {
			return fmt.Errorf("JoinToken: %w", err)
		}
	}
	for _, c := range others {
		if c.ID == peer.AnyServer && token == "" {
			return fmt.Errorf("entry %q of Join does not have the server's ID, and there is no JoinToken "+
				"by which that server could prove that it belongs to the cluster: write id@host:port, or set JoinToken", c.Addr)
		}
	}
	return nil
}

// Join asks the cluster to add this server, until it has. It comes before raft is started: until the cluster has
// removed the voter that this server may have been, it must not be able to vote. The others are servers of the cluster; the
// token is empty if this server has none.
func (p *Port) Join(ctx context.Context, others []Candidate, token string) error {
	p.joining.Store(true)
	defer p.joining.Store(false)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(p.dialing, func() { cancel(net.ErrClosed) })
	defer stop()
	for wait := NewWaiting(p.cfg.Logger); ; {
		for _, c := range others {
			err := p.joinBy(ctx, c, others, token)
			if err == nil {
				return nil
			}
			wait.Failed(ctx, c.String(), err)
		}
		wait.Say("asking to join")
		if !wait.Again(ctx) {
			return fmt.Errorf("join: %w: %w", context.Cause(ctx), wait.Err())
		}
	}
}

// joinBy asks the leader that a candidate knows of. A candidate whose ID is known has proved it, and says
// which server leads: that one has to prove its ID. Of any other candidate only the leader's address is taken, and the
// server there has to prove that it knows the token.
func (p *Port) joinBy(ctx context.Context, c Candidate, others []Candidate, token string) error {
	a, err := p.Hello(ctx, c, nil)
	if err != nil {
		return err
	}
	if a.Leader == "" {
		return fmt.Errorf("%s knows of no leader", c)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	leader := Candidate{peer.AnyServer, a.Leader}
	if c.ID != peer.AnyServer {
		if leader.ID = leaderID(a, others); leader.ID == "" {
			return fmt.Errorf("%s runs a build that gives only the address of the leader, %s: name that server in Join, as id@host:port", c, a.Leader)
		}
		err := p.joinAsMember(ctx, leader)
		if token == "" || !IsRefusal(err, peer.NotMember) {
			return err
		}
	}
	return p.joinByToken(ctx, leader, token)
}

// leaderID is which server leads, as one says that has proved its own ID. Older builds tell the address alone.
func leaderID(a HelloAnswer, others []Candidate) string {
	if a.LeaderID != "" {
		return a.LeaderID
	}
	for _, c := range others {
		if c.Addr == a.Leader {
			return c.ID
		}
	}
	return ""
}

// joinAsMember asks to be added again, as the member that this server is already.
func (p *Port) joinAsMember(ctx context.Context, leader Candidate) error {
	body, err := json.Marshal(joinRequest{Addr: p.cfg.Addr})
	if err != nil {
		return err
	}
	b, err := p.CallAt(ctx, leader, pathJoin, body)
	return p.joined(b, err)
}

// joinByToken asks a server to add this one, which first has to prove that it knows the token's secret, over the same
// connection.
func (p *Port) joinByToken(ctx context.Context, leader Candidate, text string) error {
	token, err := join.Parse(text)
	if err != nil {
		return err
	}
	defer token.Wipe()
	session, err := p.Session(ctx, leader)
	if err != nil {
		return err
	}
	defer session.Close()
	m, err := p.meetingWith(session.Conn())
	if err != nil {
		return err
	}
	if err := proveCluster(ctx, session, m, token); err != nil {
		return err
	}
	q := joinRequest{Addr: m.Addr, ID: token.ID}
	if q.Proof, err = m.JoinerProof(token); err != nil {
		return err
	}
	body, err := json.Marshal(q)
	if err != nil {
		return err
	}
	b, err := session.Call(ctx, pathJoin, body)
	return p.joined(b, err)
}

// meetingWith is a connection to the leader, for the proofs on both sides.
func (p *Port) meetingWith(leader *peer.Conn) (join.Meeting, error) {
	ch, err := leader.Channel()
	if err != nil {
		return join.Meeting{}, err
	}
	return join.Meeting{
		Exporter: ch.Exporter, Cluster: p.cfg.Cluster,
		Leader: leader.Identity().ID, LeaderKey: ch.Other,
		Joiner: string(p.cfg.ID), JoinerKey: ch.Own, Addr: p.cfg.Addr,
	}, nil
}

// proveCluster has the other side prove that it knows the token's secret.
func proveCluster(ctx context.Context, s *peer.Session, m join.Meeting, token join.Token) error {
	body, err := json.Marshal(proofRequest{token.ID, m.Addr})
	if err != nil {
		return err
	}
	b, err := s.Call(ctx, pathProof, body)
	if err != nil {
		return explained(err)
	}
	p, err := proofAnswerType.DecodeKnown(b)
	if err != nil {
		return fmt.Errorf("join: proof of %s: %w", m.Leader, err)
	}
	return m.CheckLeader(token, p.Proof)
}

// joined reads the answer of a server that has proved itself.
func (p *Port) joined(b []byte, err error) error {
	if err != nil {
		return explained(err)
	}
	if b, err = p.cfg.Errors.DecodeReply(b); err != nil {
		return err
	}
	a, err := joinAnswerType.DecodeKnown(b)
	if err != nil {
		return fmt.Errorf("join: the leader's answer: %w", err)
	}
	p.introduction.Store(&introduction{a.Index, a.Servers})
	return nil
}

// explained says what to do about a refusal.
func explained(err error) error {
	if IsRefusal(err, peer.NotMember) {
		return fmt.Errorf("%w: the cluster has no server with this ID; this server needs a JoinToken, or AddServer there. "+
			"If it has a token, that may have ended, or be for another server: the leader's log says why", err)
	}
	return err
}

// IsRefusal reports whether an error is a refusal, with one of the codes if there are any.
func IsRefusal(err error, codes ...peer.Code) bool {
	r := (*peer.Refusal)(nil)
	if !errors.As(err, &r) {
		return false
	}
	for _, c := range codes {
		if r.Code == c {
			return true
		}
	}
	return len(codes) == 0
}

// noteMoved records where a member says that it is. A server can say so for itself alone, and the server that
// answers there has to prove that it is that member.
func (p *Port) noteMoved(from raft.ServerID, body []byte) {
	if len(body) == 0 || !p.Running() {
		return
	}
	h, err := movedHelloType.Decode(body)
	if err != nil {
		return
	}
	if _, known := p.Member(from); known && peer.CheckServerID(string(from)) == nil && peer.CheckAddress(h.Addr) == nil {
		p.NoteAddress(from, h.Addr)
	}
}
