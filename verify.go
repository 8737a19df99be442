package keyring

// Verify, and the keys whose tokens verify.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// Expect is what Verify wants of a token.
type Expect struct {
	// Audience is who the token may be for: one of these has to be in its aud. Required.
	Audience []string
	// Subject is the sub that it must have. Empty means any.
	Subject string
	// Nomad lets tokens of adopted keys do without exp, iss and aud, as many that Nomad signed
	// do; those that they have must be right. Such a token ends with its key: MaxTTL and the
	// leeway after the adoption. Tokens of all other keys are held to everything.
	Nomad bool
}

// Verify takes a token that Sign returned, on this server or another, and reads its claims
// into the arguments: pointers to structs or maps, decoded as encoding/json does. It wants a
// compact JWS of at most 16 KiB with the key and the algorithm of one of the keyring's keys, an
// exp that has not passed, an nbf and an iat that have, if there are any, the issuer of
// TokenPolicy if it has one, and an audience. A key's tokens verify while it is active, and MaxTTL
// and the leeway longer, by the time of its retirement in the keyring, also if the leader's clock was ahead when it
// wrote that: then the clock that signed may have been ahead too. They don't verify if it was revoked, removed, or adopted for data only. It takes no
// material, and does no I/O.
//
// A token that is refused matches ErrToken, and ErrUnknownKey too if its key is not one whose
// tokens verify, or one that this server has not yet heard of. So does a token whose claims don't
// fit the arguments. While this server has not caught up since its start, or has heard from no leader
// for ten seconds, it can't tell: a key that it does not know is then ErrNotReady, and not ErrToken.
//
// Some tokens that other libraries may take are refused for their form: a header with other
// members than alg, kid and typ, a typ other than JWT, base64url that is not canonical, and JSON
// in which a member is there twice or differs from another, or from a registered name, in case
// only.
func (k *Keyring) Verify(token string, want Expect, claims ...any) error {
	if k.opening.Load() == nil {
		return ErrClosed
	}
	if len(want.Audience) == 0 {
		return errors.New("verify: Expect has no Audience")
	}
	at := k.now()
	keys := k.verifier.keys(at)
	payload, key, err := jwt.Open(token, keys)
	if errors.Is(err, jwt.ErrUnknownKey) {
		if keys, err = k.verifier.keysAgain(at, keys); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		payload, key, err = jwt.Open(token, keys)
	}
	if errors.Is(err, jwt.ErrUnknownKey) {
		return fmt.Errorf("%w: %w", ErrToken, ErrUnknownKey)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrToken, err)
	}
	registered, err := jwt.ParseClaims(payload)
	if err == nil {
		err = registered.Check(jwt.Want{
			Issuer: k.cfg.Tokens.Issuer, Audience: want.Audience, Subject: want.Subject,
			Foreign: want.Nomad && keys.adopted[key], Now: at, Leeway: k.cfg.Tokens.Leeway,
		})
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrToken, err)
	}
	for _, c := range claims {
		err := json.Unmarshal(payload, c)
		if _, ours := errors.AsType[*json.InvalidUnmarshalError](err); ours {
			return fmt.Errorf("verify: claims: %w", err)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrToken, err)
		}
	}
	return nil
}

// verifier knows the keys whose tokens verify.
type verifier struct {
	*server
	caughtUp *caughtUp
	public   *publicKeys
	current  atomic.Pointer[tokenKeys] // nil before the first use
}

// tokenKeys are the keys of a ring whose tokens verify, and which are in the JWKS, from one time
// to another. It is a cache of what plan says, and made again when the ring changes or a key's
// time is over.
type tokenKeys struct {
	ring        *meta.Ring
	version     uint64 // of publicKeys
	from, until time.Time
	byID        map[KeyID]*jwt.Key // nil for one that can't be read
	byHeader    map[string]*jwt.Key
	adopted     map[*jwt.Key]bool
	document    func() document
}

// WithHeader implements jwt.Keys.
func (t *tokenKeys) WithHeader(encoded string) *jwt.Key { return t.byHeader[encoded] }

// WithID implements jwt.Keys.
func (t *tokenKeys) WithID(kid string) (*jwt.Key, error) {
	id, err := ParseKeyID(kid)
	if err != nil {
		return nil, errors.New("kid is no key ID")
	}
	if key := t.byID[id]; key != nil {
		return key, nil
	}
	return nil, jwt.ErrUnknownKey
}

// keys returns the keys whose tokens verify at that time.
func (v *verifier) keys(at time.Time) *tokenKeys {
	ring, t := v.fsm.ring.Load(), v.current.Load()
	if t == nil {
		t = &tokenKeys{}
	}
	if t.ring != ring || t.version != v.public.version.Load() || at.Before(t.from) || !at.Before(t.until) {
		t = v.read(ring, at, t)
		v.current.Store(t)
	}
	return t
}

// keysAgain is keys for a token whose key was not among those before: that is unknown only if it is
// not among these either. The error matches ErrNotReady: this server may be behind.
func (v *verifier) keysAgain(at time.Time, before *tokenKeys) (*tokenKeys, error) {
	if err := v.caughtUp.behind(); err != nil {
		return before, err
	}
	return v.keys(at), nil
}

// read reads the public keys that the table before has not. One that can't be read, or not that of the
// material here, is left out, and takes no other with it.
func (v *verifier) read(ring *meta.Ring, at time.Time, before *tokenKeys) *tokenKeys {
	t := &tokenKeys{
		ring: ring, version: v.public.version.Load(), from: at, until: at.Add(idle),
		byID: map[KeyID]*jwt.Key{}, byHeader: map[string]*jwt.Key{}, adopted: map[*jwt.Key]bool{},
	}
	var inOrder []*jwt.Key
	for _, m := range newestFirst(ring) {
		until := plan.VerifiesUntil(m, v.cfg.tokens())
		if !at.Before(until) {
			continue
		}
		if until.Before(t.until) {
			t.until = until
		}
		key, ok := before.byID[m.ID]
		if !ok || before.version != t.version {
			key = v.readKey(m)
		}
		if t.byID[m.ID] = key; key == nil {
			continue
		}
		inOrder = append(inOrder, key)
		t.byHeader[key.Header()] = key
		t.adopted[key] = m.Adopted()
	}
	t.document = sync.OnceValue(func() document { return newDocument(jwt.JWKS(inOrder)) })
	return t
}

func (v *verifier) readKey(m *meta.Key) *jwt.Key {
	if agrees, known := v.public.agrees(m); known && !agrees {
		return nil // compare says so
	}
	key, err := jwt.NewKey(m.ID.String(), m.Algorithm, m.Public)
	if err != nil {
		v.cfg.Logger.Error("the tokens of a key can't be verified", "key", m.ID, "error", err)
	}
	return key
}

// newestFirst returns the keys of the ring, the active one before all.
func newestFirst(ring *meta.Ring) []*meta.Key {
	keys := slices.Clone(ring.Keys)
	active := func(k *meta.Key) int {
		if k == ring.Active() {
			return 0
		}
		return 1
	}
	slices.SortFunc(keys, func(a, b *meta.Key) int {
		return cmp.Or(cmp.Compare(active(a), active(b)), cmp.Compare(b.CreateIndex, a.CreateIndex), compareIDs(a.ID, b.ID))
	})
	return keys
}
