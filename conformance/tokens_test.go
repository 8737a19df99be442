package conformance_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/node"
)

const audience = "https://audience.example"

// issuer is a server that signs, and serves what its relying parties need.
type issuer struct {
	*node.Node
	url     string
	fetches atomic.Int64 // of the JWKS
}

func newIssuer(t *testing.T, algorithm, url string) *issuer {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	if url == "" {
		url = "http://" + server.Listener.Addr().String()
	}
	node, err := node.Start(t.Context(), node.Config{
		Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()},
		Tokens: keyring.TokenPolicy{Issuer: url, Algorithm: algorithm},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	if err := node.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	i := &issuer{Node: node, url: url}
	wellKnown := node.Keyring().WellKnown()
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/jwks.json") {
			i.fetches.Add(1)
		}
		wellKnown.ServeHTTP(w, r)
	})
	server.Start()
	t.Cleanup(server.Close)
	return i
}

func (i *issuer) sign(t *testing.T, aud, sub string) string {
	t.Helper()
	token, err := i.Keyring().Sign(map[string]any{"aud": aud, "sub": sub})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func (i *issuer) rotate(t *testing.T, revoke ...keyring.KeyID) {
	t.Helper()
	if _, err := i.Rotate(t.Context(), keyring.RotateOptions{Revoke: revoke}); err != nil {
		t.Error(err)
	}
}

// signed is a batch of tokens, by their sub.
type signed map[string]string

func (i *issuer) batch(t *testing.T, prefix string, n int) signed {
	tokens := signed{}
	for j := range n {
		sub := fmt.Sprint(prefix, ":", j)
		tokens[sub] = i.sign(t, audience, sub)
	}
	return tokens
}

func (s signed) verify(t *testing.T, name string, p party) {
	at := time.Now()
	for sub, token := range s {
		if got, err := p.verify(at, token); err != nil || got != sub {
			t.Errorf("%s refuses %s: %q, %v", name, sub, got, err)
		}
	}
}

// TestForeignPartiesTakeEveryTokenWhileKeysRotate: more than 10,000 of them, each once its key is
// about to be, or has been, taken over from. They refuse what the keyring refuses.
func TestForeignPartiesTakeEveryTokenWhileKeysRotate(t *testing.T) {
	const rotations, each = 10, 340
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		t.Run(algorithm, func(t *testing.T) {
			i := newIssuer(t, algorithm, "")
			parties := map[string]party{
				"golang-jwt": newGoParty(t, i.url, audience), "jose": newJSParty(t, i.url, audience),
			}
			first := i.batch(t, "first", each)
			next := first
			for round := range rotations {
				verifyAll(t, parties, next, func() {
					var rotated sync.WaitGroup
					rotated.Go(func() { i.rotate(t) })
					next = i.batch(t, fmt.Sprint("round", round), each)
					rotated.Wait()
				})
			}
			verifyAll(t, parties, next, func() {})
			if n, most := i.fetches.Load(), int64(len(parties)*(1+rotations)); n > most {
				t.Errorf("%d fetches of the JWKS, more than one for each rotation", n)
			}
			verifyAll(t, parties, first, func() {}) // old, and not too old
			refuses(t, i, parties)
		})
	}
}

// TestForeignPartiesTakeTheTyp of a token for what Verify takes it for, with or without application/, and in any case.
func TestForeignPartiesTakeTheTyp(t *testing.T) {
	i := newIssuer(t, "ES256", "")
	js := newJSParty(t, i.url, audience)
	for signed, written := range map[string]string{"": "jwt", "at+jwt": "at+jwt", "application/secevent+jwt": "secevent+jwt"} {
		token, err := i.SignTyped(t.Context(), signed, map[string]any{"aud": audience, "sub": "sub"})
		if err != nil {
			t.Fatal(err)
		}
		if sub, err := newGoParty(t, i.url, audience).verify(time.Now(), token); err != nil || sub != "sub" {
			t.Errorf("golang-jwt, which looks at no typ: %q, %v", sub, err)
		}
		for _, expected := range []string{"JWT", "at+jwt", "application/at+jwt", "AT+JWT", "secevent+jwt", "application/jwt", "jwk"} {
			_, theirs := js.verifyTyped(time.Now(), token, expected)
			ours := i.Keyring().Verify(token, keyring.Expect{Audience: []string{audience}, Type: expected})
			want := strings.TrimPrefix(strings.ToLower(expected), "application/") == written
			if (theirs == nil) != want || (ours == nil) != want {
				t.Errorf("a token of typ %q where %q is expected: %v, and jose: %v", written, expected, ours, theirs)
			}
		}
	}
}

// verifyAll has all parties verify tokens while something happens.
func verifyAll(t *testing.T, parties map[string]party, tokens signed, meanwhile func()) {
	t.Helper()
	var verified sync.WaitGroup
	for name, p := range parties {
		verified.Go(func() { tokens.verify(t, name, p) })
	}
	meanwhile()
	verified.Wait()
}

// refuses wants every party to refuse what nobody may take.
func refuses(t *testing.T, i *issuer, parties map[string]party) {
	t.Helper()
	good, now := i.sign(t, audience, "sub"), time.Now()
	header, payload, signature := parts(good)
	other := newIssuer(t, i.Keyring().Keys()[0].Algorithm, i.url)
	revoked := i.sign(t, audience, "revoked")
	i.rotate(t, i.Keyring().Keys()[0].ID)
	verifyAll(t, parties, i.batch(t, "after", 1), func() {}) // so all have the JWKS without the key

	type bad struct {
		token string
		at    time.Time
	}
	for why, b := range map[string]bad{
		"expired":            {i.sign(t, audience, "sub"), now.Add(25 * time.Hour)},
		"not valid yet":      {i.sign(t, audience, "sub"), now.Add(-time.Hour)},
		"for another":        {i.sign(t, "https://another.example", "sub"), now},
		"of another keyring": {other.sign(t, audience, "sub"), now},
		"of a revoked key":   {revoked, now},
		"claims altered":     {header + "." + encode(strings.Replace(decode(t, payload), "sub", "sUb", 1)) + "." + signature, now},
		"signature altered":  {header + "." + payload + "." + flip(signature), now},
		"without signature":  {encode(`{"alg":"none","kid":"`+i.Keyring().Keys()[0].ID.String()+`","typ":"JWT"}`) + "." + payload + ".", now},
		"public key as HMAC": {confuse(t, i.Keyring().Keys()[0], payload), now},
	} {
		for name, p := range parties {
			if sub, err := p.verify(b.at, b.token); err == nil {
				t.Errorf("%s takes what is %s, of %s", name, why, sub)
			}
		}
		if b.at.Equal(now) {
			if err := i.Keyring().Verify(b.token, keyring.Expect{Audience: []string{audience}}); err == nil {
				t.Errorf("Verify takes what is %s", why)
			}
		}
	}
}

func parts(token string) (header, payload, signature string) {
	p := strings.Split(token, ".")
	return p[0], p[1], p[2]
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func decode(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// flip changes the first character of a signature.
func flip(s string) string {
	if s[0] == 'A' {
		return "B" + s[1:]
	}
	return "A" + s[1:]
}

// confuse signs with HS256, and the public key for a secret.
func confuse(t *testing.T, key keyring.Key, payload string) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public)
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	input := encode(`{"alg":"HS256","kid":"`+key.ID.String()+`","typ":"JWT"}`) + "." + payload
	mac.Write([]byte(input))
	return input + "." + encode(string(mac.Sum(nil)))
}
