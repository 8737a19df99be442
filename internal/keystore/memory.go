package keystore

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
)

// ErrNotHere means that no key of that ID and check value is in memory.
var ErrNotHere = errors.New("key material is not in memory")

// Key is a key with its material. Who receives one wipes it.
type Key struct {
	ID        meta.KeyID
	Algorithm string // of the signing key
	Check     meta.CheckValue
	Created   time.Time
	Secret    *nks.Material
}

// File returns what the file of the key says of it, but for the material.
func (k Key) File() nks.File {
	return nks.File{ID: k.ID, Algorithm: k.Algorithm, Check: k.Check, Created: k.Created}
}

// material is a key in memory. The Store's mu guards all but the atomic fields; algorithm, check, created and
// secret never change.
type material struct {
	algorithm string
	check     meta.CheckValue
	created   time.Time
	secret    *nks.Material
	sum       [32]byte // SHA-256 of the file as it was read back

	notDurable bool         // the file was found missing or changed since, or is not known to be durable
	unsynced   bool         // the file, or its name, has yet to be synced: the next start may find an older one
	mustWrite  bool         // and its sync has failed: no later one tells that the disk has it
	outdated   bool         // the file is not wrapped under exactly the KEKs that wrap now
	versions   kek.Versions // of the KEKs' keys that have wrapped the file
	altered    bool         // the file has its key, and the rest of it is not what was written
	version    int          // of its file
	unproven   bool         // only KEKs opened the file to which anybody can wrap, and no ring has vouched for the key
	fromNomad  bool         // it comes from a file of Nomad's
	fileIsGone bool         // no file has it, and the ring does not know it

	written mono.Time // when this process made its file; zero if it was there

	sealer atomic.Pointer[seal.Key]
	signer atomic.Pointer[jwt.Signer]
	public atomic.Pointer[[]byte] // of the signing key, once it was asked for
}

// needsRewrap reports whether the file is not wrapped under exactly the KEKs that wrap now, or not known to be.
func (m *material) needsRewrap() bool { return m.outdated || m.unsynced }

func (m *material) wipe() {
	m.secret.Wipe()
	if k := m.sealer.Load(); k != nil {
		k.Wipe()
	}
	if k := m.signer.Load(); k != nil {
		k.Wipe()
	}
}

// Holds reports whether the ring's key is held, and is the right one. One that only a newer build can use is not held.
func (s *Store) Holds(k *meta.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holdsLocked(k)
}

// holdsLocked is Holds for a caller that holds mu.
func (s *Store) holdsLocked(k *meta.Key) bool {
	m := s.keys[k.ID]
	return m != nil && !m.notDurable && s.moved == nil && m.check == k.Check && k.Newer() == ""
}

// Compare compares the keys with a ring's. lacks are those of the ring that are not held, or not the right ones; unknown
// says that a key is in memory that the ring does not know.
func (s *Store) Compare(ring *meta.Ring) (lacks map[meta.KeyID]bool, unknown bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vouchLocked(ring)
	lacks = map[meta.KeyID]bool{}
	for _, k := range ring.Keys {
		if !s.holdsLocked(k) {
			lacks[k.ID] = true
		}
	}
	all, _ := s.unknownLocked(ring)
	return lacks, len(all) > 0
}

// InMemory reports whether there is a key of that ID in memory, held or not, the right one or not.
func (s *Store) InMemory(id meta.KeyID) bool { return s.get(id) != nil }

// Present are the keys of which there is something here, whether or not the ring knows them. All of it is of one moment,
// in no order.
type Present struct {
	InMemory []meta.KeyID // held or not
	Closed   []meta.KeyID // there is a file that nothing opens for now
	SetAside []meta.KeyID // there is a file that was set aside when the key was removed, and that Heal can take back
}

// Present returns them.
func (s *Store) Present() (p Present) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.InMemory = slices.Collect(maps.Keys(s.keys))
	for id, f := range s.faults {
		if f.isClosed() {
			p.Closed = append(p.Closed, id)
		}
	}
	for id, r := range s.removed {
		if slices.ContainsFunc(r.aside, isRemovedFile) {
			p.SetAside = append(p.SetAside, id)
		}
	}
	return p
}

// Version is a number that changes whenever the keys do that are held, or in memory.
func (s *Store) Version() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changes
}

func (s *Store) get(id meta.KeyID) *material {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[id]
}

// all returns the keys in memory.
func (s *Store) all() map[meta.KeyID]*material {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.keys)
}

// right returns the key of that ID if it has that check value.
func (s *Store) right(id meta.KeyID, check meta.CheckValue) (*material, error) {
	if m := s.get(id); m != nil && m.check == check {
		return m, nil
	}
	return nil, ErrNotHere
}

// Copy returns a key with material of its own, for the caller to wipe.
func (s *Store) Copy(id meta.KeyID) (Key, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.keys[id]
	if m == nil {
		return Key{}, false
	}
	return Key{id, m.algorithm, m.check, m.created, m.secret.Clone()}, true
}

// View calls look with the material of a key, and reports whether it is in memory. The Store can do nothing meanwhile: look
// is quick, calls no method of the Store, and keeps nothing of the material.
func (s *Store) View(id meta.KeyID, look func(*nks.Material)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.keys[id]
	if m == nil {
		return false
	}
	look(m.secret)
	return true
}

// copyRight is Copy of a key that has to have that check value.
func (s *Store) copyRight(id meta.KeyID, check meta.CheckValue) (Key, error) {
	k, ok := s.Copy(id)
	if !ok || k.Check != check {
		k.Secret.Wipe()
		return Key{}, ErrNotHere
	}
	return k, nil
}

// Sealer returns what seals and opens data under a key. It is derived at its first use. The error is ErrNotHere
// if the key is not in memory.
func (s *Store) Sealer(id meta.KeyID, check meta.CheckValue) (*seal.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.keys[id]
	if m == nil || m.check != check {
		return nil, ErrNotHere
	}
	if k := m.sealer.Load(); k != nil {
		return k, nil
	}
	k, err := seal.New(m.secret.Root(), id)
	if err == nil {
		m.sealer.Store(k)
	}
	return k, err
}

// Signer returns what signs tokens with a key. The private key is parsed at its first use, outside of the lock: an
// RSA key costs as much as a signature. The error is jwt.ErrWiped if the key is not in memory.
func (s *Store) Signer(id meta.KeyID, check meta.CheckValue) (*jwt.Signer, error) {
	m, err := s.right(id, check)
	if err != nil {
		return nil, jwt.ErrWiped
	}
	if k := m.signer.Load(); k != nil {
		return k, nil
	}
	key, err := s.copyRight(id, check)
	if err != nil {
		return nil, jwt.ErrWiped // it was dropped meanwhile
	}
	defer key.Secret.Wipe()
	k, err := jwt.NewSigner(id.String(), key.Algorithm, key.Secret.Signing())
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

// noPublic is the public key of material whose signing key can't be read: no key in a ring has it.
var noPublic = []byte{}

// Public returns the public key that the material of a ring's key determines, and whether this call has derived
// it, which costs half a millisecond for RSA. It is nil for a key that is not in memory, or not the ring's.
func (s *Store) Public(key *meta.Key) (public []byte, derived bool) {
	m, err := s.right(key.ID, key.Check)
	if err != nil {
		return nil, false
	}
	public, derived, _ = s.publicOf(key.ID, m)
	return public, derived
}

// publicOf is Public of material in memory: empty and, from the call that derives it, an error if its signing key can't be
// read.
func (s *Store) publicOf(id meta.KeyID, m *material) (public []byte, derived bool, err error) {
	if p := m.public.Load(); p != nil {
		return *p, false, nil
	}
	k, err := s.copyRight(id, m.check)
	if err != nil { // it was dropped since
		return nil, false, nil
	}
	defer k.Secret.Wipe()
	if public, err = k.Secret.Public(k.Algorithm); err != nil {
		public = noPublic
	}
	m.public.Store(&public)
	return public, true, err
}

// Use is how often a key was used, as seal.Key estimates it.
type Use struct {
	Key          *seal.Key // which counts; another one, if the key was dropped and has come back
	Seals, Opens uint64
}

// Uses returns the use of each key in memory that was used.
func (s *Store) Uses() map[meta.KeyID]Use {
	uses := map[meta.KeyID]Use{}
	for id, m := range s.all() {
		if k := m.sealer.Load(); k != nil {
			seals, opens := k.Counts()
			uses[id] = Use{k, seals, opens}
		}
	}
	return uses
}

// drop overwrites a key in memory. Its file stays.
func (s *Store) drop(id meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(id)
}

// dropLocked is drop for a caller that holds mu.
func (s *Store) dropLocked(id meta.KeyID) {
	m := s.keys[id]
	if m == nil {
		return
	}
	delete(s.keys, id)
	s.changes++
	m.wipe()
}

func compareIDs(a, b meta.KeyID) int { return bytes.Compare(a[:], b[:]) }
