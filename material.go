package keyring

import (
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
)

// material is a key in memory.
type material struct {
	algorithm string
	check     meta.CheckValue
	created   time.Time
	secret    *nks.Material
	sum       [32]byte // SHA-256 of the file as it was read back
	stale     bool     // the file is to be rewrapped: Config has other KEKs
	nomad     bool     // it comes from a file of Nomad's
	gone      bool     // no file has it, and the ring does not know it
	lost      bool     // the file was found missing or changed since, or is not known to be durable
	sealer    atomic.Pointer[seal.Key]
	signer    atomic.Pointer[jwt.Signer]
	public    atomic.Pointer[[]byte] // of the signing key, once it was asked for
}

// has reports whether the ring's key is held, and is the right one.
func (s *keystore) has(k *meta.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holds(k)
}

// holds is has for a caller that holds mu.
func (s *keystore) holds(k *meta.Key) bool {
	m := s.keys[k.ID]
	return m != nil && !m.lost && m.check == k.Check
}

// lacks returns those of the ring's keys that are not held, or not the right ones.
func (s *keystore) lacks(keys []*meta.Key) map[KeyID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	lacking := map[KeyID]bool{}
	for _, k := range keys {
		if !s.holds(k) {
			lacking[k.ID] = true
		}
	}
	return lacking
}

func (s *keystore) get(id KeyID) *material {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[id]
}

// all returns the keys in memory.
func (s *keystore) all() map[KeyID]*material {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.keys)
}

// version is a number that changes whenever the keys do that are held, or in memory.
func (s *keystore) version() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes
}

// sealerOf derives the envelope's key at its first use.
func (s *keystore) sealerOf(id KeyID, m *material) (*seal.Key, error) {
	if k := m.sealer.Load(); k != nil {
		return k, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := m.sealer.Load(); k != nil {
		return k, nil
	}
	if s.keys[id] != m {
		return nil, ErrUnknownKey // it was dropped meanwhile
	}
	k, err := seal.New(m.secret.Root(), id)
	if err == nil {
		m.sealer.Store(k)
	}
	return k, err
}

// signerOf parses the private signing key at its first use, outside of the lock: an RSA key
// costs as much as a signature. The error for a key that was dropped is jwt.ErrWiped.
func (s *keystore) signerOf(id KeyID, m *material) (*jwt.Signer, error) {
	if k := m.signer.Load(); k != nil {
		return k, nil
	}
	a, ok := s.copy(id)
	if !ok || a.check != m.check {
		return nil, jwt.ErrWiped // it was dropped meanwhile
	}
	defer a.secret.Wipe()
	k, err := jwt.NewSigner(id.String(), a.algorithm, a.secret.Signing())
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[id] != m {
		k.Wipe()
		return nil, jwt.ErrWiped
	}
	if !m.signer.CompareAndSwap(nil, k) { // another call was faster
		k.Wipe()
	}
	return m.signer.Load(), nil
}

// drop overwrites a key in memory. Its file stays.
func (s *keystore) drop(id KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(id)
}

// forget is drop for a caller that holds mu.
func (s *keystore) forget(id KeyID) {
	m := s.keys[id]
	if m == nil {
		return
	}
	delete(s.keys, id)
	s.changes++
	m.wipe()
}

func (m *material) wipe() {
	m.secret.Wipe()
	if k := m.sealer.Load(); k != nil {
		k.Wipe()
	}
	if k := m.signer.Load(); k != nil {
		k.Wipe()
	}
}
