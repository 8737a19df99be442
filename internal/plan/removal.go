package plan

import (
	"time"

	"example.com/keyring/internal/meta"
)

// RemoveOptions says how a key is to be removed, and whether its data can be moved.
type RemoveOptions struct {
	Force   bool // also an inactive or rekeying key goes at once, with what is sealed under it
	Now     bool // every server unlinks its file at once: there is no time to undo it
	HasData bool // the host can list what is sealed under a key, and re-encrypt it
}

// Removal is what the leader does next when it is asked to remove a key.
type Removal string

// What removing a key can take.
const (
	RemovalDone     Removal = "done"      // nothing: the key is removed
	RemovalEndUndo  Removal = "end undo"  // the key is removed: end the time in which that can be undone
	RemovalAtOnce   Removal = "at once"   // remove the key: nothing is known to be sealed under it
	RemovalIfUnused Removal = "if unused" // remove the key if no record of the host is sealed under it after all
	RemovalWithLoss Removal = "with loss" // remove the key, and what is sealed under it is lost
	RemovalRekey    Removal = "rekey"     // begin to move its data to the active key; the leader then removes the key
	RemovalRekeying Removal = "rekeying"  // wait: its data is being moved, and the leader then removes the key

	RefusedUnknown Removal = "unknown" // the ring has no such key
	RefusedActive  Removal = "active"  // the key is the active one
	RefusedNoData  Removal = "no data" // its data would have to be moved first, and nothing is known of that data
)

// Moves reports whether the key stays until its data has been moved.
func (x Removal) Moves() bool { return x == RemovalRekey || x == RemovalRekeying }

// DecideRemoval says what removing a key takes now, by the state that it has in the ring. The active key is never
// removed. Without force, an inactive or rekeying key is removed only by way of a rekey, which needs the
// host's data.
func DecideRemoval(r *meta.Ring, id meta.KeyID, o RemoveOptions) Removal {
	if t, removed := r.Tombstone(id); removed && o.Now && !t.Now {
		return RemovalEndUndo
	} else if removed {
		return RemovalDone
	}
	k := r.Key(id)
	switch {
	case k == nil:
		return RefusedUnknown
	case k.State == meta.StateActive:
		return RefusedActive
	case k.State == meta.StateDeprecated && o.HasData && !o.Force:
		return RemovalIfUnused
	case k.State != meta.StateInactive && k.State != meta.StateRekeying:
		return RemovalAtOnce
	case o.Force:
		return RemovalWithLoss
	case !o.HasData:
		return RefusedNoData
	case k.Remove:
		return RemovalRekeying
	}
	return RemovalRekey
}

// RemoveCommand returns the command that removes a key in the state that it has in the ring. For a key that is
// removed already it ends the time to undo that. It is refused if the state has changed when it is applied.
func RemoveCommand(r *meta.Ring, id meta.KeyID, o RemoveOptions, at time.Time) meta.Command {
	from := stateRemoved
	if k := r.Key(id); k != nil {
		from = k.State
	}
	return meta.Command{Remove: &meta.Remove{ID: id, From: from, Force: o.Force, Now: o.Now, Time: at}}
}

// stateRemoved is what a Remove command names as the state of a key that is removed already. No key has it.
const stateRemoved meta.State = "removed"
