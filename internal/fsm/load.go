package fsm

// Whether raft has given the FSM everything since the first entry of its log.

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

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

// StartedOn looks at what raft has given this FSM, when a Keyring is opened on both. The error matches ErrNotLoaded if some
// of it is missing.
func (f *Machine) StartedOn(r *raft.Raft) error { return f.history.start(r) }

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
	return fmt.Errorf("%w: raft has continued from its snapshot at index %d without restoring it to the FSM, as with NoSnapshotRestoreOnStart", ErrNotLoaded, snapshot)
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

// Load takes the keyring's part of the newest snapshot, for a raft that does not restore its snapshots when it starts: see
// the root's FSM. It comes before raft.NewRaft.
func (f *Machine) Load(snaps raft.SnapshotStore) error {
	if f.history.first.Load() > 0 {
		return errors.New("load: raft has already begun to apply its log to this FSM: call Load before raft.NewRaft")
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
		return fmt.Errorf("load snapshot %s, from which raft continues: %w", newest.ID, err)
	}
	f.publish(ring)
	f.history.loaded.Store(newest.Index)
	return nil
}

// readRing returns the ring of a snapshot: an empty one, if the snapshot has no part of the keyring's.
func (f *Machine) readRing(snaps raft.SnapshotStore, id string) (*meta.Ring, error) {
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
