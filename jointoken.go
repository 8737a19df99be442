package keyring

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/meta"
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

// JoinTokenInfo is a join token that has not ended, without its secret.
type JoinTokenInfo struct {
	ID     string        `json:"id"`     // 32 hexadecimal digits; no secret
	Server raft.ServerID `json:"server"` // that may join with it
	End    time.Time     `json:"end"`
	Used   bool          `json:"used"` // a certificate of that server has joined with it, and no other can
}

// JoinToken has the leader make a token with which the server of that ID may join this cluster: it
// goes into NodeConfig.JoinToken there, and proves the server to the cluster and the cluster to the
// server. It is a secret. It is good for ttl, zero means an hour, at most MaxJoinTTL; for that server
// alone; and for the first certificate of it that joins, which may do so again. It ends before when any
// server is removed, with a full rotation or one that revokes a key, when the data under the key that was
// active as it was made is moved, when raft restores a snapshot, for a leader that has it from a
// snapshot alone, as after a restart, and by WithdrawJoinToken. There are MaxJoinTokens at most.
//
// It may be called on any server. It waits for a leader that is ready and answers, 10 seconds at most.
// While a server of the cluster does not answer, or is of a build without such tokens, it is an error that
// names that server: remove it if it will not come back, or use AddServer.
func (n *Node) JoinToken(id raft.ServerID, ttl time.Duration) (string, error) {
	r := joinTokenRequest{ID: id, TTL: ttl}
	if r.TTL == 0 {
		r.TTL = defaultJoinTTL
	}
	if err := r.check(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), memberTimeout)
	defer cancel()
	var text string
	err := n.whenLed(ctx, func() (err error) {
		text, err = n.makeJoinToken(ctx, r)
		if errors.Is(err, ErrNotLeader) {
			var b []byte
			b, err = n.forwardRequest(ctx, memberTimeout, pathJoinToken, r)
			text = string(b)
		}
		return err
	})
	return text, err
}

// JoinTokens returns the join tokens that have not ended, as this server knows them and by its clock. One that
// raft has restored from a snapshot is among them until the leader ends it, though nobody can join with it
// where the leader has it from a snapshot alone too.
func (n *Node) JoinTokens() []JoinTokenInfo {
	return liveTokens(n.keys.fsm.ring.Load(), n.keys.now())
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
// more. Who has joined stays: see RemoveServer. That there is no such token is an error. It may be called
// on any server. As long as ctx lets it, it waits for a leader that is ready and answers.
func (n *Node) WithdrawJoinToken(ctx context.Context, id string) error {
	r := withdrawRequest{By: actorOf(ctx)}
	if err := r.ID.UnmarshalText([]byte(id)); err != nil {
		return errors.New("withdraw join token: not the ID of one, which has 32 hexadecimal digits; the token itself is a secret") // it may be that
	}
	return n.whenLed(ctx, func() error {
		err := n.withdrawJoinToken(ctx, r)
		if errors.Is(err, ErrNotLeader) {
			_, err = n.forwardRequest(ctx, memberTimeout, pathWithdraw, r)
		}
		return err
	})
}

// What the leader is asked for, and by whom.
type (
	joinTokenRequest struct {
		ID  raft.ServerID `bound:"bytes=1024"`
		TTL time.Duration
	}
	withdrawRequest struct {
		By string `json:",omitempty" bound:"bytes=255"`
		ID meta.TokenID
	}
)

var (
	joinTokenType = bounded.For[joinTokenRequest](peer.MaxMessage)
	withdrawType  = bounded.For[withdrawRequest](peer.MaxMessage)
)

func (r joinTokenRequest) check() error {
	if err := peer.CheckServerID(string(r.ID)); err != nil {
		return fmt.Errorf("join token: %w", err)
	}
	if r.TTL <= 0 || r.TTL > MaxJoinTTL {
		return fmt.Errorf("join token for server %s: for %v, want at most %v", r.ID, r.TTL, MaxJoinTTL)
	}
	return nil
}

// makeJoinToken is JoinToken on the leader. It takes turns with removals: a token is either made after a
// removal, or ends with it.
func (n *Node) makeJoinToken(ctx context.Context, r joinTokenRequest) (string, error) {
	return gate.Through(ctx, &n.keys.gate, func(ctx context.Context) (string, error) { return n.makeTokenHere(ctx, r) })
}

func (n *Node) makeTokenHere(ctx context.Context, r joinTokenRequest) (text string, err error) {
	if err := n.keys.mayLead(); err != nil {
		return "", err
	}
	behind := behindError{}
	if err := n.keys.allApply(ctx, tokenVersion); errors.As(err, &behind) && behind.allSilent() {
		return "", fmt.Errorf("join token for server %s: %w: %w", r.ID, ErrNotReady, err) // they may just have started
	}
	err = n.keys.alongActivations(ctx, func(ctx context.Context) error {
		token := join.New()
		defer token.Wipe()
		record, err := n.keys.sealJoinToken(token, r)
		if err != nil {
			return fmt.Errorf("join token for server %s: %w", r.ID, err)
		}
		// The turn lasts until the outcome is known, whoever still waits for it: an entry under way could
		// come into the log after a removal.
		add := meta.Command{AddJoinToken: &meta.AddJoinToken{Token: record}}
		if err := n.keys.propose(context.WithoutCancel(ctx), add); err != nil {
			return fmt.Errorf("join token for server %s: %w", r.ID, err)
		}
		n.log.Info("join token is made", "token", record.ID, "id", r.ID, "end", record.End)
		text = token.Text()
		return nil
	})
	return text, err
}

func (k *Keyring) sealJoinToken(token join.Token, r joinTokenRequest) (meta.JoinToken, error) {
	ring := k.fsm.ring.Load()
	active := ring.Active()
	switch {
	case active == nil:
		return meta.JoinToken{}, ErrNotReady
	case len(ring.JoinTokens) == MaxJoinTokens:
		return meta.JoinToken{}, fmt.Errorf("there are %d already: withdraw some", MaxJoinTokens)
	}
	t := meta.JoinToken{ID: token.ID, Server: string(r.ID), End: k.now().Add(r.TTL).Truncate(time.Second), Key: active.ID}
	m, ok := k.store.copy(t.Key)
	if !ok {
		return meta.JoinToken{}, fmt.Errorf("%w %s", ErrKeyMissing, t.Key)
	}
	defer m.secret.Wipe()
	var err error
	t.Sealed, err = token.Seal(m.secret.Root()[:], joinRecord(ring, t))
	return t, err
}

func joinRecord(ring *meta.Ring, t meta.JoinToken) join.Record {
	return join.Record{Cluster: ring.Cluster, Server: t.Server, End: t.End, Key: t.Key}
}

// openJoinToken returns a token with which the server may join now. The error is for the log: the server
// learns only that it is no member.
func (k *Keyring) openJoinToken(id meta.TokenID, server string, user meta.Digest) (join.Token, error) {
	ring := k.fsm.ring.Load()
	if why := plan.JoinRefusal(ring, id, server, user, k.now(), k.fsm.tokens()); why != "" {
		return join.Token{}, fmt.Errorf("join token %s: %s", id, why)
	}
	t := ring.JoinToken(id)
	m, ok := k.store.copy(t.Key)
	if !ok {
		return join.Token{}, fmt.Errorf("join token %s: %w %s", id, ErrKeyMissing, t.Key)
	}
	defer m.secret.Wipe()
	return join.Open(m.secret.Root()[:], id, joinRecord(ring, *t), t.Sealed)
}

// withdrawJoinToken is WithdrawJoinToken on the leader.
func (n *Node) withdrawJoinToken(ctx context.Context, r withdrawRequest) error {
	return n.keys.do(ctx, func(ctx context.Context) error { return n.withdrawHere(ctx, r) })
}

func (n *Node) withdrawHere(ctx context.Context, r withdrawRequest) error {
	if err := n.keys.mayLead(); err != nil {
		return err
	}
	if n.keys.fsm.ring.Load().JoinToken(r.ID) == nil {
		return fmt.Errorf("withdraw join token %s: there is none of that ID: it may have ended", r.ID)
	}
	n.log.Info("join token is withdrawn", "token", r.ID, "by", r.By)
	return n.keys.endJoinTokens(WithActor(ctx, r.By), meta.EndJoinTokens{IDs: []meta.TokenID{r.ID}})
}

// endJoinTokens ends tokens that are there. So every server has said before that it applies such
// commands, and none is asked again: one that is stolen would stop its removal by silence.
func (k *Keyring) endJoinTokens(ctx context.Context, end meta.EndJoinTokens) error {
	return k.fsm.propose(ctx, k.raft, []meta.Command{{EndJoinTokens: &end}})
}

// endAllJoinTokens is for before a server is removed: it may have seen them all.
func (n *Node) endAllJoinTokens(ctx context.Context) error {
	if len(n.keys.fsm.ring.Load().JoinTokens) == 0 {
		return nil
	}
	n.log.Info("all join tokens end: a server is removed")
	return n.keys.endJoinTokens(ctx, meta.EndJoinTokens{All: true})
}

// tokens returns what it has from a snapshot alone.
func (f *FSM) tokens() plan.Snapshot { return f.restored.Load().tokens }
