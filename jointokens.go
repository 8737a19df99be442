package keyring

// Tokens with which a server may join: made, listed, used, withdrawn, ended. The reasons to refuse one are in
// plan.JoinRefusal; those that must also hold when raft applies its use are in internal/meta.

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Bounds on join tokens.
const (
	defaultJoinTTL = time.Hour
	// MaxJoinTTL is how long a join token is good at most.
	MaxJoinTTL = 24 * time.Hour
	// MaxJoinTokens is how many there are at a time.
	MaxJoinTokens = meta.MaxJoinTokens

	tokenVersion = 2 // of log entries: join tokens came with it
)

// ErrJoinRefused means that a server may not join with its token. The rest of the error is for the leader's log: the
// server must learn no more than that it is no member.
var ErrJoinRefused = join.ErrRefused

// JoinTokenInfo is a join token that has not ended, without its secret.
type JoinTokenInfo struct {
	ID     string        `json:"id"`     // 32 hexadecimal digits; no secret
	Server raft.ServerID `json:"server"` // that may join with it
	End    time.Time     `json:"end"`
	Used   bool          `json:"used"` // a certificate of that server has joined with it, and no other can
}

// MakeJoinToken makes a token with which the server of that ID may join this cluster: it proves the server to the
// cluster and the cluster to the server, over one TLS connection, as JoinConn says. It is a secret. It is good for
// ttl, zero means an hour, at most MaxJoinTTL; for that server alone; and for the first certificate of it that joins,
// which may do so again. It ends before when any server is removed, with a full rotation or one that revokes a key,
// when the data under the key that was active as it was made is moved, when raft restores a snapshot, for a leader
// that has it from a snapshot alone, as after a restart, and by WithdrawJoinToken. There are MaxJoinTokens at most.
//
// While a server of the cluster does not answer, or runs a build without such tokens, it is an error that names that
// server; if none has answered otherwise, it matches ErrNotReady. Leader only.
func (k *Keyring) MakeJoinToken(ctx context.Context, id raft.ServerID, ttl time.Duration) (string, error) {
	if err := k.server.Gate.Err(); err != nil {
		return "", err
	}
	if err := peer.CheckServerID(string(id)); err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	if ttl == 0 {
		ttl = defaultJoinTTL
	}
	if ttl < 0 || ttl > MaxJoinTTL {
		return "", fmt.Errorf("join token for server %s: for %v, want at most %v", id, ttl, MaxJoinTTL)
	}
	text, err := gate.Through(ctx, &k.server.Gate, func(ctx context.Context) (string, error) { return k.members().makeJoinToken(ctx, id, ttl) })
	if err != nil && !errors.Is(err, ErrNotLeader) {
		return "", fmt.Errorf("join token for server %s: %w", id, err)
	}
	return text, err
}

// makeJoinToken takes turns with removals: a token is either made after a removal, or ends with it.
func (m members) makeJoinToken(ctx context.Context, id raft.ServerID, ttl time.Duration) (text string, err error) {
	if err := m.Leading(); err != nil {
		return "", err
	}
	behind := local.BehindError{}
	if err := m.AllApply(ctx, tokenVersion); errors.As(err, &behind) && behind.AllSilent() {
		return "", fmt.Errorf("%w: %w", ErrNotReady, err) // they may just have started
	}
	err = m.leader.BetweenSteps(ctx, func(ctx context.Context) error {
		token := join.New()
		defer token.Wipe()
		record, err := m.sealJoinToken(token, id, ttl)
		if err != nil {
			return err
		}
		// The turn lasts until the outcome is known, whether or not the caller still waits for it: an entry under way could
		// come into the log after a removal.
		add := meta.Command{AddJoinToken: &meta.AddJoinToken{Token: record}}
		if err := m.Propose(context.WithoutCancel(ctx), add); err != nil {
			return err
		}
		m.cfg.Logger.Info("join token is made", "token", record.ID, "id", id, "end", record.End)
		text = token.Text()
		return nil
	})
	return text, err
}

func (m members) sealJoinToken(token join.Token, id raft.ServerID, ttl time.Duration) (meta.JoinToken, error) {
	ring := m.FSM.Ring()
	active := ring.Active()
	switch {
	case active == nil:
		return meta.JoinToken{}, ErrNotReady
	case len(ring.JoinTokens) == MaxJoinTokens:
		return meta.JoinToken{}, fmt.Errorf("there are %d already: withdraw some", MaxJoinTokens)
	}
	t := meta.JoinToken{ID: token.ID, Server: string(id), End: m.Now().Add(ttl).Truncate(time.Second), Key: active.ID}
	var err error
	seal := func(material *nks.Material) { t.Sealed, err = token.Seal(material.Root()[:], joinRecord(ring, t)) }
	if !m.Store.View(t.Key, seal) {
		return meta.JoinToken{}, fmt.Errorf("%w %s", ErrKeyMissing, t.Key)
	}
	return t, err
}

func joinRecord(ring *meta.Ring, t meta.JoinToken) join.Record {
	return join.Record{Cluster: ring.Cluster, Server: t.Server, End: t.End, Key: t.Key}
}

// JoinTokens returns the join tokens that have not ended, as this server knows them and by its clock. One that
// raft has restored from a snapshot is among them until the leader ends it, though nobody can join with it
// where the leader has it from a snapshot alone too.
func (k *Keyring) JoinTokens() []JoinTokenInfo {
	return liveTokens(k.server.FSM.Ring(), k.server.Now())
}

func liveTokens(ring *meta.Ring, now time.Time) (all []JoinTokenInfo) {
	for _, t := range ring.JoinTokens {
		if !now.Before(t.End) {
			continue
		}
		all = append(all, JoinTokenInfo{t.ID.String(), raft.ServerID(t.Server), t.End, t.User != meta.Digest{}})
	}
	return all
}

// WithdrawJoinToken ends the join token of that ID, which is JoinTokenInfo's: nobody can join with it any
// more. A server that has joined stays: see RemoveServer. That there is no such token is an error. Leader only.
func (k *Keyring) WithdrawJoinToken(ctx context.Context, id string) error {
	if err := k.server.Gate.Err(); err != nil {
		return err
	}
	token, err := parseTokenID(id)
	if err != nil {
		return fmt.Errorf("withdraw join token: %w", err)
	}
	return k.do(ctx, func(ctx context.Context) error {
		if err := k.server.Leading(); err != nil {
			return err
		}
		if err := k.server.MayForward(ctx); err != nil {
			return err
		}
		if k.server.FSM.Ring().JoinToken(token) == nil {
			return fmt.Errorf("withdraw join token %s: there is none of that ID: it may have ended", token)
		}
		k.server.cfg.Logger.Info("join token is withdrawn", "token", token, "by", Actor(ctx))
		return k.members().endJoinTokens(ctx, meta.EndJoinTokens{IDs: []meta.TokenID{token}})
	})
}

func parseTokenID(s string) (id meta.TokenID, err error) {
	if err := id.UnmarshalText([]byte(s)); err != nil {
		return id, errors.New("not the ID of one, which has 32 hexadecimal digits; the token itself is a secret") // it may be that
	}
	return id, nil
}

// JoinConn is the TLS connection over which a server joins with a token, as both of its ends see it. First the server
// tells the leader the token's ID; the leader answers with LeaderProof, and the server believes nothing before
// CheckLeader has taken that. Then it sends JoinerProof, and the leader calls AcceptJoin. A proof is worth nothing on
// another connection, or between other servers.
type JoinConn struct {
	Exporter             []byte // tls-exporter of RFC 9266: 32 bytes of EXPORTER-Channel-Binding without a context
	Cluster              string // the cluster's name in the certificates
	Leader, Joiner       raft.ServerID
	LeaderKey, JoinerKey []byte             // DER SubjectPublicKeyInfo of the certificates that were shown
	Addr                 raft.ServerAddress // where the server that joins is to be reached
}

func (c JoinConn) meeting() join.Meeting {
	return join.Meeting{
		Exporter: c.Exporter, Cluster: c.Cluster, Leader: string(c.Leader), LeaderKey: c.LeaderKey,
		Joiner: string(c.Joiner), JoinerKey: c.JoinerKey, Addr: string(c.Addr),
	}
}

// JoinTokenID returns the ID of a token, which is no secret, or says what is wrong with the token.
func JoinTokenID(token string) (string, error) {
	t, err := join.Parse(token)
	if err != nil {
		return "", err
	}
	defer t.Wipe()
	return meta.TokenID(t.ID).String(), nil
}

// JoinerProof is what the server that joins sends, to prove that it has the token.
func (c JoinConn) JoinerProof(token string) ([]byte, error) {
	t, err := join.Parse(token)
	if err != nil {
		return nil, err
	}
	defer t.Wipe()
	return c.meeting().JoinerProof(t)
}

// CheckLeader is an error unless a proof is the LeaderProof for the token and this connection.
func (c JoinConn) CheckLeader(token string, proof []byte) error {
	t, err := join.Parse(token)
	if err != nil {
		return err
	}
	defer t.Wipe()
	return c.meeting().CheckLeader(t, proof)
}

// LeaderProof is what the leader sends to a server that has told the ID of its token: it proves that this is the
// leader of the cluster that made it. Errors that match ErrJoinRefused are for the leader's log. Leader only.
func (k *Keyring) LeaderProof(c JoinConn, token string) ([]byte, error) {
	if err := k.server.Leading(); err != nil {
		return nil, err
	}
	t, err := k.members().openJoinToken(c, token, meta.Digest{})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJoinRefused, err)
	}
	defer t.Wipe()
	proof, err := c.meeting().LeaderProof(t)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJoinRefused, err)
	}
	return proof, nil
}

// AcceptJoin adds the server at the other end of the connection, without a vote, if its proof is the JoinerProof for
// the token of that ID. From then on the token is good for this certificate alone. A server that is a member by then
// is readmitted: see ReadmitServer, and when not to call that. Errors that match ErrJoinRefused are for the leader's log. Leader only.
func (k *Keyring) AcceptJoin(ctx context.Context, c JoinConn, token string, proof []byte) error {
	return k.do(ctx, func(ctx context.Context) error {
		if err := k.server.Leading(); err != nil {
			return err
		}
		if err := checkRaftAddress(c.Addr); err != nil {
			return fmt.Errorf("%w: %w", ErrJoinRefused, err)
		}
		use, err := k.members().checkJoinerProof(c, token, proof)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrJoinRefused, err)
		}
		return k.leader.BetweenSteps(ctx, func(ctx context.Context) error {
			if err := k.members().bind(ctx, use); err != nil {
				return err
			}
			if s, known := k.server.ServerOf(c.Joiner); known {
				return k.members().readmit(ctx, s, c.Addr)
			}
			k.server.cfg.Logger.Info("server joins", "id", c.Joiner, "addr", c.Addr, "token", use.ID)
			return k.members().setAddress(c.Joiner, c.Addr, false)
		})
	})
}

// checkJoinerProof returns what is to be recorded of the token that a server has proved to have.
func (m members) checkJoinerProof(c JoinConn, token string, proof []byte) (use meta.UseJoinToken, err error) {
	user := meta.Digest(sha256.Sum256(c.JoinerKey))
	t, err := m.openJoinToken(c, token, user)
	if err != nil {
		return use, err
	}
	defer t.Wipe()
	if err := c.meeting().CheckJoiner(t, proof); err != nil {
		return use, err
	}
	return meta.UseJoinToken{ID: t.ID, Server: string(c.Joiner), User: user}, nil
}

// bind binds the token to the server's certificate, before the server is added. A crash in between leaves a
// token with which that server, with that certificate, can ask again. It takes turns with removals,
// which end the token.
func (m members) bind(ctx context.Context, use meta.UseJoinToken) error {
	if why := plan.JoinRefusal(m.FSM.Ring(), use.ID, use.Server, use.User, m.Now(), m.FSM.LastRestore().Tokens); why != "" {
		return fmt.Errorf("%w: join token %s: %s", ErrJoinRefused, use.ID, why)
	}
	// As with the end of tokens, no server is asked whether it applies this.
	err := m.FSM.Propose(ctx, m.Raft, []meta.Command{{UseJoinToken: &use}})
	if errors.Is(err, meta.ErrCommandRefused) {
		return fmt.Errorf("%w: %w", ErrJoinRefused, err)
	}
	return err
}

// openJoinToken returns a token with which a server may join now. user is the digest of its certificate's public key,
// or zero while that is not known.
func (m members) openJoinToken(c JoinConn, token string, user meta.Digest) (join.Token, error) {
	id, err := parseTokenID(token)
	if err != nil {
		return join.Token{}, fmt.Errorf("join token: %w", err)
	}
	if c.Leader != m.cfg.ID {
		return join.Token{}, fmt.Errorf("join token %s: the connection is one to %q", id, c.Leader)
	}
	ring := m.FSM.Ring()
	if why := plan.JoinRefusal(ring, id, string(c.Joiner), user, m.Now(), m.FSM.LastRestore().Tokens); why != "" {
		return join.Token{}, fmt.Errorf("join token %s: %s", id, why)
	}
	t := ring.JoinToken(id)
	var opened join.Token
	open := func(material *nks.Material) {
		opened, err = join.Open(material.Root()[:], id, joinRecord(ring, *t), t.Sealed)
	}
	if !m.Store.View(t.Key, open) {
		return join.Token{}, fmt.Errorf("join token %s: %w %s", id, ErrKeyMissing, t.Key)
	}
	return opened, err
}
