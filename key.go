package keyring

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// KeyID, State and Key: what the keyring tells of its keys.

// KeyID names a root key for ever. It is a UUID (RFC 9562). Its text, in JSON too, is the canonical lowercase form. The zero
// value names no key.
type KeyID [16]byte

// ParseKeyID reads the canonical text of a KeyID and nothing else.
func ParseKeyID(s string) (KeyID, error) {
	id, err := meta.ParseKeyID(s)
	return KeyID(id), err
}

// String returns the canonical text.
func (id KeyID) String() string { return meta.KeyID(id).String() }

// MarshalText returns the canonical text.
func (id KeyID) MarshalText() ([]byte, error) { return meta.KeyID(id).MarshalText() }

// UnmarshalText reads the canonical text and nothing else.
func (id *KeyID) UnmarshalText(text []byte) error { return (*meta.KeyID)(id).UnmarshalText(text) }

// compareIDs orders key IDs, in either of their types.
func compareIDs[ID ~[16]byte](a, b ID) int { return bytes.Compare(a[:], b[:]) }

// idsAs converts key IDs to another type of them. Nil stays nil.
func idsAs[To, From ~[16]byte](ids []From) []To {
	if ids == nil {
		return nil
	}
	to := make([]To, len(ids))
	for i, id := range ids {
		to[i] = To(id)
	}
	return to
}

// State is where a key is in its life. A key never returns to an earlier state.
type State string

// The states of a key, in order. A removed key has none. See the package documentation.
const (
	StatePrepublished State = "prepublished" // verifiers know it; it has sealed nothing yet
	StateActive       State = "active"       // seals and signs, on the leader; at most one key
	StateInactive     State = "inactive"     // opens what it sealed
	StateRekeying     State = "rekeying"     // opens; its data is moving to the active key
	StateDeprecated   State = "deprecated"   // a scan found nothing sealed under it
)

// Opens reports whether keys in this state may have sealed something.
func (s State) Opens() bool { return meta.State(s).Opens() }

// Key is the metadata of a root key. It holds no material.
type Key struct {
	ID        KeyID            `json:"id"`
	State     State            `json:"state"`
	Algorithm string           `json:"algorithm"` // of its signing key: RS256, ES256 or EdDSA
	Public    crypto.PublicKey `json:"-"`         // of its signing key; nil if it can't be read. The JWKS has it
	Created   time.Time        `json:"created"`
	Publish   time.Time        `json:"publish,omitzero"`   // not to be activated before; zero for at once
	Activated time.Time        `json:"activated,omitzero"` // zero while prepublished, and for an adopted key
	Retired   time.Time        `json:"retired,omitzero"`   // when it stopped being active, or was adopted; zero before
	Revoked   bool             `json:"revoked,omitempty"`  // its tokens verify no longer
	Removing  bool             `json:"removing,omitempty"` // it goes when its data has moved: see Remove

	CreateIndex uint64          `json:"createIndex"` // of raft's log
	ModifyIndex uint64          `json:"modifyIndex"`
	Holders     []raft.ServerID `json:"holders"` // by what they have reported
}

func keyOf(m *meta.Key) Key {
	k := Key{
		ID: KeyID(m.ID), State: State(m.State), Algorithm: m.Algorithm,
		Created: m.Created, Publish: m.Publish, Activated: m.Activated, Retired: m.Retired, Revoked: m.Revoked, Removing: m.Remove,
		CreateIndex: m.CreateIndex, ModifyIndex: m.ModifyIndex, Holders: fromStrings(m.Holders),
	}
	k.Public, _ = x509.ParsePKIXPublicKey(m.Public)
	return k
}

// keysOf returns the keys of the ring, the newest first.
func keysOf(ring *meta.Ring) []Key {
	var keys []Key
	for _, m := range ring.Keys {
		keys = append(keys, keyOf(m))
	}
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(b.CreateIndex, a.CreateIndex), compareIDs(a.ID, b.ID))
	})
	return keys
}

func fromStrings(ids []string) []raft.ServerID {
	out := make([]raft.ServerID, len(ids))
	for i, id := range ids {
		out[i] = raft.ServerID(id)
	}
	return out
}
