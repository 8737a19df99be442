package keyring

// Sign, SignTyped, Verify, and the keys whose tokens verify.

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// Sign returns a token (a JWT) that is signed with the active key; the key's ID is the kid. Its claims are
// those of all arguments: structs or maps, encoded as by encoding/json. If two have the same claim, the later
// one wins. Sign adds these claims if they are absent:
//
//   - iss: TokenPolicy.Issuer;
//   - iat: the present time;
//   - nbf: the present time minus TokenPolicy.Leeway;
//   - exp: the latest time that TokenPolicy.MaxTTL allows;
//   - jti: random.
//
// So a verifier whose clock is behind by at most Leeway accepts the token at once, unless it also rejects an
// iat in the future. Always set aud: Verify rejects a token without it.
//
// It is an error if exp is further away than MaxTTL, if iss is neither Issuer nor one of AcceptIssuers, or if
// Verify would reject the token for any other claim. Verify rejects claims that other libraries reject: a
// number beyond the 64-bit floating-point range, a duplicate name, half a surrogate pair, bytes that are not
// UTF-8, more than 64 levels, and a date outside the years 1970 to 9999.
//
// Leader only: elsewhere the error matches ErrNotLeader. The error is ErrNotReady in the same cases as for
// Encrypt. If the public key in raft does not fit the key, nothing is signed, and the error matches
// ErrCorrupt. Sign does no I/O.
func (k *Keyring) Sign(claims ...any) (token string, err error) { return k.SignTyped("", claims...) }

// SignTyped is Sign for a token with another typ than JWT, such as at+jwt for an access token of RFC 9068.
// The typ says what the token is for, so that it is not mistaken for a token of another kind (RFC 8725,
// section 3.11). It is a media type of at most 127 bytes without parameters; the token omits its
// "application/". Empty means JWT. Verify accepts the token if Expect.Type is the same. Builds without
// SignTyped reject such tokens: use it once every server runs a build that has it. Leader only.
func (k *Keyring) SignTyped(typ string, claims ...any) (token string, err error) {
	if typ, err = jwt.Type(typ); err != nil {
		return "", fmt.Errorf("sign: typ: %w", err)
	}
	s, err := k.ciphers.active()
	if err != nil {
		return "", err
	}
	object, err := jwt.Merge(claims...)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	policy := k.server.cfg.Tokens
	payload, err := jwt.Complete(object, jwt.Defaults{
		Issuer: policy.Issuer, Issuers: k.verifier.issuers, ID: rand.Text(), Now: k.server.Now(), MaxTTL: policy.MaxTTL, Leeway: policy.Leeway,
	})
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	for {
		token, err = k.ciphers.signWith(s, typ, payload)
		if !errors.Is(err, jwt.ErrWiped) {
			return token, err
		}
		if s, err = k.ciphers.lookUpSealing(); err != nil { // closed, or the key was dropped, in this moment
			return "", err
		}
	}
}

func (c *ciphers) signWith(s *sealing, typ string, payload []byte) (string, error) {
	signer, err := c.Store.Signer(s.id, s.check)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	token, err := signer.Sign(typ, payload)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	if err := s.proves(token, typ); err != nil {
		return "", err
	}
	return token, nil
}

// Expect says which tokens Verify accepts.
type Expect struct {
	// Audience lists the accepted audiences: the token's aud must have one of them. Required.
	Audience []string
	// Subject is the sub that the token must have. Empty means any.
	Subject string
	// Type is the typ that the token must have, as in SignTyped: at+jwt, for example. Case and a leading
	// "application/" are ignored. Empty means JWT, and also accepts a token without a typ; it accepts no
	// token of SignTyped with another typ.
	Type string
	// Nomad accepts tokens of adopted keys without exp, iss and aud, because many tokens that Nomad signed
	// lack them. If these claims are present, they must be right. A token without exp is valid until its key
	// ends: MaxTTL and Leeway after the adoption. All checks apply to the tokens of other keys.
	Nomad bool
}

// Verify verifies a token that Sign returned on any server, and decodes its claims into the arguments:
// pointers to structs or maps, as encoding/json does. It needs no key material, and does no I/O. The token
// must be a compact JWS of at most 16 KiB, with
//
//   - the kid and the algorithm of one of the keyring's keys;
//   - an exp in the future, and no nbf or iat in the future;
//   - the issuer of TokenPolicy or one of its AcceptIssuers, if there is an issuer;
//   - one of the audiences of want.
//
// A key verifies tokens while it is active, and for MaxTTL and Leeway after the retirement time in the
// keyring. That also holds if the leader's clock was ahead when it wrote that time, because the clock that
// signed may have been ahead too. A key that was revoked, removed, or adopted for data only verifies no
// tokens.
//
// The error for a rejected token matches ErrToken. It also matches ErrUnknownKey if no key whose tokens
// verify has that kid, if this server does not know the key yet, or if only a newer build knows its
// algorithm. Claims that don't fit the arguments are ErrToken too. While this server has not caught up since
// its start, or has heard from no leader for ten seconds, an unknown key is ErrNotReady instead of ErrToken.
//
// Verify rejects some forms that other libraries may accept: a header with members other than alg, kid and
// typ, a typ other than Expect.Type, base64url that is not canonical, and JSON in which a member occurs
// twice, or differs from another member or a registered name only in case.
func (k *Keyring) Verify(token string, want Expect, claims ...any) error {
	if k.ciphers.opening.Load() == nil {
		return ErrClosed
	}
	if len(want.Audience) == 0 {
		return errors.New("verify: Expect has no Audience")
	}
	typ := want.Type
	if typ != "" {
		var err error
		if typ, err = jwt.Type(typ); err != nil {
			return fmt.Errorf("verify: Expect.Type: %w", err)
		}
	}
	at := k.server.Now()
	keys := k.verifier.keys(at)
	payload, key, err := jwt.Open(token, keys, typ)
	if errors.Is(err, jwt.ErrUnknownKey) {
		if keys, err = k.verifier.keysAgain(at, keys); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		payload, key, err = jwt.Open(token, keys, typ)
	}
	if newer, ok := errors.AsType[newerKeyError](err); ok {
		return fmt.Errorf("%w: %w: %w", ErrToken, ErrUnknownKey, newer)
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
			Issuers: k.verifier.issuers, Audience: want.Audience, Subject: want.Subject,
			Foreign: want.Nomad && keys.adopted[key], Now: at, Leeway: k.server.cfg.Tokens.Leeway,
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
	issuers  []string // whose tokens verify; none means any
	caughtUp *local.CaughtUp
	public   *local.PublicKeys
	current  atomic.Pointer[tokenKeys] // nil before the first use
}

// tokenKeys are the keys of a ring whose tokens verify, and which are in the JWKS, from one time
// to another. It is a cache of what plan says, and made again when the ring changes or a key's
// time is over.
type tokenKeys struct {
	ring        *meta.Ring
	version     uint64 // of local.PublicKeys
	from, until time.Time
	byID        map[meta.KeyID]*jwt.Key // nil for one that can't be read
	byHeader    map[string]*jwt.Key
	adopted     map[*jwt.Key]bool
	document    func() document
}

// WithHeader implements jwt.Keys.
func (t *tokenKeys) WithHeader(encoded string) *jwt.Key { return t.byHeader[encoded] }

// WithID implements jwt.Keys.
func (t *tokenKeys) WithID(kid string) (*jwt.Key, error) {
	id, err := meta.ParseKeyID(kid)
	if err != nil {
		return nil, errors.New("kid is no key ID")
	}
	key, verifies := t.byID[id]
	switch {
	case key != nil:
		return key, nil
	case verifies && !meta.KnowsAlgorithm(t.ring.Key(id).Algorithm):
		return nil, fmt.Errorf("%w: %w", jwt.ErrUnknownKey, newerKeyError{t.ring.Key(id)})
	}
	return nil, jwt.ErrUnknownKey
}

// newerKeyError is why the tokens of a key are refused whose signing algorithm this build does not know.
type newerKeyError struct{ key *meta.Key }

func (e newerKeyError) Error() string { return fmt.Sprintf("key %s: %s", e.key.ID, e.key.Newer()) }

// keys returns the keys whose tokens verify at that time.
func (v *verifier) keys(at time.Time) *tokenKeys {
	ring, t := v.FSM.Ring(), v.current.Load()
	if t == nil {
		t = &tokenKeys{}
	}
	if t.ring != ring || t.version != v.public.Version.Load() || at.Before(t.from) || !at.Before(t.until) {
		t = v.read(ring, at, t)
		v.current.Store(t)
	}
	return t
}

// keysAgain is keys for a token whose key was not among those before: that is unknown only if it is
// not among these either. The error matches ErrNotReady: this server may be behind.
func (v *verifier) keysAgain(at time.Time, before *tokenKeys) (*tokenKeys, error) {
	if err := v.caughtUp.Behind(); err != nil {
		return before, err
	}
	return v.keys(at), nil
}

// read reads the public keys that the table before has not. One that can't be read, or not that of the
// material here, is left out, and takes no other with it.
func (v *verifier) read(ring *meta.Ring, at time.Time, before *tokenKeys) *tokenKeys {
	t := &tokenKeys{
		ring: ring, version: v.public.Version.Load(), from: at, until: at.Add(local.Idle),
		byID: map[meta.KeyID]*jwt.Key{}, byHeader: map[string]*jwt.Key{}, adopted: map[*jwt.Key]bool{},
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
	if !meta.KnowsAlgorithm(m.Algorithm) {
		return nil // Status says so
	}
	if agrees, known := v.public.Agrees(m); known && !agrees {
		return nil // compare says so
	}
	key, err := jwt.NewKey(m.ID.String(), m.Algorithm, m.Public)
	if err != nil {
		v.cfg.Logger.Error("could not read the public key of a key, so its tokens do not verify", "key", m.ID, "error", err)
	}
	return key
}

// newestFirst returns the keys of the ring: the active one, then the others, newest first.
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
