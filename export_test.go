package keyring

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
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

// LastEntry is the index of the last entry of the keyring's that the FSM has applied.
func LastEntry(f *FSM) uint64 { return f.machine.Entry() }

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

// Fetch asks a server for a key, and forgets what comes.
func Fetch(ctx context.Context, k *Keyring, from raft.ServerID, id KeyID) error {
	return FetchNew(ctx, k, from, k.server.FSM.Ring().Key(id).New())
}

// FetchNew is Fetch of a key that need not be in the ring.
func FetchNew(ctx context.Context, k *Keyring, from raft.ServerID, key meta.NewKey) error {
	got, err := k.replicator.FetchFrom(ctx, string(from), map[KeyID]meta.NewKey{key.ID: key})
	if err == nil && len(got) != 1 {
		err = errors.New("it has not come")
	}
	for _, key := range got {
		key.Secret.Wipe()
	}
	return err
}

// SealFetched is what a fetch costs but for the connection and the messages: the key pair, the sealing
// and the opening. It returns the sizes of the messages.
func SealFetched(k *Keyring, id KeyID) (request, answer int, err error) {
	pull, err := peer.NewFetch([]peer.ID{peer.ID(id)})
	if err != nil {
		return 0, 0, err
	}
	a, _ := k.server.Store.Copy(id)
	b := peer.Binding{Cluster: k.server.FSM.Ring().Cluster, Asker: "a", Answerer: "b"}
	sealed, err := peer.SealKeys(b, pull.Request(), []peer.Secret{peer.NewSecret(id, a.Check, a.Secret.Encode())})
	if err != nil {
		return 0, 0, err
	}
	if _, err := pull.Open(b, sealed); err != nil {
		return 0, 0, err
	}
	encoded, err := peer.Response{Fetch: sealed}.Encode()
	return len(pull.Request()), len(encoded), err
}

// Secrets are the key bytes that a keyring has in memory: root keys, signing keys, and what
// its files wrap them under. read returns the content of a key file.
func Secrets(k *Keyring, read func(name string) ([]byte, error)) [][]byte {
	var secrets [][]byte
	for _, id := range k.server.Store.Present().InMemory {
		for _, b := range LiveOf(k, id) {
			secrets = append(secrets, slices.Clone(b))
		}
		b, err := read(nks.FileName(id))
		if err != nil {
			panic(err)
		}
		f, err := nks.DecodeFile(b)
		if err != nil {
			panic(err)
		}
		for _, w := range f.Wrapped {
			secrets = append(secrets, w.Ciphertext)
			if w.KEK == kek.InlineID {
				secrets = append(secrets, w.Ciphertext[:kek.Size])
			}
		}
	}
	return secrets
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

// PlantKey writes a key file that no ring knows, as an offer does.
func PlantKey(k *Keyring) (KeyID, error) {
	secret, err := nks.Generate("EdDSA")
	if err != nil {
		return KeyID{}, err
	}
	id := lead.NewKeyID()
	return id, k.server.Store.Put(context.Background(), keystore.Key{
		ID: id, Algorithm: "EdDSA", Check: secret.Check(id, "EdDSA"), Created: time.Now().UTC().Round(0), Secret: secret,
	})[0]
}

// Has reports whether a keyring has material of a key.
func Has(k *Keyring, id KeyID) bool { return k.server.Store.InMemory(id) }

// UseToken binds a join token to a certificate, on the leader.
func UseToken(ctx context.Context, n Node, token string, user meta.Digest) error {
	t, err := join.Parse(token)
	if err != nil {
		return err
	}
	use := &meta.UseJoinToken{ID: t.ID, Server: n.Keyring().server.FSM.Ring().JoinToken(t.ID).Server, User: user}
	return n.Keyring().server.FSM.Propose(ctx, n.Keyring().server.Raft, []meta.Command{{UseJoinToken: use}})
}

// JoinSecret is what raft must not have of a join token.
func JoinSecret(token string) []byte {
	b, _ := base64.RawURLEncoding.DecodeString(token)
	return b[17:]
}

// BetweenSteps has the leader's loop do something between two of its steps.
func BetweenSteps(ctx context.Context, k *Keyring, do func(context.Context) error) error {
	return k.leader.BetweenSteps(ctx, do)
}

// Loaded is how many keys are in memory.
func Loaded(k *Keyring) int { return len(k.server.Store.Present().InMemory) }

// RaftServers are the servers of a node's latest raft configuration.
func RaftServers(n Node) []raft.Server {
	return n.Keyring().server.Raft.GetConfiguration().Configuration().Servers
}

// Lose takes a key out of a keyring's memory and directory, as a disk that has failed would.
func Lose(k *Keyring, id KeyID) error {
	k.server.Store.NoteRemoved(id)
	k.server.FSM.Notify()
	isRemoved := func(KeyID) bool { return true }
	return errors.Join(k.server.Store.SetAside(id, isRemoved), k.server.Store.Unlink(id, isRemoved))
}

// SnapshotRaft has a node's raft write a snapshot.
func SnapshotRaft(n Node) error { return n.Keyring().server.Raft.Snapshot().Error() }

// RestoreRaft makes a snapshot and restores it, which sends it to every other server.
func RestoreRaft(n Node) error {
	f := n.Keyring().server.Raft.Snapshot()
	if err := f.Error(); err != nil {
		return err
	}
	meta, r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return n.Keyring().server.Raft.Restore(meta, r, time.Minute)
}

// Propose proposes commands as the keyring does.
func Propose(ctx context.Context, k *Keyring, cmds ...meta.Command) error {
	return k.server.Propose(ctx, cmds...)
}

// Live are the key bytes themselves that a keyring has in memory, not a copy of them.
func Live(k *Keyring) [][]byte {
	var live [][]byte
	for _, id := range k.server.Store.Present().InMemory {
		live = append(live, LiveOf(k, id)...)
	}
	return live
}

// SignerOf is what a key of the ring signs with.
func SignerOf(k *Keyring, id KeyID) *jwt.Signer {
	s, err := k.server.Store.Signer(id, k.server.FSM.Ring().Key(id).Check)
	if err != nil {
		panic(err)
	}
	return s
}

// Reread drops a key from memory and reads its file again, while Decrypt still has the one
// that was dropped.
func Reread(k *Keyring, id KeyID) error {
	k.server.Store.NoteRemoved(id)
	return ReadFiles(k)
}

// ReadFiles reads the key files that are not in memory, removed keys' too.
func ReadFiles(k *Keyring) error {
	return k.server.Store.Heal(context.Background(), &meta.Ring{}, nil, nil)
}

// Confirm reports whether a key is held at this moment, by its file.
func Confirm(k *Keyring, id KeyID) (bool, error) { return k.server.Store.Confirm(id) }

// Heal does what the replicator does about keys that it took for missing.
func Heal(k *Keyring, keys ...KeyID) {
	v := k.caughtUp.View()
	var missing []*meta.Key
	for _, id := range keys {
		missing = append(missing, v.Ring.Key(id))
	}
	k.replicator.Reread(context.Background(), v, missing)
}

// SetRemovedAside sets the file of a removed key aside.
func SetRemovedAside(k *Keyring, id KeyID) error {
	return k.server.Store.SetAside(id, k.server.WasRemoved)
}

// DropActive takes the active key out of memory.
func DropActive(k *Keyring) { k.server.Store.NoteRemoved(k.server.FSM.Ring().Active().ID) }

// Reseal opens records and seals them under the active key, and returns how many.
func Reseal(k *Keyring, records []Sealed) (int, error) {
	var f scanResult
	err := k.rekeyer.reseal(&f, KeyID{}, records)
	return len(f.records), err
}

// LiveOf are the key bytes themselves that a keyring has in memory of one key.
func LiveOf(k *Keyring, id KeyID) [][]byte {
	var live [][]byte
	k.server.Store.View(id, func(m *nks.Material) { live = [][]byte{m.Root()[:], m.Signing()} })
	return live
}

// SetMissed has the FSM say that it could not apply that entry; 0 is none.
func SetMissed(f *FSM, entry uint64) { f.machine.NoteMissed(entry) }
