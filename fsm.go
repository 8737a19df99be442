package keyring

// FSM and Mux: what a host gives its raft.

import (
	"io"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/raft"
)

// FSM is the keyring's metadata as a raft.FSM. Make it with NewFSM, give it to raft alone or
// through Mux, and to Config. Several Keyrings may follow one another on it, never two at a
// time. Of the keyring, the host's own Apply calls Admit and CiphertextKeyID, and nothing else: see Mux.
type FSM struct {
	machine *fsm.Machine
}

// NewFSM returns an empty FSM.
func NewFSM() *FSM { return newFSM(meta.This) }

// newFSM returns an FSM that reads and writes what a build does.
func newFSM(build meta.Build) *FSM {
	return &FSM{fsm.New(build, func(leader raft.ServerID) error { return NotLeaderError{Leader: leader} })}
}

// Apply implements raft.FSM. Its response is nil or an error; an entry it does not know is
// an error and changes nothing. After one that a newer build wrote, the server makes no snapshots,
// and does not seal or act as the leader, until it runs a build that reads it.
func (f *FSM) Apply(l *raft.Log) any { return f.machine.Apply(l) }

// Snapshot implements raft.FSM. It refuses to leave out an entry: raft would drop that from its log,
// and no newer build could apply it any more.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) { return f.machine.Snapshot() }

// Restore implements raft.FSM.
func (f *FSM) Restore(rc io.ReadCloser) error { return f.machine.Restore(rc) }

// CheckSnapshot reads the keyring's section of a snapshot, if it has one, and returns a reader of all of the snapshot.
// It is for a host's own raft transport, before it gives raft a snapshot that another server has sent: one that is
// damaged, or of a newer build, would take the place of a good one on disk before raft finds out.
func (f *FSM) CheckSnapshot(r io.Reader) (io.Reader, error) { return f.machine.CheckSnapshot(r) }

// StoreConfiguration implements raft.ConfigurationStore. The keyring reads the members from raft itself,
// and learns here only that they have changed.
func (f *FSM) StoreConfiguration(index uint64, c raft.Configuration) {
	f.machine.StoreConfiguration(index, c)
}

// Admit is the fence, for the host's own Apply: it returns nil if the ciphertext was sealed
// under the key that is active at this point of the log, and ErrStaleKey otherwise (ErrDecrypt
// for bytes that are no ciphertext of the keyring). A host that refuses what Admit refuses
// has nothing committed under a retired key after its retirement. It is deterministic, but
// only from the log index on where every server calls it: gate it on a field of your command
// if there are entries from before. It looks at the form and the key alone: what is damaged, or
// bound to another AAD, is admitted, and fails only when it is opened. An FSM that has no active
// key, as one that no raft feeds, returns ErrNotReady. One that lacks what raft applied before it
// started returns an error that matches ErrNotLoaded too: then the other servers' answer may be another,
// and the host must stop, not go on without the entry.
func (f *FSM) Admit(ciphertext []byte) error { return f.machine.Admit(ciphertext) }

// CiphertextKeyID tells which key a ciphertext names. It authenticates nothing.
func CiphertextKeyID(ciphertext []byte) (KeyID, error) {
	id, ok := seal.KeyID(ciphertext)
	if !ok {
		return KeyID{}, ErrDecrypt
	}
	return id, nil
}

// Load takes the keyring's part of the newest snapshot. It is for a host whose own FSM is on disk and
// which has raft go on from a snapshot without restoring it: raft.Config.NoSnapshotRestoreOnStart. Such
// a host calls it at each start, before raft.NewRaft and with the same snapshot store. raft then gives
// the entries that came after that snapshot, as ever. Without Load, Open and Admit return ErrNotLoaded.
//
// That raft goes on from the newest snapshot whether it can be read or not. So one that can't is an
// error, which names it, and no older one is taken in its place. To go on from an older one, move the
// newest out of the store first; raft's log must still have every entry since the older one. Where there
// is no snapshot, raft gives all entries, and Load does nothing. A snapshot from before the Mux has no
// part of the keyring's, and leaves the FSM empty.
//
// With a raft that does restore its snapshots Load is of no use and does no harm.
func (f *FSM) Load(snaps raft.SnapshotStore) error { return f.machine.Load(snaps) }

// Mux puts the keyring's FSM in front of the host's, for one raft that carries both. It goes
// outermost. Entries that the keyring proposed go to keys, all others to app, which sees its
// log, its batches (if it is a raft.BatchingFSM) and the raft configurations (if it is a
// raft.ConfigurationStore) as it would without. The keyring sees these too: what Mux returns
// is always a raft.ConfigurationStore. A snapshot holds both: the keyring's part
// first, then app's to the end. The reader that app's Restore gets is a raft.ReadCloserWrapper if the one of raft's is: what
// that returns is the snapshot store's reader of both. Snapshots and logs from before the Mux are read as app's
// alone, and before the first command of the keyring's a snapshot is app's alone too, so that a
// server can read it that has yet to get the Mux. After that command going back to a build without
// the Mux needs a restore.
//
// Apply of app calls no method of a Keyring. What Decrypt, Verify, Keys or Status return differs from server to server, and
// Encrypt and Sign draw random numbers: servers that apply the result have different states. A call that waits until raft has
// applied something, as Rotate does, waits for this very Apply: it ends only when its context does, raft applies nothing
// meanwhile, and after 10 seconds Status has a ProblemHost. Nothing else notices such calls. See Decrypt for what to do
// instead.
//
// An app that is new on a raft which the keyring has had to itself meets snapshots that have nothing of
// app's in them. Until app has been given anything it need not restore such a one: it is not asked to if,
// as it is, it makes snapshots of one byte or more, and may answer io.EOF if it is. To find that out Mux
// has it make a snapshot, and takes only the first byte of it. An app beside an FSM that Load was
// called of is on disk and may have been given something before the start: it has to restore every one.
func Mux(keys *FSM, app raft.FSM) raft.FSM { return fsm.Mux(keys.machine, app) }

// MaxCommand is the most bytes of a command: of the keyring's own, and of those that Node.Apply takes.
const MaxCommand = fsm.MaxCommand
