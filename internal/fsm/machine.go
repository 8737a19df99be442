// Package fsm is what raft applies of the keyring, and how commands get there. [Machine] is the keyring's raft.FSM: it has
// the ring of internal/meta, tells who waits of each change, guards the host's Apply by the fence, and is the only way to
// propose. [Mux] puts it in front of the host's FSM on the same raft.
package fsm

// What raft applies: the keyring's part of the FSM, and the fence.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/raft"
)

// Extensions marks the keyring's own log entries. raft carries it beside Log.Data, which
// belongs to the host alone: no bytes of a user can pose as a command.
var Extensions = []byte("keyring/1")

// Machine is the keyring's metadata as a raft.FSM, alone or in a Mux. It serves one Keyring at a time. It knows what is
// applied, tells who waits of each change, and is the only one that proposes to raft.
type Machine struct {
	App        gate.Calls // those of the host's FSM, behind Mux, while which raft applies nothing
	Persisting gate.Calls // its snapshots that are being written

	ring     atomic.Pointer[meta.Ring] // what is applied; never nil
	restores atomic.Uint64             // how often a snapshot was restored
	restored atomic.Pointer[Restored]  // the last of these times; never nil, and never older than the ring
	configs  atomic.Uint64             // how often the raft configuration has changed
	bell     Bell                      // rung on every change, and by the Keyring on its own
	events   atomic.Pointer[Events]    // of the Keyring, for Config.Audit; nil without
	build    meta.Build                // what is read and written
	missed   atomic.Uint64             // index of an entry of a newer build, which is not in the ring; zero if there is none
	entry    atomic.Uint64             // index of the keyring's last entry since the last restore; zero if there is none
	configAt atomic.Uint64             // index of the raft configuration that came last; zero if none has since the start
	history  history                   // whether raft has given it everything
	stray    atomic.Uint64             // index of an entry that raft has taken and applied to another FSM; zero if there is none

	notLeader func(leader raft.ServerID) error // makes the error that tells who leads
}

// New returns an FSM of a build that has applied nothing. notLeader makes the error that tells who leads.
func New(build meta.Build, notLeader func(leader raft.ServerID) error) *Machine {
	f := &Machine{build: build, notLeader: notLeader}
	f.ring.Store(&meta.Ring{})
	f.restored.Store(&Restored{})
	return f
}

// Restored is a restore of a snapshot.
type Restored struct {
	Count  uint64              // from one on; zero if there was none
	Active meta.KeyID          // the active key of its ring, zero if it has none
	Tokens plan.SnapshotTokens // join tokens that the snapshot had
}

// Ring returns what is applied. It is never nil, and is not to be changed.
func (f *Machine) Ring() *meta.Ring { return f.ring.Load() }

// Build returns which log entries and snapshots the FSM reads and writes.
func (f *Machine) Build() meta.Build { return f.build }

// Changed returns a channel that is closed at the next change of anything that the FSM knows, or by Notify: take it, look,
// then wait on it.
func (f *Machine) Changed() <-chan struct{} { return f.bell.Wait() }

// Notify wakes all who wait for a change now.
func (f *Machine) Notify() { f.bell.Ring() }

// Entry returns the index of the keyring's last log entry since the last restore; zero if there is none.
func (f *Machine) Entry() uint64 { return f.entry.Load() }

// Restores returns how often a snapshot was restored.
func (f *Machine) Restores() uint64 { return f.restores.Load() }

// LastRestore returns the last restore of a snapshot: never nil, and never older than the ring.
func (f *Machine) LastRestore() *Restored { return f.restored.Load() }

// Configurations returns how often the raft configuration has changed.
func (f *Machine) Configurations() uint64 { return f.configs.Load() }

// ConfigurationAt returns the index of the raft configuration that came last; zero if none has since the start.
func (f *Machine) ConfigurationAt() uint64 { return f.configAt.Load() }

// Apply implements raft.FSM. Its response is nil or an error; an entry it does not know is
// an error and changes nothing. After one that a newer build wrote, the server makes no snapshots,
// and does not seal or act as the leader, until it runs a build that reads it.
func (f *Machine) Apply(l *raft.Log) any {
	f.history.applied(l.Index)
	if !isKeyringEntry(l) {
		return fmt.Errorf("%w: log entry %d is not the keyring's; a host with entries of its own needs Mux", ErrCorrupt, l.Index)
	}
	if l.Index <= f.history.loaded.Load() {
		return nil // the snapshot that Load took has it
	}
	defer f.bell.Ring()
	defer f.entry.Store(l.Index) // after the ring: a reader that reads this first finds a ring that has the entry
	entry, err := f.build.DecodeEntry(l.Data)
	if errors.Is(err, meta.ErrVersion) {
		f.missed.CompareAndSwap(0, l.Index)
		return fmt.Errorf("log entry %d is from a newer build: %w", l.Index, err)
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
	return l.Type == raft.LogCommand && bytes.Equal(l.Extensions, Extensions)
}

// StartAudit returns the queue of the steps in the life of keys that are applied from now on, until EndAudit.
func (f *Machine) StartAudit() *Events {
	e := newEvents()
	f.events.Store(e)
	return e
}

// EndAudit lets no more steps be queued.
func (f *Machine) EndAudit() { f.events.Store(nil) }

// Audits reports whether steps are queued.
func (f *Machine) Audits() bool { return f.events.Load() != nil }

// Complete is an error if there is an entry that this build could not apply, or something that raft has
// not given this FSM.
func (f *Machine) Complete() error {
	if f.history.state.Load() == historyMissing {
		return ErrNotLoaded
	}
	if i := f.missed.Load(); i > 0 {
		return fmt.Errorf("log entry %d is from a newer build, and not applied", i)
	}
	return nil
}

// Snapshot implements raft.FSM. It refuses to leave out an entry: raft would drop that from its log,
// and no newer build could apply it any more.
func (f *Machine) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.Complete(); err != nil {
		return nil, err
	}
	return fsmSnapshot{ring: f.ring.Load(), build: f.build}, nil
}

// Restore implements raft.FSM.
func (f *Machine) Restore(rc io.ReadCloser) error {
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
func (f *Machine) CheckSnapshot(r io.Reader) (io.Reader, error) {
	s, err := f.build.ReadSnapshot(r)
	return io.MultiReader(bytes.NewReader(s.Head), r), snapshotError(err)
}

// StoreConfiguration implements raft.ConfigurationStore. The keyring reads the members from raft itself,
// and learns here only that they have changed.
func (f *Machine) StoreConfiguration(index uint64, _ raft.Configuration) {
	f.configAt.Store(index)
	f.history.applied(index)
	f.configs.Add(1)
	f.bell.Ring()
}

func (f *Machine) publish(ring *meta.Ring) {
	r := &Restored{Count: f.restores.Load() + 1}
	if active := ring.Active(); active != nil {
		r.Active = active.ID
	}
	for _, t := range ring.JoinTokens {
		r.Tokens = append(r.Tokens, t.ID)
	}
	f.entry.Store(0)
	f.restored.Store(r) // before the ring: a reader that reads the ring first knows where it comes from
	f.ring.Store(ring)
	f.history.restored()
	f.stray.Store(0)
	f.missed.Store(0)
	f.restores.Add(1)
	f.bell.Ring()
}

// Admit is the fence: see the root's FSM. It returns nil, ErrStaleKey, seal.ErrOpen for what is no ciphertext, or an error
// that matches ErrNotReady.
func (f *Machine) Admit(ciphertext []byte) error {
	id, ok := seal.KeyID(ciphertext)
	if !ok {
		return seal.ErrOpen
	}
	ring := f.ring.Load()
	if err := f.history.check(ring); err != nil {
		return err
	}
	switch active := ring.Active(); {
	case active == nil:
		return fmt.Errorf("%w: this FSM has no active key: is it the one that raft applies to?", ErrNotReady)
	case active.ID != id:
		return ErrStaleKey
	}
	return nil
}
