package meta

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
)

// MaxJoinTokens is the most join tokens that there are at a time.
const MaxJoinTokens = 64

// SealedTokenSize is the size of a join token's sealed secret: nonce 12, secret 32, tag 16.
const SealedTokenSize = 12 + 32 + 16

// TokenID names a join token. It is no secret.
type TokenID [16]byte

// String returns lowercase hexadecimal.
func (t TokenID) String() string { return hex.EncodeToString(t[:]) }

// MarshalText returns lowercase hexadecimal.
func (t TokenID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, t[:]), nil }

// UnmarshalText reads hexadecimal.
func (t *TokenID) UnmarshalText(b []byte) error { return unhex(t[:], b) }

// JoinToken is a token with which one server may join. Its secret is sealed with a key that is derived from the root
// key which was active when it was made: the log or a snapshot alone does not reveal it.
type JoinToken struct {
	ID     TokenID   `json:"id"`
	Server string    `json:"server"` // that may join
	End    time.Time `json:"end"`    // the leader ends it when this has passed
	Key    KeyID     `json:"key"`    // the root key that it is sealed with
	Sealed []byte    `json:"sealed"`
	User   Digest    `json:"user,omitzero"` // SHA-256 of the public key of the certificate that has used it
}

// AddJoinToken adds a token. Its key is the active one.
type AddJoinToken struct {
	Token JoinToken `json:"token"`
}

// UseJoinToken binds a token to the first certificate with which its server has joined. The token can be used again
// with the same certificate, until it ends.
type UseJoinToken struct {
	ID     TokenID `json:"id"`
	Server string  `json:"server"`
	User   Digest  `json:"user"`
}

// EndJoinTokens ends the tokens of those IDs, or all. Those that are not there have ended before.
type EndJoinTokens struct {
	IDs []TokenID `json:"ids,omitempty"`
	All bool      `json:"all,omitempty"`
}

// JoinToken returns the token of that ID, or nil.
func (r *Ring) JoinToken(id TokenID) *JoinToken {
	if i, ok := searchTokens(r.JoinTokens, id); ok {
		return &r.JoinTokens[i]
	}
	return nil
}

func searchTokens(all []JoinToken, id TokenID) (int, bool) {
	return slices.BinarySearchFunc(all, id, func(t JoinToken, id TokenID) int { return bytes.Compare(t.ID[:], id[:]) })
}

func (d *draft) addJoinToken(c *AddJoinToken) error {
	i, used := searchTokens(d.JoinTokens, c.Token.ID)
	switch k := d.Key(c.Token.Key); {
	case used:
		return refuse("join token %s: there is one of that ID", c.Token.ID)
	case k == nil || k.State != StateActive || k.Revoked:
		return refuse("join token %s: its key %s is not the active one", c.Token.ID, c.Token.Key)
	case len(d.JoinTokens) == MaxJoinTokens:
		return refuse("join token %s: there are %d already", c.Token.ID, MaxJoinTokens)
	case c.Token.User != Digest{}:
		return refuse("join token %s: it is used", c.Token.ID)
	}
	d.JoinTokens = slices.Insert(slices.Clone(d.JoinTokens), i, c.Token)
	return nil
}

func (d *draft) useJoinToken(c *UseJoinToken) error {
	i, ok := searchTokens(d.JoinTokens, c.ID)
	switch {
	case !ok:
		return refuse("join token %s: there is none", c.ID)
	case d.JoinTokens[i].Server != c.Server:
		return refuse("join token %s: it is another server's", c.ID)
	case d.JoinTokens[i].User == c.User:
		return nil
	case d.JoinTokens[i].User != Digest{}:
		return refuse("join token %s: another certificate has used it", c.ID)
	}
	d.JoinTokens = slices.Clone(d.JoinTokens)
	d.JoinTokens[i].User = c.User
	return nil
}

// endJoinTokens ends the tokens for which ends holds.
func (d *draft) endJoinTokens(ends func(JoinToken) bool) {
	if d.JoinTokens = slices.DeleteFunc(slices.Clone(d.JoinTokens), ends); len(d.JoinTokens) == 0 {
		d.JoinTokens = nil // as it reads back from a snapshot
	}
}

func (c *EndJoinTokens) ends(t JoinToken) bool { return c.All || slices.Contains(c.IDs, t.ID) }

// sealedWith selects the tokens that are sealed with a key. They end when the key's data is moved or the key is
// removed: a token is never sealed again.
func sealedWith(key KeyID) func(JoinToken) bool {
	return func(t JoinToken) bool { return t.Key == key }
}

func allJoinTokens(JoinToken) bool { return true }

func (t JoinToken) validate() error {
	if len(t.Sealed) != SealedTokenSize {
		return fmt.Errorf("join token with %d sealed bytes, want %d", len(t.Sealed), SealedTokenSize)
	}
	return errors.Join(nonzero("join token ID", t.ID), nonzero("key ID", t.Key), serverIDs([]string{t.Server}), instant(t.End))
}

func (c *UseJoinToken) validate() error {
	return errors.Join(nonzero("join token ID", c.ID), nonzero("digest of a public key", c.User), serverIDs([]string{c.Server}))
}

func (c *EndJoinTokens) validate() error {
	if c.All == (len(c.IDs) > 0) || len(c.IDs) > MaxJoinTokens {
		return errors.New("neither all join tokens nor some, or too many")
	}
	return nil
}

// checkJoinTokens is the part of Check that is about join tokens.
func (r *Ring) checkJoinTokens() error {
	if len(r.JoinTokens) > MaxJoinTokens {
		return fmt.Errorf("%d join tokens", len(r.JoinTokens))
	}
	for i, t := range r.JoinTokens {
		if i > 0 && bytes.Compare(r.JoinTokens[i-1].ID[:], t.ID[:]) >= 0 {
			return errors.New("join tokens out of order")
		}
		if err := t.validate(); err != nil {
			return err
		}
		switch k := r.Key(t.Key); {
		case k == nil:
			return fmt.Errorf("join token %s: no key %s", t.ID, t.Key)
		case k.State != StateActive && k.State != StateInactive:
			return fmt.Errorf("join token %s: key %s is %s", t.ID, t.Key, k.State)
		case k.Revoked:
			return fmt.Errorf("join token %s: key %s is revoked", t.ID, t.Key)
		}
	}
	return nil
}

// checkTokenSteps is the part of CheckStep that is about join tokens.
func (r *Ring) checkTokenSteps(next *Ring) error {
	for _, t := range r.JoinTokens {
		n := next.JoinToken(t.ID)
		if n == nil {
			continue
		}
		if t.User != (Digest{}) && n.User != t.User {
			return fmt.Errorf("join token %s was used by one certificate, and then by another", t.ID)
		}
		if n.Server != t.Server || !n.End.Equal(t.End) || n.Key != t.Key || !bytes.Equal(n.Sealed, t.Sealed) {
			return fmt.Errorf("join token %s has changed", t.ID)
		}
	}
	return nil
}
