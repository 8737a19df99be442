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

// KeyID names a root key forever. It is a UUID (RFC 9562). Its text, also in JSON, is the canonical lowercase
// form. The zero value names no key.
type KeyID [16]byte

// ParseKeyID parses the canonical text of a KeyID, and no other form.
func ParseKeyID(s string) (KeyID, error) {
	id, err := meta.ParseKeyID(s)
	return KeyID(id), err
}

// String returns the canonical text.
func (id KeyID) String() string { return meta.KeyID(id).String() }

// MarshalText returns the canonical text.
func (id KeyID) MarshalText() ([]byte, error) { return meta.KeyID(id).MarshalText() }

// UnmarshalText parses the canonical text, and no other form.
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

// State is the stage of a key in its life. A key never returns to an earlier state.
type State string

// The states of a key, in order. A removed key has none. See the package documentation.
const (
	StatePrepublished State = "prepublished" // verifiers know it; it has encrypted nothing yet
	StateActive       State = "active"       // encrypts and signs, on the leader; at most one key
	StateInactive     State = "inactive"     // decrypts older data
	StateRekeying     State = "rekeying"     // decrypts; its data is being re-encrypted
	StateDeprecated   State = "deprecated"   // a scan found no data under it
)

// Opens reports whether keys in this state may have encrypted data.
func (s State) Opens() bool { return meta.State(s).Opens() }

// Key is the metadata of a root key. It contains no key material.
type Key struct {
	ID        KeyID            `json:"id"`
	State     State            `json:"state"`
	Algorithm string           `json:"algorithm"` // algorithm of its signing key: RS256, ES256 or EdDSA
	Public    crypto.PublicKey `json:"-"`         // public signing key, as in the JWKS; nil if it can't be read
	Created   time.Time        `json:"created"`
	Publish   time.Time        `json:"publish,omitzero"`   // earliest activation; zero means at once
	Activated time.Time        `json:"activated,omitzero"` // zero while prepublished, and for an adopted key
	Retired   time.Time        `json:"retired,omitzero"`   // when it stopped being active, or was adopted; zero before
	Revoked   bool             `json:"revoked,omitempty"`  // its tokens no longer verify
	Removing  bool             `json:"removing,omitempty"` // it is removed once its data is re-encrypted: see Remove

	CreateIndex uint64          `json:"createIndex"` // index in raft's log
	ModifyIndex uint64          `json:"modifyIndex"`
	Holders     []raft.ServerID `json:"holders"` // servers that have reported that they hold it
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
