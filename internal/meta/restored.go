package meta

import "time"

// LastIndex is the highest log index in the ring. A snapshot at an earlier index can't be of this ring.
func (r *Ring) LastIndex() uint64 {
	last := r.Backup.Index
	for _, k := range r.Keys {
		last = max(last, k.CreateIndex, k.ModifyIndex, k.Clean)
	}
	for _, t := range r.Removed {
		last = max(last, t.Index)
	}
	return last
}

// Restored returns the ring as it is restored from a backup: join tokens end with that.
func (r *Ring) Restored() *Ring {
	if len(r.JoinTokens) == 0 {
		return r
	}
	next := *r
	next.JoinTokens = nil
	return &next
}

// DataOnly returns the ring of another cluster, in which the keys of r open data and do nothing else: they are
// inactive, as if they had been adopted at that time for their data only. Keys that have sealed nothing are left
// out, and so are the servers and backups of r and every other member that is not named here: a new member of Ring
// has to be thought about before it goes from one cluster to another.
func (r *Ring) DataOnly(cluster ClusterID, at time.Time) *Ring {
	next := &Ring{Cluster: cluster, Removed: r.Removed}
	for _, k := range r.Keys {
		if !k.Sealed() {
			continue
		}
		next.Keys = append(next.Keys, &Key{
			ID: k.ID, State: StateInactive, Algorithm: k.Algorithm, Public: k.Public, Check: k.Check,
			Created: k.Created, Suite: k.Suite, Retired: at, DataOnly: true, CreateIndex: k.CreateIndex, ModifyIndex: k.ModifyIndex,
		})
	}
	return next
}
