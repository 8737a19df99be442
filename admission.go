package keyring

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"example.com/keyring/internal/join"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// serveProof proves to a server that wants to join that this one knows the secret of its token: it is the
// leader of the cluster that made it. The server believes nothing before that.
func (w *network) serveProof(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
	q, err := provingType.Decode(body)
	if err != nil {
		return nil, &peer.Refusal{Code: peer.Unsupported}
	}
	if err := w.mayJoin(from, q.Addr); err != nil {
		return nil, err
	}
	m, _, err := w.meeting(ctx, q.Addr)
	if err != nil {
		return nil, w.refuseToken(from, q.Addr, err)
	}
	token, err := w.node.keys.openJoinToken(q.Token, string(from), meta.Digest{})
	if err != nil {
		return nil, w.refuseToken(from, q.Addr, err)
	}
	defer token.Wipe()
	proof, err := m.LeaderProof(token)
	if err != nil {
		return nil, w.refuseToken(from, q.Addr, err)
	}
	return json.Marshal(proofAnswer{proof})
}

// refuseToken tells the log why a server may not join. The server learns the same in all cases.
func (w *network) refuseToken(from raft.ServerID, addr string, err error) error {
	w.joins.Do(string(from), func() { w.node.log.Warn("server may not join", "id", from, "addr", addr, "error", err) })
	return &peer.Refusal{Code: peer.NotMember}
}

// mayJoin refuses what is asked of a server that can't take anybody in, or by one that can't be taken in.
func (w *network) mayJoin(from raft.ServerID, addr string) error {
	id := from
	if (addRequest{ID: id, Addr: addr}).check() != nil || id == w.node.cfg.ID {
		return &peer.Refusal{Code: peer.BadRequest}
	}
	if err := w.node.keys.mayLead(); err != nil {
		return &peer.Refusal{Code: peer.NotLeader, Leader: string(w.node.Leader())}
	}
	return nil
}

// meeting is the connection of a call as the leader sees it, and the digest of the other side's public key.
func (w *network) meeting(ctx context.Context, addr string) (join.Meeting, meta.Digest, error) {
	c := peer.ConnOf(ctx)
	if c == nil {
		return join.Meeting{}, meta.Digest{}, errors.New("a call of no connection")
	}
	ch, err := c.Channel()
	if err != nil {
		return join.Meeting{}, meta.Digest{}, err
	}
	return join.Meeting{
		Exporter: ch.Exporter, Cluster: w.node.cfg.Cluster,
		Leader: string(w.node.cfg.ID), LeaderKey: ch.Own,
		Joiner: c.Identity().ID, JoinerKey: ch.Other, Addr: addr,
	}, sha256.Sum256(ch.Other), nil
}

// serveJoin takes a server without a raft log into the configuration, without a vote: one that is in
// it already, or proves that it has a token.
func (w *network) serveJoin(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
	j, err := joiningType.Decode(body)
	if err != nil {
		return nil, &peer.Refusal{Code: peer.Unsupported}
	}
	if err := w.mayJoin(from, j.Addr); err != nil {
		return nil, err
	}
	n, id := w.node, from
	was, known := n.serverOf(id)
	var use meta.UseJoinToken
	if !known {
		if use, err = w.checkProof(ctx, from, j); err != nil {
			return nil, w.refuseToken(from, j.Addr, err)
		}
	} else if err := w.checkGone(ctx, was, ""); err != nil {
		return answer(nil, err), nil
	}
	err = n.keys.alongActivations(ctx, func(ctx context.Context) error {
		is, still := n.serverOf(id)
		switch {
		case known && !still:
			return &peer.Refusal{Code: peer.NotMember} // it was removed meanwhile
		case still:
			n.log.Info("server joins anew", "id", id, "addr", j.Addr)
			return n.startAnew(ctx, is, raft.ServerAddress(j.Addr))
		}
		return w.takeIn(ctx, from, use, j.Addr)
	})
	if refusal := (*peer.Refusal)(nil); errors.As(err, &refusal) {
		return nil, refusal
	}
	if err != nil {
		return answer(nil, fmt.Errorf("join of %s: %w", id, err)), nil
	}
	b, err := json.Marshal(joined{servers(n.raft)})
	return answer(b, err), nil
}

// checkProof returns what is to be recorded of the token that a server has proved to have, on this
// connection.
func (w *network) checkProof(ctx context.Context, from raft.ServerID, j joining) (meta.UseJoinToken, error) {
	if j.ID == (meta.TokenID{}) {
		return meta.UseJoinToken{}, errors.New("no join token, or one of an older build")
	}
	m, user, err := w.meeting(ctx, j.Addr)
	if err != nil {
		return meta.UseJoinToken{}, err
	}
	token, err := w.node.keys.openJoinToken(j.ID, string(from), user)
	if err != nil {
		return meta.UseJoinToken{}, err
	}
	defer token.Wipe()
	want, err := m.JoinerProof(token)
	if err != nil {
		return meta.UseJoinToken{}, err
	}
	if !join.Proven(j.Proof, want) {
		return meta.UseJoinToken{}, fmt.Errorf("join token %s: the server does not prove that it has it", j.ID)
	}
	return meta.UseJoinToken{ID: j.ID, Server: string(from), User: user}, nil
}

// takeIn binds the token to the server's certificate, then adds the server. A crash in between leaves a
// token with which that server, with that certificate, can ask again. It takes turns with removals,
// which end the token.
func (w *network) takeIn(ctx context.Context, from raft.ServerID, use meta.UseJoinToken, addr string) error {
	n := w.node
	if why := plan.JoinRefusal(n.keys.fsm.ring.Load(), use.ID, use.Server, use.User, n.keys.now(), n.keys.fsm.tokens()); why != "" {
		return w.refuseToken(from, addr, errors.New(why))
	}
	// As with the end of tokens, no server is asked whether it applies this.
	err := n.keys.fsm.propose(ctx, n.raft, []meta.Command{{UseJoinToken: &use}})
	if errors.Is(err, meta.ErrRefused) {
		return w.refuseToken(from, addr, err)
	}
	if err != nil {
		return err
	}
	n.log.Info("server joins", "id", from, "addr", addr, "token", use.ID)
	return n.setAddress(from, raft.ServerAddress(addr), false)
}
