package keyring

import (
	"errors"
	"io/fs"
	"slices"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/plan"
)

// grave is what a keystore has of a key that is or was removed, or whose file was bad.
type grave struct {
	file  bool     // a file may lie under the key's name
	fresh bool     // and it is wrapped under exactly Config.KEKs
	aside []string // files that were set aside, and go when the key does
	stale []string // those of them that are whole and to be rewrapped: the removal may be undone
}

// grave returns the one of that key, made if need be. The caller holds mu.
func (s *keystore) grave(id KeyID) *grave {
	g := s.graves[id]
	if g == nil {
		g = &grave{}
		s.graves[id] = g
	}
	return g
}

// noteAside notes a file that was set aside, now or by an earlier process, if it goes when its
// key does: the removed one, and what it was before something happened to it. A misnamed one
// may be the only copy of another key.
func (s *keystore) noteAside(aside string) {
	name, why, ok := durable.ParseAside(aside)
	id, isKey := nks.ParseFileName(name)
	if !ok || !isKey || !slices.Contains([]string{asideRemoved, asideMalformed, asideUnreadable, asideForeign}, why) {
		return
	}
	stale := why == asideRemoved && s.isStale(aside)
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.grave(id)
	if !slices.Contains(g.aside, aside) {
		g.aside = append(g.aside, aside)
	}
	if stale && !slices.Contains(g.stale, aside) {
		g.stale = append(g.stale, aside)
	}
}

// isStale reports whether a file that was set aside is to be rewrapped, as far as the names of
// its KEKs tell. One that can't be read now may be, and so may one under a name that an old KEK
// has too.
func (s *keystore) isStale(aside string) bool {
	file, err := s.decode(aside)
	if err != nil {
		return !unfit(err) && !errors.Is(err, nks.ErrFormat) && !errors.Is(err, fs.ErrNotExist)
	}
	return s.keks.MayNeedRewrap(file)
}

// decode reads a file that is not a key's now.
func (s *keystore) decode(name string) (*nks.File, error) {
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return nil, err
	}
	return nks.DecodeFile(b)
}

// staleAside returns the files of removed keys that are to be rewrapped.
func (s *keystore) staleAside() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.graves {
		names = append(names, g.stale...)
	}
	slices.Sort(names)
	return names
}

// bury overwrites a removed key in memory and has its file set aside.
func (s *keystore) bury(id KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.grave(id)
	if m := s.keys[id]; m != nil {
		g.fresh = !m.stale
	}
	s.forget(id)
	delete(s.faults, id)
	g.file = true
}

// live notes that the file of a key is a live one's again: its removal was undone before it was
// set aside. The caller holds mu.
func (s *keystore) live(id KeyID) {
	if g := s.graves[id]; g != nil {
		g.file = false
		s.fill(id)
	}
}

// gravesOf returns what there is of keys that are or were removed, in no order.
func (s *keystore) gravesOf(ring *meta.Ring) []plan.Grave {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.faults {
		if ring.WasRemoved(id) { // its file did not open, or could not be written
			delete(s.faults, id)
			g := s.grave(id)
			g.file, g.fresh = true, false
		}
	}
	var graves []plan.Grave
	for id, g := range s.graves {
		graves = append(graves, plan.Grave{ID: id, File: g.file, Aside: len(g.aside) > 0})
	}
	return graves
}

// setRemovedAside sets the file of a key aside, if there is one and the key is still removed. A
// crash leaves it under one of the two names, for the next process to go on.
func (s *keystore) setRemovedAside(id KeyID, wasRemoved func(KeyID) bool) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if !wasRemoved(id) {
		return nil
	}
	name, err := s.settle(id)
	if err != nil {
		return err // it may be Nomad's
	}
	why := asideRemoved
	if file, err := s.decode(name); err == nil && file.ID != id {
		why = asideMisnamed // it may be the only copy
	}
	aside, err := s.dir.SetAside(name, why)
	s.noteAside(aside) // also one that is not durable under its new name yet
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grave(id).file = false
	s.fill(id)
	return nil
}

// unlink removes for good what was set aside of a removed key. A crash leaves some of it, for
// the next process to go on.
func (s *keystore) unlink(id KeyID, wasRemoved func(KeyID) bool) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if !wasRemoved(id) {
		return nil
	}
	for _, name := range s.asideOf(id) {
		if err := s.dir.Remove(name); err != nil {
			return err
		}
		s.forgetAside(id, name)
	}
	return nil
}

// takeBack gives a file of a key its name again that was removed and, after a restore, is not
// any more. It is then read like any other. There may be none.
func (s *keystore) takeBack(id KeyID) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	for _, name := range s.asideOf(id) {
		if !isRemovedFile(name) {
			continue
		}
		free, _ := s.settle(id) // Nomad's file may have its name by now
		err := s.dir.TakeBack(name, free)
		s.unread(id)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			s.forgetAside(id, name)
			return nil
		case errors.Is(err, fs.ErrExist): // it is there already
			return nil
		}
		return err // it may have been renamed
	}
	return nil
}

// unread notes that there may be a file of a key that has not been read.
func (s *keystore) unread(id KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.faults[id]; !ok && s.keys[id] == nil {
		s.faults[id] = fault{err: errUnread}
	}
}

// errUnread is what stands in the way of a key whose file has been taken back.
var errUnread = errors.New("its file has not been read yet")

func isRemovedFile(aside string) bool {
	_, why, _ := durable.ParseAside(aside)
	return why == asideRemoved
}

// buried reports whether there is a file of the key that was set aside when it was removed.
func (s *keystore) buried(id KeyID) bool { return slices.ContainsFunc(s.asideOf(id), isRemovedFile) }

// buriedKeys returns the keys of which there is such a file.
func (s *keystore) buriedKeys() (ids []KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, g := range s.graves {
		if slices.ContainsFunc(g.aside, isRemovedFile) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (s *keystore) asideOf(id KeyID) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.graves[id]; g != nil {
		return slices.Clone(g.aside)
	}
	return nil
}

// forgetAsideOf is forgetAside of a file that had that name before.
func (s *keystore) forgetAsideOf(name, aside string) {
	if id, isKey := nks.ParseFileName(name); isKey {
		s.forgetAside(id, aside)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setAside = slices.DeleteFunc(s.setAside, func(name string) bool { return name == aside })
}

func (s *keystore) forgetAside(id KeyID, aside string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := func(name string) bool { return name == aside }
	g := s.grave(id)
	g.aside, g.stale = slices.DeleteFunc(g.aside, is), slices.DeleteFunc(g.stale, is)
	s.setAside = slices.DeleteFunc(s.setAside, is)
	s.fill(id)
}

// fill forgets an empty grave. The caller holds mu.
func (s *keystore) fill(id KeyID) {
	if g := s.graves[id]; g != nil && !g.file && len(g.aside) == 0 {
		delete(s.graves, id)
	}
}
