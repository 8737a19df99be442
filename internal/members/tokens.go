package members

// Tokens with which a server may join: made, used, withdrawn, ended. The reasons to refuse one are in plan.JoinRefusal;
// those that must also hold when raft applies its use are in internal/meta.

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

const tokenVersion = 2 // of log entries: join tokens came with it

// MakeToken makes a token with which the server of that ID may join. It takes turns with removals: a token is either made
// after a removal, or ends with it.
func (m Members) MakeToken(ctx context.Context, id raft.ServerID, ttl time.Duration) (text string, err error) {
	if err := m.Leading(); err != nil {
		return "", err
	}
	behind := local.BehindError{}
	if err := m.AllApply(ctx, tokenVersion); errors.As(err, &behind) && behind.AllSilent() {
		return "", fmt.Errorf("%w: %w", fsm.ErrNotReady, err) // they may just have started
	}
	err = m.Leader.BetweenSteps(ctx, func(ctx context.Context) error {
		token := join.New()
		defer token.Wipe()
		record, err := m.sealToken(token, id, ttl)
		if err != nil {
			return err
		}
		// The turn lasts until the outcome is known, whether or not the caller still waits for it: an entry under way could
		// come into the log after a removal.
		add := meta.Command{AddJoinToken: &meta.AddJoinToken{Token: record}}
		if err := m.Propose(context.WithoutCancel(ctx), add); err != nil {
			return err
		}
		m.Logger.Info("made a join token", "token", record.ID, "id", id, "end", record.End)
		text = token.Text()
		return nil
	})
	return text, err
}

func (m Members) sealToken(token join.Token, id raft.ServerID, ttl time.Duration) (meta.JoinToken, error) {
	ring := m.FSM.Ring()
	active := ring.Active()
	switch {
	case active == nil:
		return meta.JoinToken{}, fsm.ErrNotReady
	case len(ring.JoinTokens) == meta.MaxJoinTokens:
		return meta.JoinToken{}, fmt.Errorf("there are %d already: withdraw some", meta.MaxJoinTokens)
	}
	t := meta.JoinToken{ID: token.ID, Server: string(id), End: m.Now().Add(ttl).Truncate(time.Second), Key: active.ID}
	var err error
	seal := func(material *nks.Material) { t.Sealed, err = token.Seal(material.Root()[:], recordOf(ring, t)) }
	if !m.Store.View(t.Key, seal) {
		return meta.JoinToken{}, fmt.Errorf("%w %s", local.ErrKeyMissing, t.Key)
	}
	return t, err
}

func recordOf(ring *meta.Ring, t meta.JoinToken) join.Record {
	return join.Record{Cluster: ring.Cluster, Server: t.Server, End: t.End, Key: t.Key}
}

// WithdrawToken ends the token of that ID.
func (m Members) WithdrawToken(ctx context.Context, id string) error {
	token, err := parseTokenID(id)
	if err != nil {
		return fmt.Errorf("withdraw join token: %w", err)
	}
	if err := m.Leading(); err != nil {
		return err
	}
	if err := m.MayForward(ctx); err != nil {
		return err
	}
	if m.FSM.Ring().JoinToken(token) == nil {
		return fmt.Errorf("withdraw join token %s: there is no such token: it may have ended", token)
	}
	m.Logger.Info("withdrawing a join token", "token", token, "by", fsm.Actor(ctx))
	return m.endTokens(ctx, meta.EndJoinTokens{IDs: []meta.TokenID{token}})
}

func parseTokenID(s string) (id meta.TokenID, err error) {
	if err := id.UnmarshalText([]byte(s)); err != nil {
		return id, errors.New("not the ID of a token, which has 32 hexadecimal digits; the token itself is a secret") // it may be that
	}
	return id, nil
}

// LeaderProof is what the leader sends to a server that has told the ID of its token.
func (m Members) LeaderProof(c join.Meeting, token string) ([]byte, error) {
	if err := m.Leading(); err != nil {
		return nil, err
	}
	t, err := m.openToken(c, token, meta.Digest{})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", join.ErrRefused, err)
	}
	defer t.Wipe()
	proof, err := c.LeaderProof(t)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", join.ErrRefused, err)
	}
	return proof, nil
}

// AcceptJoin adds the server at the other end of the connection, without a vote, or readmits it, if its proof is that of
// the token with that ID. From then on the token is good for this certificate alone.
func (m Members) AcceptJoin(ctx context.Context, c join.Meeting, token string, proof []byte) error {
	if err := m.Leading(); err != nil {
		return err
	}
	id, addr := raft.ServerID(c.Joiner), raft.ServerAddress(c.Addr)
	if err := m.checkAddress(id, addr); err != nil {
		return fmt.Errorf("%w: %w", join.ErrRefused, err)
	}
	use, err := m.checkJoinerProof(c, token, proof)
	if err != nil {
		return fmt.Errorf("%w: %w", join.ErrRefused, err)
	}
	return m.Leader.BetweenSteps(ctx, func(ctx context.Context) error {
		if err := m.bind(ctx, use); err != nil {
			return err
		}
		if s, known := m.ServerOf(id); known {
			return m.readmit(ctx, s, addr)
		}
		m.Logger.Info("a server joins", "id", id, "addr", addr, "token", use.ID)
		return m.setAddress(id, addr, false)
	})
}

// checkJoinerProof returns what is to be recorded of the token that a server has proved to have.
func (m Members) checkJoinerProof(c join.Meeting, token string, proof []byte) (use meta.UseJoinToken, err error) {
	user := meta.Digest(sha256.Sum256(c.JoinerKey))
	t, err := m.openToken(c, token, user)
	if err != nil {
		return use, err
	}
	defer t.Wipe()
	if err := c.CheckJoiner(t, proof); err != nil {
		return use, err
	}
	return meta.UseJoinToken{ID: t.ID, Server: c.Joiner, User: user}, nil
}

// bind binds the token to the server's certificate, before the server is added. A crash in between leaves a
// token with which that server, with that certificate, can ask again. It takes turns with removals,
// which end the token.
func (m Members) bind(ctx context.Context, use meta.UseJoinToken) error {
	if why := plan.JoinRefusal(m.FSM.Ring(), use.ID, use.Server, use.User, m.Now(), m.FSM.LastRestore().Tokens); why != "" {
		return fmt.Errorf("%w: join token %s: %s", join.ErrRefused, use.ID, why)
	}
	// As with the end of tokens, no server is asked whether it applies this.
	err := m.FSM.Propose(ctx, m.Raft, []meta.Command{{UseJoinToken: &use}})
	if errors.Is(err, meta.ErrCommandRefused) {
		return fmt.Errorf("%w: %w", join.ErrRefused, err)
	}
	return err
}

// openToken returns a token with which a server may join now. user is the digest of its certificate's public key,
// or zero while that is not known.
func (m Members) openToken(c join.Meeting, token string, user meta.Digest) (join.Token, error) {
	id, err := parseTokenID(token)
	if err != nil {
		return join.Token{}, fmt.Errorf("join token: %w", err)
	}
	if c.Leader != string(m.ID) {
		return join.Token{}, fmt.Errorf("join token %s: the connection goes to %q", id, c.Leader)
	}
	ring := m.FSM.Ring()
	if why := plan.JoinRefusal(ring, id, c.Joiner, user, m.Now(), m.FSM.LastRestore().Tokens); why != "" {
		return join.Token{}, fmt.Errorf("join token %s: %s", id, why)
	}
	t := ring.JoinToken(id)
	var opened join.Token
	open := func(material *nks.Material) {
		opened, err = join.Open(material.Root()[:], id, recordOf(ring, *t), t.Sealed)
	}
	if !m.Store.View(t.Key, open) {
		return join.Token{}, fmt.Errorf("join token %s: %w %s", id, local.ErrKeyMissing, t.Key)
	}
	return opened, err
}

// endTokens ends tokens that are there. So every server has said before that it applies such
// commands, and none is asked again: one that is stolen would stop its removal by silence.
func (m Members) endTokens(ctx context.Context, end meta.EndJoinTokens) error {
	return m.FSM.Propose(ctx, m.Raft, []meta.Command{{EndJoinTokens: &end}})
}

// endAllTokens is for before a server is removed: it may have seen them all.
func (m Members) endAllTokens(ctx context.Context) error {
	if len(m.FSM.Ring().JoinTokens) == 0 {
		return nil
	}
	m.Logger.Info("ending all join tokens, because a server is being removed")
	return m.endTokens(ctx, meta.EndJoinTokens{All: true})
}
