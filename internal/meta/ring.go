// Package meta is the state machine of the keyring's metadata: the ring, the commands that change it, and the format of
// both in raft's log and snapshots. It is pure: no clock, no randomness, no I/O, no goroutines. Times and IDs come
// in with the commands, so the same log gives the same bytes on every server.
//
// A [Ring] is immutable once published. [Ring.Apply] takes a decoded log entry and returns
// the next Ring, or an error and no change. [Ring.Check] says whether a Ring can exist and
// [CheckStep] whether one may follow another; tests run both on every mutation.
//
//	prepublished --activate--> active --rotate--> inactive --rekey--> rekeying --> deprecated
//	     |                        |                                      ^             |
//	     +--remove                +---------- full rotate ---------------+             +--remove
//
// # Encoding
//
// A log entry is the JSON of [Entry], a section of a snapshot is the JSON of a Ring; both begin with a
// version, the lowest that has all that is in them, and have exactly one encoding: what does not
// encode back to the same bytes is refused, and so are unknown versions, commands and members.
//
// # Snapshot
//
// A raft snapshot begins with the keyring's part, which is
//
//	magic    16 bytes: "keyring-snapshot"
//	length   8 bytes: that of the section, big endian, at most 1 GiB
//	sum      32 bytes: the SHA-256 of the section
//	section  the JSON of the Ring
//
// The host's part follows, to the end of the snapshot. It may be empty. The sum is for hosts whose
// snapshot store has none. A snapshot that does not begin with the magic is the host's alone: it was
// made before the keyring wrote anything into that raft.
package meta

import (
	"bytes"
	"cmp"
	"slices"
	"time"
)

// State is where a key is in its life. A key never returns to an earlier state.
type State string

// The states of a key. A removed key has none: only its tombstone is left.
const (
	StatePrepublished State = "prepublished" // verifiers know it; it has sealed nothing yet
	StateActive       State = "active"       // seals and signs, on the leader; at most one key
	StateInactive     State = "inactive"     // opens what it sealed
	StateRekeying     State = "rekeying"     // opens; its data is moving to the active key
	StateDeprecated   State = "deprecated"   // a clean scan found nothing sealed under it
)

// rank orders the states; edges go up only. Unknown states have none.
func (s State) rank() int {
	return slices.Index([]State{StatePrepublished, StateActive, StateInactive, StateRekeying, StateDeprecated}, s)
}

// Opens reports whether keys in this state may have sealed something.
func (s State) Opens() bool { return s.rank() > 0 }

// Key is the metadata of one root key. A new member needs a line in version.go: see Ring. Ring.DataOnly leaves it out of
// another cluster, and the keyring's Key has it only if it is copied there.
type Key struct {
	ID        KeyID      `json:"id"`
	State     State      `json:"state"`
	Algorithm string     `json:"algorithm"` // JWS name of the signing algorithm
	Public    []byte     `json:"public"`    // PKIX DER of the public signing key
	Check     CheckValue `json:"check"`

	Created   time.Time `json:"created"`
	Suite     string    `json:"suite,omitempty"`    // the cipher suite that seals under it; see NewKey
	Publish   time.Time `json:"publish,omitzero"`   // it is not activated before; zero is at once
	Activated time.Time `json:"activated,omitzero"` // zero for a key that was adopted
	Retired   time.Time `json:"retired,omitzero"`

	Scheduled bool    `json:"scheduled,omitempty"` // made by the rotation policy
	Full      bool    `json:"full,omitempty"`      // its activation starts a rekey of all older keys
	Revoke    []KeyID `json:"revoke,omitempty"`    // keys whose tokens its activation revokes
	Revoked   bool    `json:"revoked,omitempty"`   // its tokens no longer verify
	DataOnly  bool    `json:"dataOnly,omitempty"`  // adopted without its signing key
	Clean     uint64  `json:"clean,omitempty"`     // index at which a scan was recorded that found nothing under it
	Remove    bool    `json:"remove,omitempty"`    // to be removed once it is deprecated

	// Compromised is set on a prepublished key that follows a compromise: from its activation on, no token of
	// another key verifies, and every other key is removed once its data has moved.
	Compromised bool `json:"compromised,omitempty"`

	CreateIndex uint64   `json:"createIndex"`
	ModifyIndex uint64   `json:"modifyIndex"`
	Holders     []string `json:"holders,omitempty"` // sorted; each is in Ring.Servers
}

// Sealed reports whether something may be sealed under the key: it was active, or adopted.
func (k *Key) Sealed() bool { return k.State.Opens() }

// Adopted reports whether the key came from outside, and so was never active.
func (k *Key) Adopted() bool { return k.State.Opens() && k.Activated.IsZero() }

// IsEmpty reports whether a scan has found that nothing is sealed under the key. What still comes is forged,
// if the key was stolen, or a copy from elsewhere. Of what there is under a key that was adopted, the host's index may
// not know.
func (k *Key) IsEmpty() bool { return k.State == StateDeprecated && !k.Adopted() }

// New returns the metadata with which the key came.
func (k *Key) New() NewKey { return NewKey{k.ID, k.Algorithm, k.Public, k.Check, k.Created, k.Suite} }

// HeldBy reports whether the server is recorded as a holder.
func (k *Key) HeldBy(server string) bool {
	_, ok := slices.BinarySearch(k.Holders, server)
	return ok
}

// Tombstone is what is left of a removed key. Its ID is never used again.
type Tombstone struct {
	ID      KeyID     `json:"id"`
	Removed time.Time `json:"removed"`
	Index   uint64    `json:"index"`
	Now     bool      `json:"now,omitempty"` // its files are unlinked at once
}

// Server is a server that has reported itself a holder, with its present keystore.
type Server struct {
	ID       string     `json:"id"`
	Keystore KeystoreID `json:"keystore"`
}

// Ring is all that the FSM knows. The zero value is the ring before the first command.
//
// A new member, here or in what a Ring is made of, needs a line of ringSince in version.go: by that a snapshot is of a
// version that older builds refuse to read. Ring.Check and CheckStep say what is allowed in it.
//
// The slices are sorted by ID; neither they nor the keys are changed once published.
type Ring struct {
	Cluster ClusterID   `json:"cluster,omitzero"`
	Keys    []*Key      `json:"keys,omitempty"`
	Removed []Tombstone `json:"removed,omitempty"`
	Servers []Server    `json:"servers,omitempty"`
	Backup  Backup      `json:"backup,omitzero"` // the last; it has every key with a CreateIndex up to its Index

	JoinTokens []JoinToken `json:"joinTokens,omitempty"`
	Nonvoters  []string    `json:"nonvoters,omitempty"` // permanent non-voters: nobody gives them a vote but by name

	active *Key // one of Keys, or nil; see index
}

// Key returns the key of that ID, or nil.
func (r *Ring) Key(id KeyID) *Key {
	if i, ok := r.search(id); ok {
		return r.Keys[i]
	}
	return nil
}

// With returns a copy of the ring in which each key is changed. It is for reading only, not for Apply. r stays as it is.
func (r *Ring) With(change func(*Key)) *Ring {
	other := *r
	other.Keys = slices.Clone(r.Keys)
	for i, k := range r.Keys {
		changed := *k
		change(&changed)
		other.Keys[i] = &changed
	}
	other.index()
	return &other
}

// Active returns the active key, or nil. It costs nothing.
func (r *Ring) Active() *Key { return r.active }

// index notes which key is active. Apply and Decode end with it.
func (r *Ring) index() {
	r.active = nil
	for _, k := range r.Keys {
		if k.State == StateActive {
			r.active = k
		}
	}
}

// Prepublished returns the keys that wait for activation, oldest first.
func (r *Ring) Prepublished() []*Key {
	var keys []*Key
	for _, k := range r.Keys {
		if k.State == StatePrepublished {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b *Key) int {
		return cmp.Or(cmp.Compare(a.CreateIndex, b.CreateIndex), compareIDs(a.ID, b.ID))
	})
	return keys
}

// WasRemoved reports whether the ID has a tombstone.
func (r *Ring) WasRemoved(id KeyID) bool {
	_, ok := r.Tombstone(id)
	return ok
}

// Tombstone returns what is left of a removed key, and whether the ID is one's.
func (r *Ring) Tombstone(id KeyID) (Tombstone, bool) {
	i, ok := slices.BinarySearchFunc(r.Removed, id, func(t Tombstone, id KeyID) int { return compareIDs(t.ID, id) })
	if !ok {
		return Tombstone{}, false
	}
	return r.Removed[i], true
}

// Keystore returns the keystore ID that the server last reported, and whether it has.
func (r *Ring) Keystore(server string) (KeystoreID, bool) {
	i, ok := slices.BinarySearchFunc(r.Servers, server, func(s Server, id string) int { return cmp.Compare(s.ID, id) })
	if !ok {
		return KeystoreID{}, false
	}
	return r.Servers[i].Keystore, true
}

func (r *Ring) search(id KeyID) (int, bool) {
	return slices.BinarySearchFunc(r.Keys, id, func(k *Key, id KeyID) int { return compareIDs(k.ID, id) })
}

func compareIDs(a, b KeyID) int { return bytes.Compare(a[:], b[:]) }
