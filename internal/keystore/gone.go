package keystore

// Files of keys in memory that somebody has deleted or moved while the server runs.

import (
	"context"
	"fmt"

	"example.com/keyring/internal/meta"
)

// LookForFiles reads the names in the directory, and looks whether the keys of a ring that are held still have their files. One
// whose file is gone is not held, and it is written again from memory. It reports whether it has found one. While the directory
// is not in its place it does nothing.
func (s *Store) LookForFiles(ctx context.Context, ring *meta.Ring) (gone bool) {
	s.scanning.Lock()
	defer s.scanning.Unlock()
	if s.notInPlace() != nil {
		return false
	}
	names, err := s.dir.List()
	if err != nil {
		s.log.Error("could not look for the key files", "error", err)
		return false
	}
	s.sort(names) // a file of Nomad's may have come to the name of ours
	ids := s.noteGoneFiles(ring, names)
	s.writeAgain(ctx, ids...)
	return len(ids) > 0
}

// noteGoneFiles returns the held keys of a ring whose files are gone, and notes that. names is what the directory has.
func (s *Store) noteGoneFiles(ring *meta.Ring, names []string) (gone []meta.KeyID) {
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	for _, k := range ring.Keys {
		name := s.fileName(k.ID)
		m, err := s.right(k.ID, k.Check)
		if there[name] || err != nil || !s.isDurable(m) {
			continue
		}
		if held, err := s.Confirm(k.ID); held || err != nil || s.get(k.ID) != m { // it may have come since the directory was read
			continue
		}
		s.log.Error("a key file is gone: the key is only in memory", "key", k.ID, "file", name)
		s.noteFault(k.ID, Fault{Cause: Unwritten, Err: fmt.Errorf("key file %s is gone from the directory: the key is only in memory until its file is written again", name)})
		gone = append(gone, k.ID)
	}
	return gone
}

// writeAgain makes keys durable again that are in memory, and whose files are gone, or are not known to be durable.
func (s *Store) writeAgain(ctx context.Context, ids ...meta.KeyID) {
	if len(ids) == 0 {
		return
	}
	s.rewrite(ctx, ids...)
	for _, id := range ids {
		if m := s.get(id); m != nil && s.isDurable(m) {
			s.log.Info("wrote a key file again, from memory", "key", id, "file", s.fileName(id))
		}
	}
}
