package keystore

import (
	"errors"
	"fmt"
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
		m, err := s.openNomad(name, id)
		if err == nil {
			return m, nil
		}
		f = &Fault{Cause: NomadFile, File: name, Err: fmt.Errorf("key file %s of Nomad's: %w", name, err)}
	}
	return nil, f
}

func (s *Store) openNomad(name string, id meta.KeyID) (*material, error) {
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // a KEK may be in it
	if err != nil {
		return nil, err
	}
	file, err := nks.DecodeNomad(b)
	if err != nil {
		return nil, err
	}
	defer file.Wipe()
	if file.ID != id {
		return nil, fmt.Errorf("%w: %w: it names %s", nks.ErrCorrupt, errMisnamed, meta.KeyID(file.ID))
	}
	if file.Inline() && !s.keks.HasInline() {
		return nil, errors.New("its KEK lies in it, so it is opened only with InlineKEK in KEKs or OldKEKs")
	}
	secret, algorithm, err := file.Open()
	if err != nil {
		return nil, err
	}
	return &material{
		algorithm: algorithm, check: secret.Check(id, algorithm), created: file.Created, secret: secret, fromNomad: true,
	}, nil
}
