package keyring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// A server that joins takes nobody for the cluster but one that proves it: by its certificate where the
// server's ID is known, and else by the join token. What others say is where to look, and no more.

// candidates are the others that the configuration names.
func (c NodeConfig) candidates() []cluster.Candidate {
	var all []cluster.Candidate
	for id, addr := range c.Peers {
		if id != c.ID {
			all = append(all, cluster.Candidate{ID: string(id), Addr: addr})
		}
	}
	for _, entry := range c.Join {
		if k, err := cluster.ParseCandidate(entry); err == nil { // as check has seen
			all = append(all, k)
		}
	}
	return all
}

// provable says why a server without a raft log could not tell the cluster from whoever has a certificate
// of its CA. Who has a raft log needs no token: one that stayed in its configuration stops nothing.
func (c NodeConfig) provable() error {
	if c.JoinToken != "" {
		if _, err := JoinTokenID(c.JoinToken); err != nil {
			return fmt.Errorf("node configuration: JoinToken: %w", err)
		}
	}
	for _, k := range c.candidates() {
		if k.ID == peer.AnyServer && c.JoinToken == "" {
			return fmt.Errorf("node configuration: entry %q of Join does not say which server that is, and there is no JoinToken "+
				"by which it could prove that it belongs to the cluster: write id@host:port, or set JoinToken", k.Addr)
		}
	}
	return nil
}

// joining is what a server asks that has no raft log.
type joining struct {
	Addr  string       `json:"addr" bound:"bytes=1024"`
	Token string       `json:"token,omitempty" bound:"bytes=1024"` // of older builds: it counts for nothing
	ID    meta.TokenID `json:"id,omitzero"`                        // of the token
	Proof []byte       `json:"proof,omitempty" bound:"bytes=32"`
}

// joined is the answer: who is in the configuration that took it in.
type joined struct {
	Servers []string `json:"servers" bound:"elements=4096,bytes=255"`
}

// proving asks a server to prove that it knows a token's secret; the answer is its proof.
type (
	proving struct {
		Token meta.TokenID `json:"token"`
		Addr  string       `json:"addr" bound:"bytes=1024"`
	}
	proofAnswer struct {
		Proof []byte `json:"proof" bound:"bytes=32"`
	}
)

var (
	joiningType = bounded.For[joining](peer.MaxMessage)
	joinedType  = bounded.For[joined](peer.MaxMessage)
	provingType = bounded.For[proving](peer.MaxMessage)
	provenType  = bounded.For[proofAnswer](peer.MaxMessage)
)

// askToJoin asks the cluster to take this server in, until it has. It comes before raft is
// started: until the cluster has taken out the voter that this server may have been, it must
// not be able to vote.
func (w *network) askToJoin(ctx context.Context) error {
	for {
		var errs []error
		for _, c := range w.join {
			if err := w.joinBy(ctx, c); err != nil {
				errs = append(errs, err)
				continue
			}
			return nil
		}
		w.node.log.Info("asking to join", "error", errors.Join(errs...))
		select {
		case <-time.After(joinRetry):
		case <-ctx.Done():
			return fmt.Errorf("join: %w: %w", context.Cause(ctx), errors.Join(errs...))
		}
	}
}

// joinBy asks the leader that a candidate knows of. A candidate whose ID is known has proved it, and says
// which server leads: that one has to prove its ID. Of any other the address of the leader is taken, who has
// to prove that it knows the token.
func (w *network) joinBy(ctx context.Context, c cluster.Candidate) error {
	g, err := w.greet(ctx, c, nil)
	if err != nil {
		return err
	}
	if g.Leader == "" {
		return fmt.Errorf("%s knows of no leader", c)
	}
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	leader := cluster.Candidate{ID: peer.AnyServer, Addr: g.Leader}
	if c.ID != peer.AnyServer {
		if leader.ID = w.leaderID(g); leader.ID == "" {
			return fmt.Errorf("%s runs a build that does not say which server leads, at %s: name that server in Join, as id@host:port", c, g.Leader)
		}
		err := w.joinAsMember(ctx, leader)
		if r := (*peer.Refusal)(nil); w.node.cfg.JoinToken == "" || !errors.As(err, &r) || r.Code != peer.NotMember {
			return err
		}
	}
	return w.joinByToken(ctx, leader)
}

// leaderID is which server leads, as one says that has proved its own ID. Older builds tell the address alone.
func (w *network) leaderID(g greeting) string {
	if g.LeaderID != "" {
		return g.LeaderID
	}
	for _, c := range w.join {
		if c.Addr == g.Leader {
			return c.ID
		}
	}
	return ""
}

// joinAsMember asks to be taken in anew as the member that this server is already.
func (w *network) joinAsMember(ctx context.Context, leader cluster.Candidate) error {
	body, err := json.Marshal(joining{Addr: w.node.cfg.Addr})
	if err != nil {
		return err
	}
	b, err := w.CallAt(ctx, leader, pathJoin, body)
	return w.takenIn(b, err)
}

// joinByToken asks a server to take this one in that first has to prove that it knows the token's secret, over
// the same connection.
func (w *network) joinByToken(ctx context.Context, leader cluster.Candidate) error {
	s, err := w.Session(ctx, leader)
	if err != nil {
		return err
	}
	defer s.Close()
	c, err := w.connTo(s.Conn())
	if err != nil {
		return err
	}
	if err := w.proveCluster(ctx, s, c); err != nil {
		return err
	}
	j := joining{Addr: string(c.Addr)}
	if j.ID, err = w.node.cfg.tokenID(); err != nil {
		return err
	}
	if j.Proof, err = c.JoinerProof(w.node.cfg.JoinToken); err != nil {
		return err
	}
	body, err := json.Marshal(j)
	if err != nil {
		return err
	}
	b, err := s.Call(ctx, pathJoin, body)
	return w.takenIn(b, err)
}

// tokenID is the ID of the JoinToken.
func (c NodeConfig) tokenID() (id meta.TokenID, err error) {
	text, err := JoinTokenID(c.JoinToken)
	if err != nil {
		return id, err
	}
	return id, id.UnmarshalText([]byte(text))
}

// connTo is a connection as the server that joins sees it.
func (w *network) connTo(c *peer.Conn) (JoinConn, error) {
	ch, err := c.Channel()
	if err != nil {
		return JoinConn{}, err
	}
	return JoinConn{
		Exporter: ch.Exporter, Cluster: w.node.cfg.Cluster, Leader: raft.ServerID(c.Identity().ID), LeaderKey: ch.Other,
		Joiner: w.node.cfg.ID, JoinerKey: ch.Own, Addr: raft.ServerAddress(w.node.cfg.Addr),
	}, nil
}

// proveCluster has the other side prove that it knows the token's secret.
func (w *network) proveCluster(ctx context.Context, s *peer.Session, c JoinConn) error {
	token, err := w.node.cfg.tokenID()
	if err != nil {
		return err
	}
	body, err := json.Marshal(proving{token, string(c.Addr)})
	if err != nil {
		return err
	}
	b, err := s.Call(ctx, pathProof, body)
	if err != nil {
		return explained(err)
	}
	p, err := provenType.DecodeKnown(b)
	if err != nil {
		return fmt.Errorf("join: proof of %s: %w", c.Leader, err)
	}
	return c.CheckLeader(w.node.cfg.JoinToken, p.Proof)
}

// takenIn reads the answer of a server that has proved itself.
func (w *network) takenIn(b []byte, err error) error {
	if err != nil {
		return explained(err)
	}
	if b, err = answered(b); err != nil {
		return err
	}
	j, err := joinedType.DecodeKnown(b)
	if err != nil {
		return fmt.Errorf("join: the leader's answer: %w", err)
	}
	w.Introduced(j.Servers)
	return nil
}

// explained says what to do about a refusal.
func explained(err error) error {
	if r := (*peer.Refusal)(nil); errors.As(err, &r) && r.Code == peer.NotMember {
		return fmt.Errorf("%w: the cluster has no server of this name; it needs a JoinToken, or AddServer there. "+
			"A token that it has may have ended, or be of another server: the leader's log says why", err)
	}
	return err
}
