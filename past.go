package keyring

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// past is what an FSM knows of its own beginning: it may be used only if raft has given it everything
// since the first entry of the log, as entries or as a snapshot that has them. A raft that is
// configured with NoSnapshotRestoreOnStart gives it neither, and Load has to.
type past struct {
	state  atomic.Uint32
	first  atomic.Uint64 // index of the first entry that raft gave it; zero if there is none yet
	asked  atomic.Bool   // Load was called: the host's FSM is on disk
	loaded atomic.Uint64 // index of the snapshot that Load took; zero after a restore
}

// The states of a past.
const (
	pastUnknown uint32 = iota
	pastWhole          // nothing is missing
	pastMissing        // raft went on from a snapshot that this FSM has not
)

// see notes an entry that raft gives this FSM, or the host's behind it. Whoever gets the first entry of
// the log gets them all.
func (p *past) see(index uint64) {
	if p.first.Load() > 0 {
		return
	}
	p.first.Store(index)
	if index == 1 {
		p.state.Store(pastWhole)
	}
}

// restored notes a snapshot that raft gave.
func (p *past) restored() {
	p.loaded.Store(0)
	p.state.Store(pastWhole)
}

// begins looks at where raft's log began for this FSM, when a Keyring is opened on both. A snapshot
// that was made since then is no harm: a raft that has none yet has given all from the first entry on.
func (p *past) begins(r *raft.Raft) error {
	snapshot, err := strconv.ParseUint(r.Stats()["last_snapshot_index"], 10, 64)
	if err != nil {
		return fmt.Errorf("index of raft's last snapshot: %w", err)
	}
	if snapshot == 0 {
		p.state.CompareAndSwap(pastUnknown, pastWhole)
	} else {
		p.state.CompareAndSwap(pastUnknown, pastMissing)
	}
	if p.state.Load() == pastWhole {
		return nil
	}
	return fmt.Errorf("%w: raft has gone on from its snapshot at index %d without giving it to FSM, as it does with NoSnapshotRestoreOnStart", ErrNotLoaded, snapshot)
}

// check is an error if something is known to be missing. An FSM without a keyring, whose first entry was
// not the log's, can't tell: it counts as one that lacks it.
func (p *past) check(ring *meta.Ring) error {
	switch state := p.state.Load(); {
	case state == pastMissing, state == pastUnknown && p.first.Load() > 1 && !founded(ring):
		return fmt.Errorf("%w: %w", ErrNotReady, ErrNotLoaded)
	}
	return nil
}

// founded reports whether the ring is that of a cluster: before that, nothing of the keyring's has
// been in raft.
func founded(r *meta.Ring) bool { return r.Cluster != meta.ClusterID{} }

// Load takes the keyring's part of the newest snapshot. It is for a host whose own FSM is on disk and
// which has raft go on from a snapshot without restoring it: raft.Config.NoSnapshotRestoreOnStart. Such
// a host calls it at each start, before raft.NewRaft and with the same snapshot store. raft then gives
// the entries that came after that snapshot, as ever. Without Load, Open and Admit return ErrNotLoaded.
//
// That raft goes on from the newest snapshot whether it is whole or not. So one that can't be read is an
// error, which names it, and no older one is taken in its place. To go on from an older one, move the
// newest out of the store first; raft's log must still have every entry since the older one. Where there
// is no snapshot, raft gives all entries, and Load does nothing. A snapshot from before the Mux has no
// part of the keyring's, and leaves the FSM empty.
//
// With a raft that does restore its snapshots Load is of no use and does no harm.
func (f *FSM) Load(snaps raft.SnapshotStore) error {
	if f.past.first.Load() > 0 {
		return errors.New("load: raft has begun to apply its log to this FSM: Load comes before raft.NewRaft")
	}
	list, err := snaps.List()
	if err != nil {
		return fmt.Errorf("load: list snapshots: %w", err)
	}
	f.past.asked.Store(true) // without a snapshot, too: the host's FSM may have what was in the log
	if len(list) == 0 {
		return nil
	}
	newest := list[0] // raft takes the first, too
	ring, err := f.readRing(snaps, newest.ID)
	if err != nil {
		return fmt.Errorf("load snapshot %s, from which raft goes on: %w", newest.ID, err)
	}
	f.publish(ring)
	f.past.loaded.Store(newest.Index)
	return nil
}

// readRing returns the ring in a snapshot: an empty one, if there is no section of the keyring's.
func (f *FSM) readRing(snaps raft.SnapshotStore, id string) (*meta.Ring, error) {
	_, content, err := snaps.Open(id)
	if err != nil {
		return nil, err
	}
	ring, _, err := readSection(content, f.build)
	if err := errors.Join(err, content.Close()); err != nil {
		return nil, err
	}
	if ring == nil {
		ring = &meta.Ring{}
	}
	return ring, nil
}
