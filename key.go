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

// KeyID names a root key for ever. It is a UUID (RFC 9562). It has String, and reads and
// writes its canonical lowercase form as text.
type KeyID = meta.KeyID

// ParseKeyID reads the canonical text of a KeyID and nothing else.
func ParseKeyID(s string) (KeyID, error) { return meta.ParseKeyID(s) }

func compareIDs(a, b KeyID) int { return bytes.Compare(a[:], b[:]) }

// State is where a key is in its life. A key never returns to an earlier state.
type State = meta.State

// The states of a key, in order. See the package documentation.
const (
	StatePrepublished = meta.StatePrepublished
	StateActive       = meta.StateActive
	StateInactive     = meta.StateInactive
	StateRekeying     = meta.StateRekeying
	StateDeprecated   = meta.StateDeprecated
)

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
		ID: m.ID, State: m.State, Algorithm: m.Algorithm,
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
