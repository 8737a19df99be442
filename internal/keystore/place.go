package keystore

// Whether the directory is where a restart will look for it.

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"example.com/keyring/internal/durable"
)

// OnHang sets the function that is called when a change of the directory hangs, and when it returns after that. Call it before
// anything else is done with s.
func (s *Store) OnHang(f func()) { s.dir.OnHang(f) }

// HasPlace reports whether LookAtPlace is of use: a simulated directory has no path.
func (s *Store) HasPlace() bool { return s.dir.HasPlace() }

// LookAtPlace looks whether the path of the directory still leads to the one that was opened, and whether that has its ID. If
// not, no key is held until it does, and none is written; those in memory stay. It reports whether that has changed.
func (s *Store) LookAtPlace() (changed bool) {
	moved := s.dir.InPlace()
	if moved == nil {
		moved = s.lookAtIdentity()
	}
	if moved != nil && !errors.Is(moved, durable.ErrMoved) {
		s.log.Error("could not look at the keystore directory", "error", moved)
		return false // nothing is known
	}
	s.mu.Lock()
	was := s.moved
	s.mu.Unlock()
	if moved == nil && was != nil {
		s.doubt() // it was out of reach for a while
	}
	return s.noteMoved(moved)
}

// noteMoved notes that the directory is not in its place, or is again if moved is nil. It reports whether that is new.
func (s *Store) noteMoved(moved error) (changed bool) {
	s.mu.Lock()
	if changed = (s.moved == nil) != (moved == nil); changed {
		s.changes++
	}
	s.moved = moved
	s.mu.Unlock()
	switch {
	case changed && moved != nil:
		s.log.Error("the keystore directory is not in its place: this server holds no key", "error", moved)
	case changed:
		s.log.Info("the keystore directory is back in its place")
	}
	return changed
}

// IsMoved reports whether the directory was not in its place when it was last looked for.
func (s *Store) IsMoved() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved != nil
}

// notInPlace is why the directory is known not to be in its place, or nil. It looks at the path, but not at the ID: only
// LookAtPlace finds out that the directory is back.
func (s *Store) notInPlace() error {
	if err := s.dir.InPlace(); errors.Is(err, durable.ErrMoved) {
		s.noteMoved(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moved
}

// lookAtIdentity reads the ID again. One that is gone is written again, and the key files are doubted: somebody has
// emptied the directory.
func (s *Store) lookAtIdentity() error {
	want := hex.EncodeToString(s.id[:]) + "\n"
	b, err := s.dir.Read(identity, 4<<10)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.doubt()
		return s.dir.Write(durable.Named{Name: identity, Data: []byte(want)})[0]
	case err != nil && !isOversized(err) && !isBarred(err):
		return err
	case string(b) != want:
		return fmt.Errorf("%w: %s has changed: somebody put files of another keystore there", durable.ErrMoved, identity)
	}
	return nil
}

// doubt reads the file of each key in memory: those whose files are not what they were are not held.
func (s *Store) doubt() {
	for id, m := range s.all() {
		same, err := s.isUnchanged(id, m)
		if same || isPassing(err) {
			continue
		}
		s.mu.Lock()
		if !m.notDurable {
			m.notDurable = true
			s.changes++
		}
		s.mu.Unlock()
	}
}
