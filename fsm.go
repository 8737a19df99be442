package keyring

// FSM and Mux: what a host gives its raft.

import (
	"io"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/raft"
)

// FSM is the keyring's metadata as a raft.FSM. Make it with NewFSM. Give it to raft, alone or through Mux,
// and to Config. Several Keyrings may use it one after the other, never two at a time. The host's own Apply
// may call Admit and CiphertextKeyID, and nothing else of the keyring: see Mux.
type FSM struct {
	machine *fsm.Machine
}

// NewFSM returns an empty FSM.
func NewFSM() *FSM { return newFSM(meta.This) }

// newFSM returns an FSM that reads and writes the formats of a build.
func newFSM(build meta.Build) *FSM {
	return &FSM{fsm.New(build, func(leader raft.ServerID) error { return NotLeaderError{Leader: leader} })}
}

// Apply implements raft.FSM. Its response is nil or an error. An unknown entry is an error and changes
// nothing. If a newer build wrote the entry, this server then makes no snapshots, and neither encrypts nor
// acts as the leader, until it runs a build that knows the entry.
func (f *FSM) Apply(l *raft.Log) any { return f.machine.Apply(l) }

// Snapshot implements raft.FSM. It fails if the FSM has not applied some entry, which a newer build wrote:
// raft would drop that entry from its log, and no newer build could apply it any longer.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) { return f.machine.Snapshot() }

// Restore implements raft.FSM.
func (f *FSM) Restore(rc io.ReadCloser) error { return f.machine.Restore(rc) }

// CheckSnapshot reads the keyring's section of a snapshot, if there is one, and returns a reader of the whole
// snapshot. A raft transport of the host's own calls it before it gives raft a snapshot from another server.
// Otherwise a snapshot that is damaged, or from a newer build, would replace a good one on disk before raft
// finds out.
func (f *FSM) CheckSnapshot(r io.Reader) (io.Reader, error) { return f.machine.CheckSnapshot(r) }

// StoreConfiguration implements raft.ConfigurationStore. It only tells the keyring that the members have
// changed; the keyring reads them from raft.
func (f *FSM) StoreConfiguration(index uint64, c raft.Configuration) {
	f.machine.StoreConfiguration(index, c)
}

// Admit is for the host's own Apply. It returns nil if the ciphertext was encrypted under the key that is
// active at this point of the log. Otherwise it returns ErrStaleKey, or ErrDecrypt for bytes that are no
// ciphertext of the keyring. A host that rejects what Admit rejects never commits a ciphertext under a
// retired key.
//
// Admit is deterministic, but only from the log index on from which every server calls it. If there are older
// entries, let a field of your command say whether to call it. It checks only the form and the key ID. A
// ciphertext that is damaged or bound to another AAD is admitted, and fails when it is decrypted.
//
// An FSM without an active key, such as one that no raft feeds, returns ErrNotReady. An FSM that lacks what
// raft applied before its start returns an error that also matches ErrNotLoaded. The answer of the other
// servers may then differ, so the host must stop: it must not go on without the entry.
func (f *FSM) Admit(ciphertext []byte) error { return f.machine.Admit(ciphertext) }

// CiphertextKeyID returns the ID of the key that a ciphertext names. It authenticates nothing.
func CiphertextKeyID(ciphertext []byte) (KeyID, error) {
	id, ok := seal.KeyID(ciphertext)
	if !ok {
		return KeyID{}, ErrDecrypt
	}
	return id, nil
}

// Load reads the keyring's part of the newest snapshot. It is for a host whose own FSM is on disk and whose
// raft does not restore a snapshot at the start: raft.Config.NoSnapshotRestoreOnStart. Such a host calls it
// at each start, before raft.NewRaft, with the same snapshot store. raft then applies the entries after that
// snapshot, as usual. Without Load, Open and Admit return ErrNotLoaded.
//
// Such a raft continues from the newest snapshot even if that can't be read. So Load returns an error that
// names an unreadable newest snapshot, and takes no older one. To continue from an older one, move the newest
// out of the store first; raft's log must still have every entry since the older one. If there is no
// snapshot, raft applies all entries, and Load does nothing. A snapshot from before the Mux has no part of
// the keyring, and leaves the FSM empty.
//
// With a raft that restores its snapshots, Load is not needed and does no harm.
func (f *FSM) Load(snaps raft.SnapshotStore) error { return f.machine.Load(snaps) }

// Mux combines the keyring's FSM and the host's FSM for one raft. It must be the outermost FSM. Entries that
// the keyring proposed go to keys. All others go to app, which sees its log, its batches (if it is a
// raft.BatchingFSM) and the raft configurations (if it is a raft.ConfigurationStore) as without Mux. The
// keyring sees the configurations too, so the result is always a raft.ConfigurationStore.
//
// A snapshot contains both: the keyring's part first, then app's part to the end. The reader that app's
// Restore gets is a raft.ReadCloserWrapper if raft's reader is one; the wrapped reader is the snapshot
// store's, with both parts. Snapshots and logs from before the Mux are read as app's alone. Before the
// keyring's first command a snapshot contains only app's part, so that a server without the Mux can read it.
// After that command, a build without the Mux needs a restore.
//
// Apply of app must call no method of a Keyring. The results of Decrypt, Verify, Keys and Status differ from
// server to server, and Encrypt and Sign draw random numbers, so servers that apply such a result have
// different states. A call that waits until raft has applied something, such as Rotate, waits for this very
// Apply. It ends only when its context does, raft applies nothing meanwhile, and after 10 seconds Status has
// a ProblemHost. Nothing else detects such calls. See Decrypt for what to do instead.
//
// If app is new on a raft that only the keyring has used, the old snapshots have no part for app. While app
// has received nothing, it need not restore such a snapshot. Mux does not ask it to if app now makes
// snapshots of at least one byte; to find that out, Mux lets app make a snapshot and reads one byte of it. If
// app makes empty snapshots, it is asked and may return io.EOF. If FSM.Load was called, app is on disk and
// may have received something before the start: then it has to restore every snapshot.
func Mux(keys *FSM, app raft.FSM) raft.FSM { return fsm.Mux(keys.machine, app) }

// MaxCommand is the maximum size of a command in bytes: of the keyring's own, of those for Node.Apply, and of each entry
// of raft's log that a port carries to other servers.
const MaxCommand = 4 << 20
