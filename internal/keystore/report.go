package keystore

import (
	"maps"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/nks"
)

// Report is what a Store knows of its directory, for people. All of it is of one moment.
type Report struct {
	Missing   []meta.KeyID             // keys of the ring that are not held, in its order
	Faults    []Fault                  // by key; then those of removed keys
	SetAside  []string                 // names of the files that this process has set aside because they were bad
	Files     []meta.KeyID             // keys in memory of which there is a file, or should be, by ID
	Written   map[meta.KeyID]mono.Time // when this process made the files of keys that the ring does not know
	Nomad     []KeyFiles               // Nomad's files, by key
	Aside     []KeyFiles               // files that were set aside, of keys that are not in memory, by key
	Altered   []Altered                // files that somebody has altered
	Unproven  []meta.KeyID             // keys in memory that no ring knows, whose files only KEKs opened to which anybody can wrap, by ID
	Moved     error                    // why the directory is not where it was opened, or nil; no key is held then
	Hangs     time.Time                // since when a change of the directory has not returned, or zero
	OnOldKEKs int                      // key files that are not known to be durable under exactly the KEKs that wrap now
	ToRewrap  int                      // those of them that only Rewrap moves: they open, are durable, and nothing else is wrong with them
}

// KeyFiles are the names of files of one key.
type KeyFiles struct {
	Key   meta.KeyID
	Names []string
}

// Report returns it.
func (s *Store) Report(ring *meta.Ring) Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Report{
		SetAside: slices.Clone(s.setAside), Altered: s.alteredLocked(), Moved: s.moved, Hangs: s.dir.HangsSince(), Written: map[meta.KeyID]mono.Time{},
		OnOldKEKs: s.onOldKEKsLocked(), ToRewrap: s.waitForRewrapLocked(),
	}
	for _, k := range ring.Keys {
		if !s.holdsLocked(k) {
			r.Missing = append(r.Missing, k.ID)
		}
	}
	for _, id := range sortedIDs(s.faults) {
		r.Faults = append(r.Faults, s.faults[id])
	}
	for _, id := range sortedIDs(s.removed) {
		if err := s.removed[id].barred; err != nil {
			r.Faults = append(r.Faults, Fault{Key: id, Cause: Barred, File: nks.FileName(id), Err: err})
		}
	}
	for _, id := range sortedIDs(s.keys) {
		if !s.keys[id].fileIsGone {
			r.Files = append(r.Files, id)
			if w := s.keys[id].written; w != 0 && ring.Key(id) == nil {
				r.Written[id] = w
			}
		}
		if s.keys[id].unproven {
			r.Unproven = append(r.Unproven, id)
		}
	}
	for _, id := range sortedIDs(s.nomad) {
		r.Nomad = append(r.Nomad, KeyFiles{id, slices.Clone(s.nomad[id])})
	}
	for _, id := range sortedIDs(s.removed) {
		if aside := s.removed[id].aside; len(aside) > 0 && s.keys[id] == nil {
			r.Aside = append(r.Aside, KeyFiles{id, slices.Clone(aside)})
		}
	}
	return r
}

func sortedIDs[V any](m map[meta.KeyID]V) []meta.KeyID {
	return slices.SortedFunc(maps.Keys(m), compareIDs)
}

// unknown returns the keys in memory that the ring does not know, in no order, and those of them of which there is a
// file: the orphans.
func (s *Store) unknown(ring *meta.Ring) (all, orphans []meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unknownLocked(ring)
}

// unknownLocked is unknown for a caller that holds mu.
func (s *Store) unknownLocked(ring *meta.Ring) (all, orphans []meta.KeyID) {
	for id, m := range s.keys {
		if ring.Key(id) != nil || ring.WasRemoved(id) {
			continue
		}
		if all = append(all, id); !m.fileIsGone {
			orphans = append(orphans, id)
		}
	}
	return all, orphans
}

// Unknown are keys that a ring does not know, and that open.
type Unknown struct {
	Orphans []meta.NewKey // by ID
	// Unproven are those that only KEKs have opened to which anybody can wrap: anybody may have made the file who can write
	// into the directory. By ID.
	Unproven []meta.NewKey
}

// Unknown returns what there is of keys that the ring does not know: those that open, up to most of them, the proven ones
// first, and the files that wait. All of it is of one moment: a file that opens meanwhile is in one of them. With only, no
// other keys are described; the files that wait are all of them.
func (s *Store) Unknown(ring *meta.Ring, most int, only ...meta.KeyID) (u Unknown, waiting Waiting) {
	s.mu.Lock()
	_, ids := s.unknownLocked(ring)
	waiting = s.waitingLocked(ring, len(ids))
	var proven, unproven []meta.KeyID
	for _, id := range ids {
		if len(only) > 0 && !slices.Contains(only, id) {
			continue
		}
		if s.keys[id].unproven {
			unproven = append(unproven, id)
		} else {
			proven = append(proven, id)
		}
	}
	s.mu.Unlock()
	u.Orphans = s.describe(proven, most)
	u.Unproven = s.describe(unproven, most-len(u.Orphans))
	return u, waiting
}

// describe returns the first of the keys, by ID. Each hello asks for them, so their public keys are derived once.
func (s *Store) describe(ids []meta.KeyID, most int) (keys []meta.NewKey) {
	slices.SortFunc(ids, compareIDs)
	for _, id := range ids {
		if len(keys) == most {
			break
		}
		m := s.get(id)
		if m == nil {
			continue
		}
		public, _, err := s.publicOf(id, m)
		if err != nil {
			s.log.Error("could not read the signing key of an orphan", "key", id, "error", err)
		}
		if len(public) == 0 {
			continue
		}
		keys = append(keys, meta.NewKey{ID: id, Algorithm: m.algorithm, Public: public, Check: m.check, Created: m.created.UTC()})
	}
	return keys
}

// Waiting are files of keys that a ring does not know and that nothing opens for now: their KEKs do not answer, or are
// not configured, or the disk does not give them.
type Waiting struct {
	Files int      // how many
	Of    int      // how many there are of keys that the ring does not know, those that open among them
	KEKs  []string // the IDs of the KEKs that are to blame
}

// waitingLocked returns the files that wait, beside so many that open, for a caller that holds mu.
func (s *Store) waitingLocked(ring *meta.Ring, open int) Waiting {
	w := Waiting{Of: open}
	keks := map[string]bool{}
	for id, f := range s.faults {
		if !f.mayOpen() || ring.Key(id) != nil || ring.WasRemoved(id) || s.keys[id] != nil {
			continue
		}
		w.Files++
		w.Of++
		if f.KEK != "" {
			keks[f.KEK] = true
		}
	}
	w.KEKs = slices.Sorted(maps.Keys(keks))
	return w
}
