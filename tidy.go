package keyring

import (
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/meta"
)

// What Status says of the directory, an operator can put right with his own hands while the server
// runs: he deletes a file that was set aside, or moves one away that no KEK opens. Each scan
// forgets what is said of files that are gone.

// curable reports whether something is said of the directory, but of orphans, that an operator may put
// right there.
func (s *keystore) curable(ring *meta.Ring) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults)+len(s.setAside) > 0 {
		return true
	}
	for id, g := range s.graves {
		if len(g.aside) > 0 && ring.Key(id) == nil && !ring.WasRemoved(id) {
			return true
		}
	}
	for id := range s.nomad {
		if ring.WasRemoved(id) {
			return true
		}
	}
	return false
}

// unknown returns the keys in memory that the ring does not know, in no order, and those of them of which
// there is a file.
func (s *keystore) unknown(ring *meta.Ring) (all, orphans []KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, m := range s.keys {
		if ring.Key(id) != nil || ring.WasRemoved(id) {
			continue
		}
		if all = append(all, id); !m.gone {
			orphans = append(orphans, id)
		}
	}
	return all, orphans
}

// asideNames returns the names of the files that were set aside.
func (s *keystore) asideNames() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]bool{}
	for _, name := range s.setAside {
		names[name] = true
	}
	for _, g := range s.graves {
		for _, name := range g.aside {
			names[name] = true
		}
	}
	return names
}

// forgetGone forgets what is said of files that are gone. names is what the directory has, all are those
// of them that are about keys. aside had been set aside before the directory was read: what comes
// later is not in names.
func (s *keystore) forgetGone(ring *meta.Ring, names []string, all map[KeyID]files, aside map[string]bool) {
	there := make(map[string]bool, len(aside))
	for _, name := range names {
		there[name] = true
	}
	for name := range aside {
		if there[name] {
			continue
		}
		if of, _, ok := durable.ParseAside(name); ok {
			s.forgetAsideOf(of, name)
		}
	}
	s.forgetFaults(ring, all)
	s.noteGone(ring, all)
}

// forgetFaults forgets faults of files that are gone, and of keys that nobody wants any more.
func (s *keystore) forgetFaults(ring *meta.Ring, all map[KeyID]files) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, f := range s.faults {
		_, file := all[id]
		lasts := ring.Key(id) != nil && (f.mine || f.unwritten) // until the key is written
		if !file && !lasts {
			delete(s.faults, id)
		}
	}
	for id := range s.nomad {
		if _, file := all[id]; !file {
			delete(s.nomad, id)
		}
	}
}

// noteGone notes of which orphans the file is gone. They stay in memory: the ring may come to know them.
func (s *keystore) noteGone(ring *meta.Ring, all map[KeyID]files) {
	unknown, _ := s.unknown(ring)
	for _, id := range unknown {
		m := s.get(id)
		if m == nil {
			continue
		}
		_, file := all[id]
		if !file && !m.nomad {
			file, _ = s.confirm(id) // it may have come since the directory was read
		}
		s.mu.Lock()
		if m.gone == file {
			m.gone = !file
			s.changes++
		}
		s.mu.Unlock()
	}
}
