package keyringtest

// Clusters that sign, and tokens of others.

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
)

// TokenIssuer is the issuer of such a cluster.
const TokenIssuer = "https://issuer.example"

// ForMe is what most tests expect.
var ForMe = keyring.Expect{Audience: []string{"me"}}

// ClaimsForMe are the claims that go with it.
func ClaimsForMe() map[string]any { return map[string]any{"aud": "me", "sub": "job:web"} }

// NewSigning is a cluster of n servers whose tokens have an issuer.
func NewSigning(t testing.TB, n int, change func(*keyring.Config)) *Cluster {
	t.Helper()
	return NewSigningAt(t, 0, n, change)
}

// NewSigningAt is one with raft at another pace, for tests that take days.
func NewSigningAt(t testing.TB, pace time.Duration, n int, change func(*keyring.Config)) *Cluster {
	t.Helper()
	return NewCluster(t, Options{Servers: n, Pace: pace, Configure: func(_ *Server, cfg *keyring.Config) {
		cfg.Tokens.Issuer = TokenIssuer
		if change != nil {
			change(cfg)
		}
	}})
}

// Sign has a server sign the claims.
func Sign(t testing.TB, s *Server, claims ...any) string {
	t.Helper()
	token, err := s.Keyring.Sign(append([]any{ClaimsForMe()}, claims...)...)
	if err != nil {
		t.Fatalf("%s: %v", s.ID, err)
	}
	return token
}

// CheckVerifies requires each live server to take the token, or to refuse it as a token.
func CheckVerifies(t testing.TB, c *Cluster, token string, want bool, when string) {
	t.Helper()
	for _, s := range c.Live() {
		err := s.Keyring.Verify(token, ForMe)
		if want && err != nil || !want && !errors.Is(err, keyring.ErrToken) {
			t.Errorf("%s: %s: %v", when, s.ID, err)
		}
	}
}

// KeyIDs are the key IDs in a JWKS, in order.
func KeyIDs(t testing.TB, jwks []byte) (ids []keyring.KeyID) {
	t.Helper()
	var doc struct{ Keys []struct{ Kid keyring.KeyID } }
	if err := json.Unmarshal(jwks, &doc); err != nil {
		t.Fatalf("%s: %v", jwks, err)
	}
	for _, k := range doc.Keys {
		ids = append(ids, k.Kid)
	}
	return ids
}

// CheckPublished requires the key to be in the JWKS of each live server, or not to be.
func CheckPublished(t testing.TB, c *Cluster, id keyring.KeyID, want bool, when string) {
	t.Helper()
	for _, s := range c.Live() {
		if got := KeyIDs(t, s.Keyring.JWKS()); slices.Contains(got, id) != want {
			t.Errorf("%s: %s: the JWKS has %v", when, s.ID, got)
		}
	}
}

// KeyIDOf reads the header of a token.
func KeyIDOf(t testing.TB, token string) (id keyring.KeyID) {
	t.Helper()
	var h struct{ Kid keyring.KeyID }
	if err := json.Unmarshal(DecodedPart(t, token, 0), &h); err != nil {
		t.Fatal(err)
	}
	return h.Kid
}

// DecodedPart is a part of a token.
func DecodedPart(t testing.TB, token string, part int) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[part])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Outsider is a key that this test has made and no server has the material of.
type Outsider struct {
	Pair
	ID keyring.KeyID
}

// NewOutsider makes one whose key ID ends in n.
func NewOutsider(t testing.TB, algorithm string, n byte) Outsider {
	return Outsider{NewPair(t, algorithm), keyring.KeyID{0x50, 15: n}}
}

// NewKey is the metadata of the key.
func (o Outsider) NewKey(t testing.TB) meta.NewKey {
	return meta.NewKey{
		ID: meta.KeyID(o.ID), Algorithm: o.Algorithm, Public: o.Public(t), Check: meta.CheckValue{1}, Created: time.Now().UTC(),
	}
}

// TokenFor has the claims that Verify wants, and lives for so long.
func (o Outsider) TokenFor(ttl time.Duration) string {
	return o.Token(o.Header(o.ID.String()), fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d}`, TokenIssuer, time.Now().Add(ttl).Unix()))
}

// Insider has the private key of a server's.
func Insider(t testing.TB, s *Server, id keyring.KeyID) Outsider {
	t.Helper()
	key := s.Keyring.Keys()[slices.IndexFunc(s.Keyring.Keys(), func(k keyring.Key) bool { return k.ID == id })]
	return Outsider{ReadPair(t, key.Algorithm, SigningKey(t, s, id)), id}
}
