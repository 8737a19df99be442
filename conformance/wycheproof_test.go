package conformance_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"math/big"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/jwt"
	"github.com/c2sp/wycheproof"
)

// read decodes a file of vectors.
func read(t *testing.T, name string, into any) {
	t.Helper()
	b, err := fs.ReadFile(wycheproof.TestVectors, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// jwk is a public key of the vectors.
type jwk struct {
	Kid, Alg, N, E, X, Y string
}

func (j jwk) public(t *testing.T) crypto.PublicKey {
	t.Helper()
	raw := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if j.Alg == "ES256" {
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, raw(j.X), raw(j.Y)))
		if err != nil {
			t.Fatal(err)
		}
		return public
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(raw(j.N)), E: int(new(big.Int).SetBytes(raw(j.E)).Int64())}
}

func keyOf(t *testing.T, id, alg string, public crypto.PublicKey) *jwt.Key {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	key, err := jwt.NewKey(id, alg, der)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// oneKey is a keyring of one key, whose ID need not be a key ID.
type oneKey struct {
	id  string
	key *jwt.Key
}

func (o oneKey) WithHeader(encoded string) *jwt.Key {
	if encoded == o.key.Header() {
		return o.key
	}
	return nil
}

func (o oneKey) WithID(kid string) (*jwt.Key, error) {
	if kid == o.id {
		return o.key, nil
	}
	return nil, jwt.ErrUnknownKey
}

// TestWycheproofJWS takes every valid token that is not refused for its form, and no other. The
// groups that are left out are of other algorithms, or of keys that are not for signatures, which
// a keyring can't have.
func TestWycheproofJWS(t *testing.T) {
	refused := map[string]string{"emptyPayload": "claims are an object, so a payload is never empty"}
	var file struct {
		TestGroups []struct {
			Public jwk
			Tests  []struct {
				TcID         int
				Comment, JWS string
				Result       string
			}
		}
	}
	read(t, "json_web_signature_test.json", &file)
	taken, not := map[string]int{}, map[string]int{}
	for _, g := range file.TestGroups {
		alg := g.Public.Alg
		if alg != "RS256" && alg != "ES256" {
			continue
		}
		keys := oneKey{g.Public.Kid, keyOf(t, g.Public.Kid, alg, g.Public.public(t))}
		for _, v := range g.Tests {
			_, _, err := jwt.Open(v.JWS, keys, "")
			if want := v.Result == "valid" && refused[v.Comment] == ""; want != (err == nil) {
				t.Errorf("%d %s is %s: %v", v.TcID, v.Comment, v.Result, err)
			}
			if err == nil {
				taken[alg]++
			} else {
				not[alg]++
			}
		}
	}
	for _, alg := range []string{"RS256", "ES256"} {
		if taken[alg] == 0 || not[alg] == 0 {
			t.Errorf("%s: %d taken, %d refused", alg, taken[alg], not[alg])
		}
	}
}

// TestWycheproofSignatures: there are no tokens of EdDSA among the vectors, so what is under a
// token's signature is held to those of the signature alone, for all three.
func TestWycheproofSignatures(t *testing.T) {
	type group struct {
		PublicKey    struct{ PK string }
		PublicKeyDER string
		Tests        []struct {
			TcID                      int
			Comment, Msg, Sig, Result string
		}
	}
	for alg, name := range map[string]string{
		"RS256": "rsa_signature_2048_sha256_test.json",
		"ES256": "ecdsa_secp256r1_sha256_p1363_test.json",
		"EdDSA": "ed25519_test.json",
	} {
		t.Run(alg, func(t *testing.T) {
			var file struct{ TestGroups []group }
			read(t, name, &file)
			taken, not := 0, 0
			for _, g := range file.TestGroups {
				var public crypto.PublicKey = ed25519.PublicKey(unhex(t, g.PublicKey.PK))
				if alg != "EdDSA" {
					var err error
					if public, err = x509.ParsePKIXPublicKey(unhex(t, g.PublicKeyDER)); err != nil {
						t.Fatal(err)
					}
				}
				key := keyOf(t, "k", alg, public)
				for _, v := range g.Tests {
					ok := key.Check(unhex(t, v.Msg), unhex(t, v.Sig))
					if v.Result != "acceptable" && ok != (v.Result == "valid") {
						t.Errorf("%d %s is %s, taken: %v", v.TcID, v.Comment, v.Result, ok)
					}
					if ok {
						taken++
					} else {
						not++
					}
				}
			}
			if taken == 0 || not == 0 {
				t.Errorf("%d taken, %d refused", taken, not)
			}
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
