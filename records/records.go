package records

// What is in a Map: Record and View, and how they are read.

import (
	"encoding/binary"
	"errors"
	"iter"
	"strings"

	"example.com/keyring"
	"github.com/tidwall/btree"
)

// Bounds of a record. Put and Apply reject a record that exceeds them.
const (
	MaxName  = 1024     // bytes of a name, at least 1
	MaxParts = 64       // of a record
	MaxBytes = 64 << 20 // of a record: name, Meta and Parts. A Put takes up to keyring.MaxCommand bytes in all
)

var (
	// ErrVersion means that a record does not have the version of Write.If. Nothing was written.
	ErrVersion = errors.New("the record has another version")
	// ErrUncertain means that a write was proposed, but raft has not said whether it was committed: it may
	// have been executed, or may still be. After any other error nothing was written.
	ErrUncertain = errors.New("it may have been written")
	// ErrNotFound means that there is no record with that name.
	ErrNotFound = errors.New("no such record")
)

// Record is a record of a Map. It shares its memory with the Map: do not change its bytes.
type Record struct {
	Name string
	// Version is the index of raft's log entry that wrote the record, or the Version given to SetPlain. It is
	// at least 1. Re-encryption under another key does not change it.
	Version uint64
	// Meta is the host's own, in the clear. Empty means none.
	Meta []byte
	// Parts are ciphertexts of keyring.Encrypt, bound to the AAD of the name and the part's number, or
	// plaintexts.
	Parts [][]byte

	plain uint64 // bit i: part i is a plaintext
}

// KeyID returns the ID of the key under which a part is encrypted. It is zero for a plaintext, and for a part
// that the record does not have.
func (r Record) KeyID(part int) keyring.KeyID {
	if part < 0 || part >= len(r.Parts) || r.isPlain(part) {
		return keyring.KeyID{}
	}
	id, _ := keyring.CiphertextKeyID(r.Parts[part])
	return id
}

// isPlain reports whether a part is a plaintext.
func (r Record) isPlain(part int) bool { return r.plain>>part&1 == 1 }

// AAD returns the AAD of a part of a record: "keyring records v1", the part's number in 4 bytes, big endian,
// and the name.
func AAD(name string, part int) []byte {
	const label = "keyring records v1"
	aad := make([]byte, 0, len(label)+4+len(name))
	aad = append(aad, label...)
	aad = binary.BigEndian.AppendUint32(aad, uint32(part))
	return append(aad, name...)
}

// tree has records in the order of their names. They are never changed, only replaced.
type tree = btree.BTreeG[*Record]

func newTree() *tree {
	return btree.NewBTreeGOptions(func(a, b *Record) bool { return a.Name < b.Name }, btree.Options{NoLocks: true})
}

// View contains all records at one index of the log. It does not change when the Map does, is cheap to make,
// and is safe for concurrent use.
type View struct {
	index  uint64 // of the last command
	size   uint64 // of all records in a snapshot, in bytes
	byName *tree
	newer  error // an entry could not be applied, because it is of a newer build: records may be missing
}

// Index returns the index of the last log entry that was a command of the Map, even if that was rejected.
// Zero means that there was none: all records are from SetPlain or RestorePlain.
func (v View) Index() uint64 { return v.index }

// Len returns the number of records.
func (v View) Len() int { return v.byName.Len() }

// Get returns the record with that name, if there is one.
func (v View) Get(name string) (Record, bool) {
	if r, ok := v.byName.Get(&Record{Name: name}); ok {
		return *r, true
	}
	return Record{}, false
}

// All yields the records whose names begin with prefix, ordered by name. An empty prefix yields all.
func (v View) All(prefix string) iter.Seq[Record] {
	return func(yield func(Record) bool) {
		v.byName.Ascend(&Record{Name: prefix}, func(r *Record) bool {
			return strings.HasPrefix(r.Name, prefix) && yield(*r)
		})
	}
}

// group is the records that have parts under one key.
type group struct {
	records *tree
	parts   int // under that key
}

// state is a View and the index from keys to records. Plaintexts are under the zero key.
type state struct {
	View
	byKey map[keyring.KeyID]group
}

func newState() state {
	return state{View: View{byName: newTree()}, byKey: map[keyring.KeyID]group{}}
}

// set puts a record in the place of what has its name.
func (s *state) set(r *Record) {
	if old, ok := s.byName.Set(r); ok {
		s.dropFromIndex(old)
	}
	s.addToIndex(r)
}

// load is set for a record whose name comes after all others.
func (s *state) load(r *Record) {
	s.byName.Load(r)
	s.addToIndex(r)
}

// remove takes a record out, if there is one.
func (s *state) remove(name string) {
	if old, ok := s.byName.Delete(&Record{Name: name}); ok {
		s.dropFromIndex(old)
	}
}

// addToIndex adds a record to the index, and its length to the size.
func (s *state) addToIndex(r *Record) {
	s.size += uint64(encodedLen(r))
	for i := range r.Parts {
		id := r.KeyID(i)
		g, ok := s.byKey[id]
		if !ok {
			g.records = newTree()
		}
		g.records.Set(r)
		g.parts++
		s.byKey[id] = g
	}
}

// dropFromIndex takes a record out of both.
func (s *state) dropFromIndex(r *Record) {
	s.size -= uint64(encodedLen(r))
	for i := range r.Parts {
		id := r.KeyID(i)
		g := s.byKey[id]
		g.records.Delete(r) // by its name, once for all of its parts
		g.parts--
		s.byKey[id] = g
		if g.parts == 0 {
			delete(s.byKey, id)
		}
	}
}
