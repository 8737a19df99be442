package plan

import "example.com/keyring/internal/meta"

// Reached reports whether an FSM has applied everything that a leader's FSM had applied when the leader named entry as the
// last entry of the keyring; zero is none at all. r is the FSM's ring, and position an index of the log up to which
// it has applied all entries.
func Reached(r *meta.Ring, entry, position uint64) bool {
	if entry == 0 {
		return r.Cluster == (meta.ClusterID{}) // a ring that is here will be replaced
	}
	return position >= entry
}

// Orphans returns the keys in a keystore that the ring does not know, in their order. Until the server has caught up there
// are none: the ring may be from before they were made.
func Orphans(r *meta.Ring, caughtUp bool, keys []meta.KeyID) (orphans []meta.KeyID) {
	if !caughtUp {
		return nil
	}
	for _, id := range keys {
		if r.Key(id) == nil && !r.WasRemoved(id) {
			orphans = append(orphans, id)
		}
	}
	return orphans
}
