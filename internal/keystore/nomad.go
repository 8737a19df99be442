package keystore

import (
	"slices"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// What comes from the files of Nomad's is in memory only: once the ring knows the key, it is made durable like any
// other that is not, in a file of the keyring's own.

// loadNomad reads the files of Nomad's of a key until one opens. There may be none.
func (s *Store) loadNomad(id meta.KeyID) (*material, *Fault) {
	s.mu.Lock()
	names := slices.Clone(s.nomad[id])
	s.mu.Unlock()
	var f *Fault
	for _, name := range names {
		b, err := s.dir.Read(name, nks.MaxFile)
		m, fault := found{id, name, b, err}.openNomads(s.keks)
		clear(b) // a KEK may be in it
		if fault == nil {
			return m, nil
		}
		f = fault
	}
	return nil, f
}
