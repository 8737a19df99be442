package keyring

import (
	"context"
	"errors"
	"slices"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// CallGrace is how much longer than its context a call may take.
const CallGrace = gate.Grace

// OnLookUp has do called each time the active key is looked up, between the two loads.
func OnLookUp(c *Config, do func()) { c.onLookUp = do }

// NewFSMOf is NewFSM in another build.
func NewFSMOf(b meta.Build) *FSM {
	return newFSM(b)
}

// Ring is what the FSM has applied.
func Ring(f *FSM) *meta.Ring { return f.machine.Ring() }

// IsAudited reports whether events wait to be told.
func IsAudited(f *FSM) bool { return f.machine.Audits() }

// AwaitAll waits until n keys are in the ring and this server holds each of them.
func AwaitAll(ctx context.Context, k *Keyring, n int) error {
	for {
		changed := k.server.FSM.Changed()
		ring := k.server.FSM.Ring()
		lacks := func(m *meta.Key) bool { return !k.server.Store.Holds(m) }
		if len(ring.Keys) >= n && !slices.ContainsFunc(ring.Keys, lacks) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Fetch asks a server for a key, decodes what comes, and forgets it.
func Fetch(ctx context.Context, k *Keyring, from raft.ServerID, id KeyID) error {
	bad := errors.New("it has not come")
	cluster := func() meta.ClusterID { return k.server.FSM.Ring().Cluster }
	err := k.server.Peers.Fetch(ctx, string(from), cluster, []meta.KeyID{meta.KeyID(id)}, func(_ meta.KeyID, material []byte) {
		var m *nks.Material
		m, bad = nks.Decode(material)
		m.Wipe()
	})
	return errors.Join(err, bad)
}

// SealFetched is what a fetch costs but for the connection and the messages: the key pair, the sealing
// and the opening. It returns the sizes of the messages.
func SealFetched(k *Keyring, id KeyID) (request, answer int, err error) {
	pull, err := peer.NewFetch([]peer.ID{peer.ID(id)})
	if err != nil {
		return 0, 0, err
	}
	a, _ := k.server.Store.Copy(meta.KeyID(id))
	b := peer.Binding{Cluster: k.server.FSM.Ring().Cluster, Asker: "a", Answerer: "b"}
	sealed, err := peer.SealKeys(b, pull.Request(), []peer.Secret{peer.NewSecret(meta.KeyID(id), a.Check, a.Secret.Encode())})
	if err != nil {
		return 0, 0, err
	}
	if _, err := pull.Open(b, sealed); err != nil {
		return 0, 0, err
	}
	encoded, err := peer.Response{Fetch: sealed}.Encode()
	return len(pull.Request()), len(encoded), err
}

// PackStatus and UnpackStatus are how a Status travels.
var (
	PackStatus   = packStatus
	UnpackStatus = unpackStatus
	DecodeStatus = statusType.DecodeKnown
)

// LiveTokens are the join tokens that have not ended.
var LiveTokens = liveTokens

// Node has a keyring.
type Node interface{ Keyring() *Keyring }

// JoinRefusal says why a server may not join with a token now, or nothing.
func JoinRefusal(n Node, token string, id raft.ServerID) string {
	t, err := join.Parse(token)
	if err == nil {
		conn := JoinConn{
			Exporter: make([]byte, 32), Leader: n.Keyring().server.cfg.ID, LeaderKey: []byte("leader"), Joiner: id, JoinerKey: []byte("joiner"),
		}
		_, err = n.Keyring().LeaderProof(conn, meta.TokenID(t.ID).String())
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// BetweenSteps has the leader's loop do something between two of its steps.
func BetweenSteps(ctx context.Context, k *Keyring, do func(context.Context) error) error {
	return k.leader.BetweenSteps(ctx, do)
}

// Propose proposes commands as the keyring does.
func Propose(ctx context.Context, k *Keyring, cmds ...meta.Command) error {
	return k.server.Propose(ctx, cmds...)
}

// Reseal opens records and seals them under the active key, and returns how many.
func Reseal(k *Keyring, records []Sealed) (int, error) {
	var f scanResult
	err := k.rekeyer.reseal(&f, meta.KeyID{}, records)
	return len(f.records), err
}

// Store is the keystore.
func Store(k *Keyring) *keystore.Store { return k.server.Store }

// Raft is the raft of a keyring, which a Node keeps to itself.
func Raft(k *Keyring) *raft.Raft { return k.server.Raft }
