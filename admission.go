package keyring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
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
	c, err := w.joinConn(ctx, q.Addr)
	if err != nil {
		return nil, w.refuseToken(from, q.Addr, err)
	}
	proof, err := w.node.keys.LeaderProof(c, q.Token.String())
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
	if (addRequest{ID: from, Addr: addr}).check() != nil || from == w.node.cfg.ID {
		return &peer.Refusal{Code: peer.BadRequest}
	}
	if err := w.node.keys.Leading(); err != nil {
		return &peer.Refusal{Code: peer.NotLeader, Leader: string(w.node.Leader())}
	}
	return nil
}

// joinConn is the connection of a call as the leader sees it.
func (w *network) joinConn(ctx context.Context, addr string) (JoinConn, error) {
	c := peer.ConnOf(ctx)
	if c == nil {
		return JoinConn{}, errors.New("a call of no connection")
	}
	ch, err := c.Channel()
	if err != nil {
		return JoinConn{}, err
	}
	return JoinConn{
		Exporter: ch.Exporter, Cluster: w.node.cfg.Cluster, Leader: w.node.cfg.ID, LeaderKey: ch.Own,
		Joiner: raft.ServerID(c.Identity().ID), JoinerKey: ch.Other, Addr: raft.ServerAddress(addr),
	}, nil
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
	if was, known := w.node.serverOf(from); known {
		if err := w.checkGone(ctx, was, ""); err != nil {
			return answer(nil, err), nil
		}
		err = w.node.keys.ReadmitServer(ctx, from, raft.ServerAddress(j.Addr))
	} else {
		err = w.acceptToken(ctx, j)
	}
	switch {
	case errors.Is(err, ErrJoinRefused):
		return nil, w.refuseToken(from, j.Addr, err)
	case errors.Is(err, ErrNotMember): // it was removed meanwhile
		return nil, &peer.Refusal{Code: peer.NotMember}
	case err != nil:
		return answer(nil, fmt.Errorf("join of %s: %w", from, err)), nil
	}
	b, err := json.Marshal(joined{servers(w.node.raft)})
	return answer(b, err), nil
}

// acceptToken adds a server that proves to have a token, on this connection.
func (w *network) acceptToken(ctx context.Context, j joining) error {
	if j.ID == (meta.TokenID{}) {
		return fmt.Errorf("%w: no join token, or one of an older build", ErrJoinRefused)
	}
	c, err := w.joinConn(ctx, j.Addr)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrJoinRefused, err)
	}
	return w.node.keys.AcceptJoin(ctx, c, j.ID.String(), j.Proof)
}
