package keystore

// Which version of files is written, what becomes of files of an older one, and of those that somebody has altered.

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"slices"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// A file of version 1 is written until UseFiles says that the servers of the cluster read version 2. So a server that goes
// back to the build before, while the cluster is upgraded, can read its files. What is of version 2 already stays so: a
// version 1 in its place would hide what the MAC shows.

// Files returns the version of new files.
func (s *Store) Files() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(1, s.files)
}

// UseFiles has files of that version written from now on, and never of an older one again. Renew replaces those that are there.
func (s *Store) UseFiles(version int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = max(s.files, min(version, nks.FileVersion))
}

// versionFor returns the version of the next file of a key: until all servers read the newest one, no older one than its file
// has now, which may be another one than that which was read.
func (s *Store) versionFor(id meta.KeyID) int {
	s.mu.Lock()
	version, m := max(1, s.files), s.keys[id]
	if m != nil {
		version = max(version, m.version)
	}
	s.mu.Unlock()
	if m == nil || version >= nks.FileVersion {
		return version
	}
	if name, err := s.resolveFileName(id); err == nil {
		if file, err := s.decode(name); err == nil && file.ID == id {
			version = max(version, file.Version)
		}
	}
	return version
}

// isOutdatedLocked reports whether Rewrap would write another file of a key: the file is not wrapped as it would be now, or not
// known to be, or Renew would write it. The caller holds mu.
func (s *Store) isOutdatedLocked(m *material) bool {
	return m.needsRewrap() || s.keks.AreSuperseded(m.versions) || m.altered || m.version < s.files && !m.fromNomad
}

// isToRenewLocked reports whether the file of a key is to be written again without being asked: it was altered, or it is of
// an older version. Which KEKs a file is under changes only when Rewrap is called. The caller holds mu.
func (s *Store) isToRenewLocked(m *material) bool {
	if m.unproven || m.fromNomad || m.fileIsGone || m.notDurable {
		return false
	}
	return m.altered || m.version < s.files && !m.outdated
}

// Vouch tells which keys in memory a ring has: those are the cluster's, no matter who has made their files.
func (s *Store) Vouch(ring *meta.Ring) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vouchLocked(ring)
}

// vouchLocked is Vouch for a caller that holds mu.
func (s *Store) vouchLocked(ring *meta.Ring) {
	for id, m := range s.keys {
		if m.unproven {
			k := ring.Key(id)
			m.unproven = k == nil || k.Check != m.check
		}
	}
}

// HasToRenew reports whether Renew has something to do.
func (s *Store) HasToRenew() bool { return s.countToRenew(nks.FileVersion) > 0 }

// countToRenew counts the files that Renew has to write again and that were altered or are older than version.
func (s *Store) countToRenew(version int) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.keys {
		if s.isToRenewLocked(m) && (m.altered || m.version < version) {
			n++
		}
	}
	return n
}

// Renew writes files again that were altered, or are of an older version than is written now, from the keys in memory. Each
// file is replaced by one that has been opened before it is written: a crash leaves each as it was or renewed.
func (s *Store) Renew(ctx context.Context) {
	s.mu.Lock()
	var ids []meta.KeyID
	for id, m := range s.keys {
		if s.isToRenewLocked(m) {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(ids, compareIDs)
	for some := range slices.Chunk(ids, rewrapBatch) {
		failed := cmp.Or(s.rewrite(ctx, some...)...)
		if failed != nil {
			s.log.Error("could not write key files again", "error", failed)
		}
		if ctx.Err() != nil || failed != nil && s.keks.WrappingDown() != nil { // what comes would fail too, each after its time
			return
		}
	}
}

// isAltered reports whether somebody else has written a file of that key, which is about to be replaced, than who had the key in memory.
// One of version 1 has nothing to tell that by, but that it has come in the place of a version 2.
func (s *Store) isAltered(id meta.KeyID, file *nks.File) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.keys[id]
	if m == nil || file.Version < 2 && m.version < 2 {
		return false
	}
	return !m.secret.Authentic(file)
}

// Altered is the copy of a file that somebody has altered. It is there until somebody deletes it, or the key is removed.
type Altered struct {
	Key  meta.KeyID
	Copy string   // its name; empty while the altered file itself is still in its place
	KEKs []string // that the altered file had entries for
}

// keepAltered keeps one copy of an altered file, for who finds out what has happened. The key is worth more than the copy: if
// there is none, the file is replaced all the same.
func (s *Store) keepAltered(id meta.KeyID, name string, b []byte, file *nks.File) {
	if s.hasCopy(id, b) {
		return // the file could not be replaced then, or the process has died
	}
	names := s.keks.Names(file)
	s.log.Error("a key file was altered: its key is right, but the rest is not as this server wrote it", "file", name, "keks", names)
	aside, err := s.dir.KeepAside(name, asideAltered, b)
	if err != nil {
		s.log.Error("could not keep a copy of an altered key file", "file", name, "error", err)
	}
	s.noteAside(aside) // also one that is not durable under its name yet: the write that follows syncs that
}

// hasCopy reports whether there is a copy of an altered file of a key with that content.
func (s *Store) hasCopy(id meta.KeyID, content []byte) bool {
	return slices.ContainsFunc(s.asideOf(id), func(aside string) bool {
		if !wasSetAsideAs(aside, asideAltered) {
			return false
		}
		b, err := s.dir.Read(aside, nks.MaxFile)
		defer clear(b) // an inline KEK is in it
		return err == nil && bytes.Equal(b, content)
	})
}

// noteAltered notes the copy of an altered file.
func (s *Store) noteAltered(id meta.KeyID, aside string) {
	s.mu.Lock()
	_, known := s.altered[aside]
	s.mu.Unlock()
	if known {
		return
	}
	a := Altered{Key: id, Copy: aside}
	if file, err := s.decode(aside); err == nil {
		a.KEKs = s.keks.Names(file)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.altered[aside] = a
}

// alteredLocked returns the files that somebody has altered: the copies by name, then those that are yet to be replaced.
// The caller holds mu.
func (s *Store) alteredLocked() (all []Altered) {
	for _, aside := range slices.Sorted(maps.Keys(s.altered)) {
		all = append(all, s.altered[aside])
	}
	for _, id := range sortedIDs(s.keys) {
		if s.keys[id].altered {
			all = append(all, Altered{Key: id})
		}
	}
	return all
}
