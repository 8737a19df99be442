package keyring

// The FSM: what raft applies to it, the fence, Load, and the one place that proposes to raft.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/raft"
)

// extensions marks the keyring's own log entries. raft carries it beside Log.Data, which
// belongs to the host alone: no bytes of a user can pose as a command.
var extensions = []byte("keyring/1")

// FSM is the keyring's metadata as a raft.FSM. Make it with NewFSM, give it to raft alone or
// through Mux, and to Config. Several Keyrings may follow one another on it, never two at a
// time.
type FSM struct {
	ring     atomic.Pointer[meta.Ring] // what is applied; never nil
	restores atomic.Uint64             // how often a snapshot was restored
	restored atomic.Pointer[restored]  // the last of these times; never nil, and never older than the ring
	configs  atomic.Uint64             // how often the raft configuration has changed
	bell     bell                      // rung on every change, and by the Keyring on its own
	events   atomic.Pointer[events]    // of the Keyring, for Config.Audit; nil without
	build    meta.Build                // what is read and written
	missed   atomic.Uint64             // index of an entry of a newer build, which is not in the ring; zero if there is none
	entry    atomic.Uint64             // index of the keyring's last entry since the last restore; zero if there is none
	configAt atomic.Uint64             // index of the raft configuration that came last; zero if none has since the start
	history  history                   // whether raft has given it everything
	stray    atomic.Uint64             // index of an entry that raft has taken and applied to another FSM; zero if there is none
}

// NewFSM returns an empty FSM.
func NewFSM() *FSM {
	f := &FSM{build: meta.This}
	f.ring.Store(&meta.Ring{})
	f.restored.Store(&restored{})
	return f
}

// restored is a restore of a snapshot.
type restored struct {
	count  uint64 // from one on; zero if there was none
	active KeyID  // the active key of its ring, zero if it has none
	tokens plan.SnapshotTokens
}

// Apply implements raft.FSM. Its response is nil or an error; an entry it does not know is
// an error and changes nothing. After one that a newer build wrote, the server makes no snapshots,
// and does not seal or act as the leader, until it runs a build that reads it.
func (f *FSM) Apply(l *raft.Log) any {
	f.history.applied(l.Index)
	if !isKeyringEntry(l) {
		return fmt.Errorf("%w: log entry %d is not the keyring's; a host with entries of its own needs Mux", ErrCorrupt, l.Index)
	}
	if l.Index <= f.history.loaded.Load() {
		return nil // the snapshot that Load took has it
	}
	defer f.bell.ring()
	defer f.entry.Store(l.Index) // after the ring: a reader that reads this first finds a ring that has the entry
	entry, err := f.build.DecodeEntry(l.Data)
	if errors.Is(err, meta.ErrVersion) {
		f.missed.CompareAndSwap(0, l.Index)
		return fmt.Errorf("log entry %d is of a newer build: %w", l.Index, err)
	}
	if err != nil {
		return fmt.Errorf("%w: log entry %d: %w", ErrCorrupt, l.Index, err)
	}
	before := f.ring.Load()
	next, err := before.Apply(l.Index, entry.Commands)
	if err != nil {
		return err
	}
	f.ring.Store(next)
	if e := f.events.Load(); e != nil {
		e.add(l, entry.By, meta.Steps(before, next))
	}
	return nil
}

// isKeyringEntry reports whether a log entry is a command of the keyring's.
func isKeyringEntry(l *raft.Log) bool {
	return l.Type == raft.LogCommand && bytes.Equal(l.Extensions, extensions)
}

// complete is an error if there is an entry that this build could not apply, or something that raft has
// not given this FSM.
func (f *FSM) complete() error {
	if f.history.state.Load() == historyMissing {
		return ErrNotLoaded
	}
	if i := f.missed.Load(); i > 0 {
		return fmt.Errorf("log entry %d is of a newer build, and not applied", i)
	}
	return nil
}

// Snapshot implements raft.FSM. It refuses to leave out an entry: raft would drop that from its log,
// and no newer build could apply it any more.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.complete(); err != nil {
		return nil, err
	}
	return fsmSnapshot{ring: f.ring.Load(), build: f.build}, nil
}

// Restore implements raft.FSM.
func (f *FSM) Restore(rc io.ReadCloser) error {
	ring, rest, err := readSnapshot(rc, f.build)
	if err != nil {
		return err
	}
	if ring == nil {
		return fmt.Errorf("%w: a snapshot without the keyring's part", ErrCorrupt)
	}
	n, err := io.Copy(io.Discard, rest)
	if err != nil {
		return fmt.Errorf("read keyring snapshot: %w", err)
	}
	if n > 0 {
		return fmt.Errorf("%w: a snapshot with %d bytes that are not the keyring's", ErrCorrupt, n)
	}
	f.publish(ring)
	return nil
}

// CheckSnapshot reads the keyring's section of a snapshot, if it has one, and returns a reader of all of the snapshot.
// It is for a host's own raft transport, before it gives raft a snapshot that another server has sent: one that is
// damaged, or of a newer build, would take the place of a good one on disk before raft finds out.
func (f *FSM) CheckSnapshot(r io.Reader) (io.Reader, error) {
	s, err := f.build.ReadSnapshot(r)
	return io.MultiReader(bytes.NewReader(s.Head), r), snapshotError(err)
}

// StoreConfiguration implements raft.ConfigurationStore. The keyring reads the members from raft itself,
// and learns here only that they have changed.
func (f *FSM) StoreConfiguration(index uint64, _ raft.Configuration) {
	f.configAt.Store(index)
	f.history.applied(index)
	f.configs.Add(1)
	f.bell.ring()
}

func (f *FSM) publish(ring *meta.Ring) {
	r := &restored{count: f.restores.Load() + 1}
	if active := ring.Active(); active != nil {
		r.active = active.ID
	}
	for _, t := range ring.JoinTokens {
		r.tokens = append(r.tokens, t.ID)
	}
	f.entry.Store(0)
	f.restored.Store(r) // before the ring: a reader that reads the ring first knows where it comes from
	f.ring.Store(ring)
	f.history.restored()
	f.stray.Store(0)
	f.missed.Store(0)
	f.restores.Add(1)
	f.bell.ring()
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
func (f *FSM) Admit(ciphertext []byte) error {
	id, err := CiphertextKeyID(ciphertext)
	if err != nil {
		return err
	}
	ring := f.ring.Load()
	if err := f.history.check(ring); err != nil {
		return err
	}
	switch active := ring.Active(); {
	case active == nil:
		return fmt.Errorf("%w: the FSM that is asked has no active key: is it the one that raft applies to?", ErrNotReady)
	case active.ID != id:
		return ErrStaleKey
	}
	return nil
}

// CiphertextKeyID tells which key a ciphertext names. It authenticates nothing.
func CiphertextKeyID(ciphertext []byte) (KeyID, error) {
	id, ok := seal.KeyID(ciphertext)
	if !ok {
		return KeyID{}, ErrDecrypt
	}
	return id, nil
}

// history is whether raft has given an FSM everything since the first entry of the log, as entries or as a
// snapshot that has them. An FSM that lacks some of it must not be used. A raft that is configured with
// NoSnapshotRestoreOnStart gives it neither, and Load has to.
type history struct {
	state  atomic.Uint32
	first  atomic.Uint64 // index of the first entry that raft gave it; zero if there is none yet
	asked  atomic.Bool   // Load was called: the host's FSM is on disk
	loaded atomic.Uint64 // index of the snapshot that Load took; zero after a restore
}

// The states of a history.
const (
	historyUnknown  uint32 = iota
	historyComplete        // nothing is missing
	historyMissing         // raft went on from a snapshot that it did not give this FSM
)

// applied notes an entry that raft gives this FSM, or the host's behind it. An FSM that gets the first
// entry of the log gets them all.
func (h *history) applied(index uint64) {
	if h.first.Load() > 0 {
		return
	}
	h.first.Store(index)
	if index == 1 {
		h.state.Store(historyComplete)
	}
}

// restored notes a snapshot that raft gave.
func (h *history) restored() {
	h.loaded.Store(0)
	h.state.Store(historyComplete)
}

// start looks at where raft's log began for this FSM, when a Keyring is opened on both. A snapshot that
// raft has made since then does no harm: a raft that has none yet has given everything from the first
// entry on.
func (h *history) start(r *raft.Raft) error {
	snapshot, err := strconv.ParseUint(r.Stats()["last_snapshot_index"], 10, 64)
	if err != nil {
		return fmt.Errorf("index of raft's last snapshot: %w", err)
	}
	if snapshot == 0 {
		h.state.CompareAndSwap(historyUnknown, historyComplete)
	} else {
		h.state.CompareAndSwap(historyUnknown, historyMissing)
	}
	if h.state.Load() == historyComplete {
		return nil
	}
	return fmt.Errorf("%w: raft has gone on from its snapshot at index %d without giving it to FSM, as it does with NoSnapshotRestoreOnStart", ErrNotLoaded, snapshot)
}

// check is an error if something is known to be missing. An FSM that no Keyring is opened on, and whose
// first entry was not that of the log, can't tell: it counts as one that lacks something.
func (h *history) check(ring *meta.Ring) error {
	switch state := h.state.Load(); {
	case state == historyMissing, state == historyUnknown && h.first.Load() > 1 && !hasCluster(ring):
		return fmt.Errorf("%w: %w", ErrNotReady, ErrNotLoaded)
	}
	return nil
}

// hasCluster reports whether the keyring has committed anything in this raft: its first command names the
// cluster.
func hasCluster(r *meta.Ring) bool { return r.Cluster != meta.ClusterID{} }

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
func (f *FSM) Load(snaps raft.SnapshotStore) error {
	if f.history.first.Load() > 0 {
		return errors.New("load: raft has begun to apply its log to this FSM: Load comes before raft.NewRaft")
	}
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("load: list snapshots: %w", err)
	}
	f.history.asked.Store(true) // without a snapshot, too: the host's FSM may have what was in the log
	if len(list) == 0 {
		return nil
	}
	newest := list[0] // raft takes the first, too
	ring, err := f.readRing(snaps, newest.ID)
	if err != nil {
		return fmt.Errorf("load snapshot %s, from which raft goes on: %w", newest.ID, err)
	}
	f.publish(ring)
	f.history.loaded.Store(newest.Index)
	return nil
}

// readRing returns the ring of a snapshot: an empty one, if the snapshot has no part of the keyring's.
func (f *FSM) readRing(snaps raft.SnapshotStore, id string) (*meta.Ring, error) {
	_, content, err := snaps.Open(id)
	if err != nil {
		return nil, err
	}
	ring, _, err := readSnapshot(content, f.build)
	if err := errors.Join(err, content.Close()); err != nil {
		return nil, err
	}
	if ring == nil {
		ring = &meta.Ring{}
	}
	return ring, nil
}

// proposeTimeout is how long a proposal may wait for raft to take it. Once taken it ends
// within the leader lease, committed or not; unless raft is shut down, which may leave it
// unanswered.
const proposeTimeout = 5 * time.Second

// MaxCommand is the most bytes of a command: of the keyring's own, and of those that Node.Apply takes.
const MaxCommand = 4 << 20

// commandTooLong is how many bytes it has. It matches ErrTooLong.
type commandTooLong int

func (n commandTooLong) Error() string {
	return fmt.Sprintf("a command of %d bytes, at most %d are taken", int(n), MaxCommand)
}

func (commandTooLong) Is(target error) bool { return target == ErrTooLong }

// encode returns the log entry, unless ctx has ended.
func (f *FSM) encode(ctx context.Context, cmds []meta.Command) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, err := f.build.EncodeEntry(meta.Entry{By: Actor(ctx), Commands: cmds})
	if err != nil {
		return nil, err
	}
	if len(b) > MaxCommand {
		return nil, commandTooLong(len(b))
	}
	return b, nil
}

func (f *FSM) propose(ctx context.Context, r *raft.Raft, cmds []meta.Command) error {
	b, err := f.encode(ctx, cmds)
	if err != nil {
		return err
	}
	restores := f.restores.Load()
	future := r.ApplyLog(raft.Log{Data: b, Extensions: extensions}, proposeTimeout)
	if err := future.Error(); err != nil {
		return outcome(r, err)
	}
	if f.entry.Load() < future.Index() && f.restores.Load() == restores {
		f.stray.Store(future.Index())
		f.bell.ring()
		return errNotApplied
	}
	if slices.ContainsFunc(cmds, urgent) {
		r.Barrier(proposeTimeout)
	}
	if err, ok := future.Response().(error); ok {
		return err
	}
	return nil
}

// errNotApplied says that raft has committed and applied an entry of the keyring's, and this FSM was not
// given it.
var errNotApplied = errors.New("raft does not apply to this FSM: give it Config.FSM, alone or in a Mux, and put the Mux outermost")

// fed is an error if raft applies its log to another FSM. A leader knows that once it has proposed
// something. Others know it of one that is given nothing at all.
func (f *FSM) fed(r *raft.Raft) error {
	if stray := f.stray.Load(); stray > f.entry.Load() {
		return fmt.Errorf("log entry %d: %w", stray, errNotApplied)
	}
	if applied := r.AppliedIndex(); applied > 0 && f.history.first.Load() == 0 && f.restores.Load() == 0 {
		return fmt.Errorf("nothing of the log up to entry %d: %w", applied, errNotApplied)
	}
	return nil
}

// position returns an index of raft's log up to which the FSM has all entries of the keyring. raft's own
// index of what is applied won't do: it is that of the entries handed to the FSM, which may have
// thousands of them yet to apply. What raft calls the last snapshot the FSM was asked for or restored
// from, so it has that.
func (f *FSM) position(r *raft.Raft) uint64 {
	entry := f.entry.Load()
	snapshot, _ := strconv.ParseUint(r.Stats()["last_snapshot_index"], 10, 64)
	return max(entry, snapshot)
}

// urgent reports whether followers should learn at once that the command has committed. An
// idle leader tells them only with its next entry or after CommitTimeout: so there is a next
// entry, and nobody waits for it. A new key need not be: the leader offers it to them, and
// the next entry is on its way.
func urgent(c meta.Command) bool { return c.Add == nil && c.Hold == nil }

// outcome turns an error of raft's into one of the keyring's.
func outcome(r *raft.Raft, err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return notLeader(r)
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return fmt.Errorf("propose: %w", err)
}

func notLeader(r *raft.Raft) error {
	_, leader := r.LeaderWithID()
	return NotLeaderError{Leader: leader}
}

// tokens returns what it has from a snapshot alone.
func (f *FSM) tokens() plan.SnapshotTokens { return f.restored.Load().tokens }
