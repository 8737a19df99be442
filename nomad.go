package keyring

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"example.com/keyring/internal/nks"
)

// OpenNomad opens data that HashiCorp Nomad encrypted under a key of its own: AES-256-GCM under
// the root key, the 12-byte nonce first, the key ID as additional data. Nomad keeps the key ID
// beside the data, not in it. The key is one that was adopted; data under any other is
// ErrDecrypt, as is data that is not Nomad's. The other errors are those of Decrypt. On any
// server that holds the key.
func (k *Keyring) OpenNomad(id KeyID, data []byte) ([]byte, error) {
	if err := k.gate.Err(); err != nil {
		return nil, err
	}
	key, err := k.knownKey(id)
	if err != nil {
		return nil, err
	}
	if !key.Adopted() {
		return nil, ErrDecrypt
	}
	a, ok := k.store.copy(id)
	if !ok || a.check != key.Check {
		a.secret.Wipe()
		return nil, k.missing(id)
	}
	defer a.secret.Wipe()
	plaintext, err := nks.OpenNomadData(a.secret.Root(), id, data)
	if err != nil {
		return nil, ErrDecrypt
	}
	return plaintext, nil
}

// The files of Nomad's in a keystore are read and never written, renamed or unlinked. What
// comes from them is in memory only: once the ring knows the key, it is made durable like any
// that was lost, in a file of the keyring's own.

// nameOf returns the name of the keyring's own file of a key.
func (s *keystore) nameOf(id KeyID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken[id] {
		return nks.BesideName(id)
	}
	return nks.FileName(id)
}

// settle is nameOf for a file that is about to be written or set aside: somebody may have put
// a file of Nomad's in its place. The error says that it can't be told.
func (s *keystore) settle(id KeyID) (string, error) {
	if name := s.nameOf(id); name != nks.FileName(id) {
		return name, nil
	}
	b, err := s.dir.Read(nks.FileName(id), nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !unfit(err) {
		return nks.FileName(id), err // by which it may go, unread
	}
	if nks.IsNomad(b) {
		s.take(id)
	}
	return s.nameOf(id), nil
}

// take notes that a file of Nomad's has the name of a key.
func (s *keystore) take(id KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[id] = true
	if name := nks.FileName(id); !slices.Contains(s.nomad[id], name) {
		s.nomad[id] = append(s.nomad[id], name)
	}
}

// noteNomad notes the files of Nomad's that there are of a key. Ours is beside one that has
// its name, and is so for ever.
func (s *keystore) noteNomad(id KeyID, f files) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := f.nomad
	if slices.Contains(f.own, nks.BesideName(id)) {
		s.taken[id] = true
	}
	if s.taken[id] && slices.Contains(f.own, nks.FileName(id)) {
		names = append(names, nks.FileName(id))
	}
	if delete(s.nomad, id); len(names) > 0 {
		s.nomad[id] = names
	}
}

// loadNomad reads the files of Nomad's of a key until one opens. There may be none.
func (s *keystore) loadNomad(id KeyID) (*material, *fault) {
	s.mu.Lock()
	names := slices.Clone(s.nomad[id])
	s.mu.Unlock()
	var f *fault
	for _, name := range names {
		m, err := s.openNomad(name, id)
		if err == nil {
			return m, nil
		}
		f = &fault{file: name, err: fmt.Errorf("key file %s of Nomad's: %w", name, err)}
	}
	return nil, f
}

func (s *keystore) openNomad(name string, id KeyID) (*material, error) {
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
		return nil, fmt.Errorf("%w: %w: it names %s", ErrCorrupt, errMisnamed, KeyID(file.ID))
	}
	if file.Inline() && !s.keks.HasInline() {
		return nil, errors.New("its KEK lies in it, so it is opened only with InlineKEK in KEKs or OldKEKs")
	}
	secret, algorithm, err := file.Open()
	if err != nil {
		return nil, err
	}
	return &material{
		algorithm: algorithm, check: secret.Check(id, algorithm), created: file.Created, secret: secret, nomad: true,
	}, nil
}
