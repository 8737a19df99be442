package keyring_test

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
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
)

const tokenIssuer = "https://issuer.example"

// me is what most tests expect.
var me = keyring.Expect{Audience: []string{"me"}}

// forMe are the claims that go with it.
func forMe() map[string]any { return map[string]any{"aud": "me", "sub": "job:web"} }

// signing is a cluster of n servers whose tokens have an issuer.
func signing(t testing.TB, n int, change func(*keyring.Config)) *keyringtest.Cluster {
	t.Helper()
	return signingAt(t, 0, n, change)
}

// signingAt is one with raft at another pace, for tests that take days.
func signingAt(t testing.TB, pace time.Duration, n int, change func(*keyring.Config)) *keyringtest.Cluster {
	t.Helper()
	return newCluster(t, keyringtest.Options{Servers: n, Pace: pace, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
		cfg.Tokens.Issuer = tokenIssuer
		if change != nil {
			change(cfg)
		}
	}})
}

func sign(t testing.TB, s *keyringtest.Server, claims ...any) string {
	t.Helper()
	token, err := s.Keyring.Sign(append([]any{forMe()}, claims...)...)
	if err != nil {
		t.Fatalf("%s: %v", s.ID, err)
	}
	return token
}

// verifies requires each live server to take the token, or to refuse it as a token.
func verifies(t testing.TB, c *keyringtest.Cluster, token string, want bool, when string) {
	t.Helper()
	for _, s := range c.Live() {
		err := s.Keyring.Verify(token, me)
		if want && err != nil || !want && !errors.Is(err, keyring.ErrToken) {
			t.Errorf("%s: %s: %v", when, s.ID, err)
		}
	}
}

// kids are the key IDs in a JWKS, in order.
func kids(t testing.TB, jwks []byte) (ids []keyring.KeyID) {
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

// published requires the key to be in the JWKS of each live server, or not to be.
func published(t testing.TB, c *keyringtest.Cluster, id keyring.KeyID, want bool, when string) {
	t.Helper()
	for _, s := range c.Live() {
		if got := kids(t, s.Keyring.JWKS()); slices.Contains(got, id) != want {
			t.Errorf("%s: %s: the JWKS has %v", when, s.ID, got)
		}
	}
}

// kidOf reads the header of a token.
func kidOf(t testing.TB, token string) (id keyring.KeyID) {
	t.Helper()
	var h struct{ Kid keyring.KeyID }
	if err := json.Unmarshal(decoded(t, token, 0), &h); err != nil {
		t.Fatal(err)
	}
	return h.Kid
}

// decoded is a part of a token.
func decoded(t testing.TB, token string, part int) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[part])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// outsider is a key that this test has made and no server has the material of.
type outsider struct {
	keyringtest.Pair
	id keyring.KeyID
}

func newOutsider(t testing.TB, algorithm string, n byte) outsider {
	return outsider{keyringtest.NewPair(t, algorithm), keyring.KeyID{0x50, 15: n}}
}

func (o outsider) newKey(t testing.TB) meta.NewKey {
	return meta.NewKey{
		ID: o.id, Algorithm: o.Algorithm, Public: o.Public(t), Check: meta.CheckValue{1}, Created: time.Now().UTC(),
	}
}

// token has the claims that Verify wants, and lives for so long.
func (o outsider) token(ttl time.Duration) string {
	return o.Token(o.Header(o.id.String()), fmt.Sprintf(`{"iss":%q,"aud":"me","exp":%d}`, tokenIssuer, time.Now().Add(ttl).Unix()))
}

// insider has the private key of a server's.
func insider(t testing.TB, s *keyringtest.Server, id keyring.KeyID) outsider {
	t.Helper()
	key := s.Keyring.Keys()[slices.IndexFunc(s.Keyring.Keys(), func(k keyring.Key) bool { return k.ID == id })]
	return outsider{keyringtest.ReadPair(t, key.Algorithm, keyring.SigningKey(s.Keyring, id)), id}
}

func propose(t testing.TB, c *keyringtest.Cluster, cmds ...meta.Command) {
	t.Helper()
	if err := keyring.Propose(t.Context(), c.Leader().Keyring, cmds...); err != nil {
		t.Fatal(err)
	}
	level(t, c)
}

// deprecate takes a rekeying key's data for moved.
func deprecate(t testing.TB, c *keyringtest.Cluster, id keyring.KeyID) {
	t.Helper()
	propose(t, c, meta.Command{Clean: &meta.Clean{ID: id}})
	propose(t, c, meta.Command{Deprecate: &meta.Deprecate{ID: id, Clean: keyring.Ring(c.Leader().FSM).Key(id).Clean}})
}

// level waits until every live server has applied what the leader has.
func level(t testing.TB, c *keyringtest.Cluster) {
	t.Helper()
	ring := func(s *keyringtest.Server) string { return fmt.Sprint(keyring.Ring(s.FSM).Encode()) }
	for wait := time.Millisecond; wait < 1000*time.Hour; wait *= 2 {
		want := ring(c.Leader())
		if !slices.ContainsFunc(c.Live(), func(s *keyringtest.Server) bool { return ring(s) != want }) {
			return
		}
		time.Sleep(wait) // virtual
	}
	t.Error("servers are behind the leader")
}
