package keyring

import (
	"context"
	"slices"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// SetFS puts a keystore on a simulated disk.
func SetFS(c *Config, fsys durable.FS) { c.fs = fsys }

// SetSameBuild tells a server that every other one is at its build.
func SetSameBuild(c *Config) { c.sameBuild = true }

// Ring is what the FSM has applied.
func Ring(f *FSM) *meta.Ring { return f.ring.Load() }

// AwaitHolders waits until n servers are recorded as holders of the key.
func AwaitHolders(k *Keyring, id KeyID, n int) {
	for {
		changed := k.fsm.changed.wait()
		if m := k.fsm.ring.Load().Key(id); m != nil && len(m.Holders) >= n {
			return
		}
		<-changed
	}
}

// Secrets are the key bytes that a keyring has in memory: root keys, signing keys, and what
// its files wrap them under.
func Secrets(k *Keyring) [][]byte {
	var secrets [][]byte
	for id, m := range k.store.all() {
		secrets = append(secrets, slices.Clone(m.secret.Root()[:]), slices.Clone(m.secret.Signing()))
		b, err := k.store.dir.Read(nks.FileName(id), nks.MaxFile)
		if err != nil {
			panic(err)
		}
		f, err := nks.DecodeFile(b)
		if err != nil {
			panic(err)
		}
		for _, w := range f.Wrapped {
			secrets = append(secrets, w.Ciphertext)
			if w.KEK == inlineID {
				secrets = append(secrets, w.Ciphertext[:kekSize])
			}
		}
	}
	return secrets
}

// SnapshotRaft has a node's raft write a snapshot.
func SnapshotRaft(n *Node) error { return n.raft.Snapshot().Error() }

// Propose proposes commands as the keyring does.
func Propose(ctx context.Context, k *Keyring, cmds ...meta.Command) error {
	return propose(ctx, k.raft, cmds...)
}

// Live are the key bytes themselves that a keyring has in memory, not a copy of them.
func Live(k *Keyring) [][]byte {
	var live [][]byte
	for _, m := range k.store.all() {
		live = append(live, m.secret.Root()[:], m.secret.Signing())
	}
	return live
}

// Reread drops a key from memory and reads its file again, while Decrypt still has the one
// that was dropped.
func Reread(k *Keyring, id KeyID) error {
	k.store.drop(id)
	return k.store.scan(k.ctx, func(KeyID) bool { return false })
}

// DropActive takes the active key out of memory.
func DropActive(k *Keyring) { k.store.drop(k.fsm.ring.Load().Active().ID) }
