package keystore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"slices"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// Confirm reports whether the key is held at this moment: its file is read once more and compared with what was found
// right before. A key whose file is gone is no longer held. The error means that it can't be told.
func (s *Store) Confirm(id meta.KeyID) (held bool, err error) {
	m := s.get(id)
	if m == nil {
		return false, s.mayCome(id)
	}
	if s.notInPlace() != nil {
		return false, nil // the next start will not find it
	}
	same, err := s.isUnchanged(id, m)
	if !same && !isPassing(err) { // it may be on its way: look again when nothing writes
		s.writing.Lock()
		defer s.writing.Unlock()
		same, err = s.isUnchanged(id, m)
	}
	if isPassing(err) {
		return false, err
	}
	if same && !s.isDurable(m) {
		s.recheck(id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !same && !m.notDurable {
		m.notDurable = true
		s.changes++
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !isOversized(err) && !isBarred(err) {
		return false, err
	}
	return !m.notDurable, nil
}

// recheck has those of the keys held again whose files are what was found right: they are read and synced, then the
// directory is. Nothing is written. Of what a sync has failed, only a write makes it durable.
func (s *Store) recheck(ids ...meta.KeyID) {
	synced := map[meta.KeyID][sha256.Size]byte{}
	for _, id := range ids {
		s.mu.Lock()
		m := s.keys[id]
		try := m != nil && m.notDurable && !m.mustWrite && !m.fromNomad
		s.mu.Unlock()
		if !try {
			continue
		}
		b, unsynced, err := s.dir.ReadOwn(s.fileName(id), nks.MaxFile, isOwn)
		sum := sha256.Sum256(b)
		clear(b) // an inline KEK is in it
		s.mu.Lock()
		m.mustWrite = m.mustWrite || unsynced != nil
		if err == nil && unsynced == nil && sum == m.sum {
			synced[id] = sum
		}
		s.mu.Unlock()
	}
	if len(synced) > 0 {
		s.syncDir(synced)
	}
}

// mayCome is why a key that is not in memory may be there soon, from a file that is here, or nil.
func (s *Store) mayCome(id meta.KeyID) error {
	removed := s.CanTakeBack(id) // first: takeBack notes the fault before it forgets the removed file
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.faults[id]; f.isClosed() || errors.Is(f.Err, errUnread) {
		return f.Err
	}
	if removed {
		return errUnread // it was removed, and that may have been undone
	}
	return nil
}

// isUnchanged reads the file of a key, and reports whether it is what was found right.
func (s *Store) isUnchanged(id meta.KeyID, m *material) (bool, error) {
	b, err := s.dir.Read(s.fileName(id), nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	s.mu.Lock()
	defer s.mu.Unlock()
	return err == nil && sha256.Sum256(b) == m.sum, err
}

// Heal gets back what needs no other server. First it takes back the files that were set aside when a key of restored was
// removed: those are missing keys of a ring that is known to be no older than the removal. Of the missing keys that are in
// memory it syncs the files if they are what they were, and writes the others. Of the keys that are held it writes those
// again whose last write has failed. At last it reads the directory for files that have appeared or whose KEKs answer again,
// and forgets what was wrong with files that an operator has put right. The error is about the directory or ctx,
// never about a key. While the directory is not in its place, nothing is done.
func (s *Store) Heal(ctx context.Context, ring *meta.Ring, missing, restored []*meta.Key) error {
	if s.LookAtPlace(); s.notInPlace() != nil {
		return nil
	}
	for _, k := range restored {
		if _, err := s.right(k.ID, k.Check); err == nil || !s.CanTakeBack(k.ID) {
			continue // a key in memory needs no file taken back
		}
		if err := s.takeBack(k.ID); err != nil {
			s.log.Error("could not take back a key file", "key", k.ID, "error", err)
		}
	}
	s.recheck(s.inMemoryOnly(missing)...)
	s.writeAgain(ctx, s.inMemoryOnly(missing)...)
	for some := range slices.Chunk(s.unwritten(), rewrapBatch) {
		if failed := cmp.Or(s.rewrite(ctx, some...)...); failed != nil {
			break // the rest would fail too, most likely, and is tried again
		}
	}
	return s.scan(ctx, ring, laterTurn)
}

// unwritten returns the keys that are held, and whose files could not be replaced: by Rewrap, say.
func (s *Store) unwritten() (ids []meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range sortedIDs(s.faults) {
		if m := s.keys[id]; s.faults[id].Cause == Unwritten && m != nil && !m.notDurable && !m.unproven {
			ids = append(ids, id)
		}
	}
	return ids
}

// inMemoryOnly returns those of the keys that are in memory, and whose files are not known to be durable.
func (s *Store) inMemoryOnly(keys []*meta.Key) (ids []meta.KeyID) {
	for _, k := range keys {
		if m, err := s.right(k.ID, k.Check); err == nil && !s.isDurable(m) {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

func (s *Store) isDurable(m *material) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !m.notDurable
}

// rewrite makes keys durable again that are in memory, under the KEKs that wrap now.
func (s *Store) rewrite(ctx context.Context, ids ...meta.KeyID) []error {
	var keys []Key
	for _, id := range ids {
		if k, ok := s.Copy(id); ok {
			keys = append(keys, k)
		}
	}
	return s.Put(ctx, keys...)
}

// What Report says of the directory, an operator can put right while the server runs: he deletes a file that was set
// aside, or moves one out that no KEK opens. Each scan forgets what is said of files that are gone.

// IsCurable reports whether something is said of the directory, but of orphans, that an operator may put right there.
func (s *Store) IsCurable(ring *meta.Ring) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults)+len(s.setAside)+len(s.altered) > 0 {
		return true
	}
	for id, r := range s.removed {
		if len(r.aside) > 0 && ring.Key(id) == nil && !ring.WasRemoved(id) {
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
