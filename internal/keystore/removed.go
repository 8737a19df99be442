package keystore

import (
	"errors"
	"io/fs"
	"slices"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// removedFiles is what the directory has of a key that is or was removed, or whose file was bad.
type removedFiles struct {
	inPlace bool         // a file may lie under the key's name
	barred  error        // why that file can't be read, or nil: it is left until an operator has mended that
	current bool         // and it is wrapped under exactly the KEKs that wrap now, if the next is so, too
	under   kek.Versions // the versions of the KEKs' keys that have wrapped it
	aside   []string     // files that were set aside, and go when the key does
	rewrap  []string     // those of them that are whole and to be rewrapped: the removal may be undone
}

// removedLocked returns the entry of that key, made if need be. The caller holds mu.
func (s *Store) removedLocked(id meta.KeyID) *removedFiles {
	r := s.removed[id]
	if r == nil {
		r = &removedFiles{}
		s.removed[id] = r
	}
	return r
}

// forgetIfEmptyLocked forgets the entry of a key if it says nothing. The caller holds mu.
func (s *Store) forgetIfEmptyLocked(id meta.KeyID) {
	if r := s.removed[id]; r != nil && !r.inPlace && len(r.aside) == 0 {
		delete(s.removed, id)
	}
}

// noteInUseLocked notes that the file of a key is in use again: its removal was undone before the file was set
// aside. The caller holds mu.
func (s *Store) noteInUseLocked(id meta.KeyID) {
	if r := s.removed[id]; r != nil {
		r.inPlace = false
		s.forgetIfEmptyLocked(id)
	}
}

// NoteRemoved overwrites a removed key in memory. SetAside sets its file aside later.
func (s *Store) NoteRemoved(id meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.removedLocked(id)
	if m := s.keys[id]; m != nil {
		r.current, r.under = !m.needsRewrap(), m.versions
	}
	s.dropLocked(id)
	delete(s.faults, id)
	r.inPlace = true
}

// noteRemovedFile notes that the file of a removed key lies under the key's name.
func (s *Store) noteRemovedFile(id meta.KeyID, f files) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range f.own {
		if !slices.Contains(s.nomad[id], name) {
			s.removedLocked(id).inPlace = true
		}
	}
}

// noteAside notes a file that was set aside, now or by an earlier process, if it goes when its key does: the
// removed one, and what it was before something happened to it. A misnamed one may be the only copy of another
// key.
func (s *Store) noteAside(aside string) {
	name, why, ok := durable.ParseAside(aside)
	id, isKey := nks.ParseFileName(name)
	if !ok || !isKey || !s.goesWithItsKey(aside, why) {
		return
	}
	if why == asideAltered {
		s.noteAltered(id, aside)
	}
	rewrap := why == asideRemoved && s.mayNeedRewrap(aside)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.removedLocked(id)
	if !slices.Contains(r.aside, aside) {
		r.aside = append(r.aside, aside)
	}
	if rewrap && !slices.Contains(r.rewrap, aside) {
		r.rewrap = append(r.rewrap, aside)
	}
}

// goesWithItsKey reports whether a file that was set aside goes when its key does. What an earlier build could not read may
// be Nomad's.
func (s *Store) goesWithItsKey(aside, why string) bool {
	switch why {
	case asideRemoved, asideMalformed, asideAltered:
		return true
	case asideUnreadable, asideForeign:
		b, err := s.dir.Read(aside, nks.MaxFile)
		defer clear(b) // an inline KEK is in it
		return err == nil && !nks.IsNomad(b)
	}
	return false
}

// forgetAside forgets a file that was set aside, and is gone or has its name again.
func (s *Store) forgetAside(aside string) {
	original, _, _ := durable.ParseAside(aside)
	id, isKey := nks.ParseFileName(original)
	is := func(name string) bool { return name == aside }
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setAside = slices.DeleteFunc(s.setAside, is)
	delete(s.altered, aside)
	if r := s.removed[id]; isKey && r != nil {
		r.aside, r.rewrap = slices.DeleteFunc(r.aside, is), slices.DeleteFunc(r.rewrap, is)
		s.forgetIfEmptyLocked(id)
	}
}

// asideOf returns the files of a key that were set aside.
func (s *Store) asideOf(id meta.KeyID) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.removed[id]; r != nil {
		return slices.Clone(r.aside)
	}
	return nil
}

// asideNames returns the names of all files that were set aside.
func (s *Store) asideNames() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := map[string]bool{}
	for _, name := range s.setAside {
		names[name] = true
	}
	for _, r := range s.removed {
		for _, name := range r.aside {
			names[name] = true
		}
	}
	return names
}

// Leftover is what the directory has of a key that is or was removed, or whose file was bad.
type Leftover struct {
	Key     meta.KeyID
	InPlace bool // a file may lie under the key's name
	Aside   bool // there are files that were set aside
}

// Leftovers returns what there is of keys that are or were removed, in no order.
func (s *Store) Leftovers(ring *meta.Ring) (all []Leftover) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.faults {
		if ring.WasRemoved(id) { // its file did not open, or could not be written
			delete(s.faults, id)
			r := s.removedLocked(id)
			r.inPlace, r.current = true, false
		}
	}
	for id, r := range s.removed {
		all = append(all, Leftover{id, r.inPlace, len(r.aside) > 0})
	}
	return all
}

// SetAside sets the file of a key aside, if there is one and the key is still removed. A crash leaves it under one of
// the two names, for the next process to go on.
func (s *Store) SetAside(id meta.KeyID, stillRemoved func(meta.KeyID) bool) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if !stillRemoved(id) {
		return nil
	}
	name, err := s.resolveFileName(id)
	s.noteBarred(id, err)
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
	s.removedLocked(id).inPlace = false
	s.forgetIfEmptyLocked(id)
	return nil
}

// noteBarred notes why the file of a removed key can't be read, if that is for an operator to mend.
func (s *Store) noteBarred(id meta.KeyID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.removedLocked(id); isBarred(err) {
		r.barred = err
	} else {
		r.barred = nil
	}
}

// Unlink removes for good what was set aside of a removed key, if the key is still removed. A crash leaves some of it, for
// the next process to go on.
func (s *Store) Unlink(id meta.KeyID, stillRemoved func(meta.KeyID) bool) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if !stillRemoved(id) {
		return nil
	}
	for _, name := range s.asideOf(id) {
		if err := s.dir.Remove(name); err != nil {
			return err
		}
		s.forgetAside(name)
	}
	return nil
}

// takeBack gives the file of a key its name again that was set aside when the key was removed: after a restore the key
// is no longer removed. The next scan reads it, like any other. There may be none.
func (s *Store) takeBack(id meta.KeyID) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	for _, name := range s.asideOf(id) {
		if !isRemovedFile(name) {
			continue
		}
		free, _ := s.resolveFileName(id) // Nomad's file may have its name by now
		err := s.dir.TakeBack(name, free)
		s.noteUnread(id)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			s.forgetAside(name)
			return nil
		case errors.Is(err, fs.ErrExist): // it is there already
			return nil
		}
		return err // it may have been renamed
	}
	return nil
}

// noteUnread notes that there may be a file of a key that has not been read.
func (s *Store) noteUnread(id meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.faults[id]; !ok && s.keys[id] == nil {
		s.noteFaultLocked(id, Fault{Cause: Unreadable, Err: errUnread})
	}
}

// wasSetAsideAs reports whether a name is that of a file that was set aside for that reason.
func wasSetAsideAs(name, why string) bool {
	_, is, ok := durable.ParseAside(name)
	return ok && is == why
}

// isRemovedFile reports whether a file was set aside when its key was removed.
func isRemovedFile(name string) bool { return wasSetAsideAs(name, asideRemoved) }

// CanTakeBack reports whether there is a file of the key that was set aside when it was removed.
func (s *Store) CanTakeBack(id meta.KeyID) bool {
	return slices.ContainsFunc(s.asideOf(id), isRemovedFile)
}
