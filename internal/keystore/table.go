package keystore

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/seal"
)

// Table has the keys with which data may be opened. It is a cache of what a ring and the Store say together, and is
// made again when they change.
//
// It is a hash table with open addressing: key IDs are random, so their first bytes are the hash, and at most
// half of the slots are taken. A Go map costs 10 ns more, which is 4 % of opening 1 KiB.
type Table struct {
	slots []slot
	shift int
}

// slot is where the table has a key, or would have it.
type slot struct {
	id    meta.KeyID
	key   atomic.Pointer[seal.Key] // nil in a slot that is taken: not derived yet
	taken bool
}

// Table returns a table of the ring's keys that are in memory, but for those of which skip says that they open
// nothing.
func (s *Store) Table(ring *meta.Ring, skip func(*meta.Key) bool) *Table {
	keys := s.all()
	for id, m := range keys {
		if k := ring.Key(id); k == nil || m.check != k.Check || skip(k) {
			delete(keys, id)
		}
	}
	size := bits.Len(uint(2*len(keys))) + 1
	t := &Table{make([]slot, 1<<size), 64 - size}
	for id, m := range keys {
		s := t.slot(&id)
		s.id, s.taken = id, true
		s.key.Store(m.sealer.Load())
	}
	return t
}

// slot returns the slot of that ID, or the empty one where it would be.
func (t *Table) slot(id *meta.KeyID) *slot {
	for i := binary.BigEndian.Uint64(id[:8]) >> (t.shift & 63); ; i++ {
		s := &t.slots[i&uint64(len(t.slots)-1)]
		if s.id == *id || !s.taken {
			return s
		}
	}
}

// Find returns what opens data under the key of that ID. It is nil if the table does not have it: Store.Sealer does,
// if there is such a key, and Keep puts it into the table.
func (t *Table) Find(id *meta.KeyID) *seal.Key { return t.slot(id).key.Load() }

// Keep has Find return the key from now on, if the table has a place for it.
func (t *Table) Keep(id *meta.KeyID, key *seal.Key) {
	if s := t.slot(id); s.taken {
		s.key.Store(key)
	}
}

// Follow does what a ring decides about the keys in memory. It may be called once the ring is known to be no older
// than the keys: a removed key is overwritten, and the file of another key than the ring's of that ID is set aside.
// A key that the ring does not know stays.
func (s *Store) Follow(ring *meta.Ring) {
	for id, m := range s.all() {
		switch key := ring.Key(id); {
		case key != nil && m.check != key.Check:
			s.reject(id, key.Check)
		case key == nil && ring.WasRemoved(id):
			s.NoteRemoved(id)
		}
	}
}
