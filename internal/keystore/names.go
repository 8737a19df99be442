package keystore

import (
	"errors"
	"io/fs"
	"slices"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// fileName returns the name of the keyring's own file of a key. It is another one where a file of Nomad's has the
// usual name: those are read and never written, renamed or unlinked.
func (s *Store) fileName(id meta.KeyID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.beside[id] {
		return nks.BesideName(id)
	}
	return nks.FileName(id)
}

// resolveFileName is fileName for a file that is about to be written or set aside: somebody may have put a file of
// Nomad's in its place. The error says that it can't be told; the name is the usual one then, by which a file may
// be written over if it is known to be the keyring's.
func (s *Store) resolveFileName(id meta.KeyID) (string, error) {
	if name := s.fileName(id); name != nks.FileName(id) {
		return name, nil
	}
	b, err := s.dir.Read(nks.FileName(id), nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !isOversized(err) {
		return nks.FileName(id), err
	}
	if nks.IsNomad(b) {
		s.useBesideName(id)
	}
	return s.fileName(id), nil
}

// useBesideName notes that a file of Nomad's has the usual name of a key.
func (s *Store) useBesideName(id meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beside[id] = true
	if name := nks.FileName(id); !slices.Contains(s.nomad[id], name) {
		s.nomad[id] = append(s.nomad[id], name)
	}
}

// noteNomad notes the files of Nomad's that there are of a key. Ours is beside one that has its name, and stays
// there for ever.
func (s *Store) noteNomad(id meta.KeyID, f files) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := f.nomad
	if slices.Contains(f.own, nks.BesideName(id)) {
		s.beside[id] = true
	}
	if s.beside[id] && slices.Contains(f.own, nks.FileName(id)) {
		names = append(names, nks.FileName(id))
	}
	if delete(s.nomad, id); len(names) > 0 {
		s.nomad[id] = names
	}
}
