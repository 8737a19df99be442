package jwt_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keyringtest"
)

func pkcs8(t testing.TB, private any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (p pair) signer(t testing.TB) *jwt.Signer {
	t.Helper()
	s, err := jwt.NewSigner(kid, p.Algorithm, pkcs8(t, p.Private))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSignedTokens are taken, and are what the standard library would have made, to the byte
// where the signature is a function of its input.
func TestSignedTokens(t *testing.T) {
	for alg, p := range pairs(t) {
		s := p.signer(t)
		for range 300 { // r and s of ES256 have a byte less every 128 times
			token, err := s.Sign(jwt.JWT, []byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			if want := p.Token(p.written(), payload); len(token) != len(want) || alg != "ES256" && token != want {
				t.Fatalf("%s: %s, want %s", alg, token, want)
			}
			if got, _, err := jwt.Open(token, keys{kid: p.key(t)}, ""); err != nil || string(got) != payload {
				t.Fatalf("%s: %q, %v", alg, got, err)
			}
		}
	}
}

func TestTokenThatNobodyWouldTakeIsNotSigned(t *testing.T) {
	p := pairs(t)["EdDSA"]
	s := p.signer(t)
	room := jwt.MaxToken - len(p.Token(p.written(), "x")) + 2
	if token, err := s.Sign(jwt.JWT, make([]byte, room*3/4)); err != nil || len(token) > jwt.MaxToken {
		t.Errorf("%d bytes, %v", len(token), err)
	}
	if token, err := s.Sign(jwt.JWT, make([]byte, room*3/4+3)); err == nil {
		t.Errorf("%d bytes", len(token))
	}
}

func TestSignerIsOfItsAlgorithm(t *testing.T) {
	for alg, p := range pairs(t) {
		for _, other := range []string{"RS256", "ES256", "EdDSA", "HS256", "none", ""} {
			if _, err := jwt.NewSigner(kid, other, pkcs8(t, p.Private)); (err == nil) != (alg == other) {
				t.Errorf("a key of %s for %q: %v", alg, other, err)
			}
		}
		der := pkcs8(t, p.Private)
		if _, err := jwt.NewSigner(kid, alg, der[:len(der)-1]); err == nil || strings.Contains(err.Error(), "asn1") {
			t.Errorf("%s: cut short: %v", alg, err)
		}
	}
}

// TestWipeEndsTheUse while others sign. With -race it is also about the bytes that are overwritten.
func TestWipeEndsTheUse(t *testing.T) {
	for alg, p := range pairs(t) {
		s := p.signer(t)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 2000 {
					token, err := s.Sign(jwt.JWT, []byte(payload))
					if errors.Is(err, jwt.ErrWiped) && token == "" {
						return
					}
					if _, _, bad := jwt.Open(token, keys{kid: p.key(t)}, ""); err != nil || bad != nil {
						t.Errorf("%s: %v, %v", alg, err, bad)
						return
					}
				}
			})
		}
		if _, err := s.Sign(jwt.JWT, []byte(payload)); err != nil {
			t.Error(err)
		}
		s.Wipe()
		s.Wipe()
		if token, err := s.Sign(jwt.JWT, []byte(payload)); !errors.Is(err, jwt.ErrWiped) || token != "" {
			t.Errorf("%s: after Wipe: %q, %v", alg, token, err)
		}
		wg.Wait()
	}
}

func TestWipeOverwritesAnEd25519Key(t *testing.T) {
	private := ed25519.NewKeyFromSeed(make([]byte, 32))
	s, err := jwt.SignerOf(kid, "EdDSA", private)
	if err != nil {
		t.Fatal(err)
	}
	if s.Wipe(); !bytes.Equal(private, make([]byte, len(private))) {
		t.Errorf("%x", private)
	}
}

// TestSignerDoesNotShow: nothing that works by reflection finds the private key.
func TestSignerDoesNotShow(t *testing.T) {
	for alg, p := range pairs(t) {
		s := p.signer(t)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
			secret := fmt.Sprintf(verb, p.Private)
			secret = secret[len(secret)/2:][:30]
			if text := fmt.Sprintf(verb, s); strings.Contains(text, secret) || len(text) > 800 {
				t.Errorf("%s: %s shows %s", alg, verb, text)
			}
		}
	}
}

func TestOddPublicKeysAreRefused(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := pairs(t)
	good := p["RS256"].Private.Public().(*rsa.PublicKey)
	for name, odd := range map[string]struct {
		alg string
		der []byte
	}{
		"nothing":           {"RS256", nil},
		"no DER":            {"RS256", []byte("public key")},
		"cut short":         {"RS256", keyringtest.PKIX(t, good)[:200]},
		"a tail":            {"EdDSA", append(keyringtest.PKIX(t, p["EdDSA"].Private.Public()), 0)},
		"of 1024 bits":      {"RS256", keyringtest.PKIX(t, small.Public())},
		"of 16,384 bits":    {"RS256", keyringtest.PKIX(t, &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 16383), E: 65537})},
		"with exponent 2":   {"RS256", keyringtest.PKIX(t, &rsa.PublicKey{N: good.N, E: 2})},
		"on another curve":  {"ES256", keyringtest.PKIX(t, p384.Public())},
		"for HS256":         {"HS256", keyringtest.PKIX(t, good)},
		"for RS512":         {"RS512", keyringtest.PKIX(t, good)},
		"for no algorithm":  {"", keyringtest.PKIX(t, good)},
		"RSA for ES256":     {"ES256", keyringtest.PKIX(t, good)},
		"P-256 for EdDSA":   {"EdDSA", keyringtest.PKIX(t, p["ES256"].Private.Public())},
		"Ed25519 for RS256": {"RS256", keyringtest.PKIX(t, p["EdDSA"].Private.Public())},
	} {
		if k, err := jwt.NewKey(kid, odd.alg, odd.der); err == nil || k != nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestJWKSHasThePublicKeys as the standard library writes them.
func TestJWKSHasThePublicKeys(t *testing.T) {
	enc := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	for alg, p := range pairs(t) {
		want := map[string]any{"kid": kid, "alg": alg, "use": "sig"}
		switch k := p.Private.Public().(type) {
		case *rsa.PublicKey:
			want["kty"], want["n"], want["e"] = "RSA", enc(k.N.Bytes()), "AQAB"
		case *ecdsa.PublicKey:
			point, err := k.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			want["kty"], want["crv"], want["x"], want["y"] = "EC", "P-256", enc(point[1:33]), enc(point[33:])
		case ed25519.PublicKey:
			want["kty"], want["crv"], want["x"] = "OKP", "Ed25519", enc(k)
		}
		var doc struct{ Keys []map[string]any }
		body := jwt.JWKS([]*jwt.Key{p.key(t), p.key(t)})
		if err := json.Unmarshal(body, &doc); err != nil || len(doc.Keys) != 2 {
			t.Fatalf("%s, %v", body, err)
		}
		if fmt.Sprint(doc.Keys[1]) != fmt.Sprint(want) {
			t.Errorf("%v, want %v", doc.Keys[1], want)
		}
	}
	if body := string(jwt.JWKS(nil)); body != `{"keys":[]}` {
		t.Error(body)
	}
}
