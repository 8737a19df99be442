package keyring_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
)

// vectors are tokens that testdata/tokens.py made, with PyJWT.
type vectors struct {
	Keys []struct {
		ID        keyring.KeyID
		Algorithm string
		Public    []byte
	}
	Tokens []struct {
		Name, Token string
		Verifies    bool
	}
}

func readVectors(t testing.TB) (v vectors) {
	t.Helper()
	b, err := os.ReadFile("testdata/tokens.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// reader is a server without a leader and without material. It knows the keys of the vectors,
// and one more, of which the test has the private half; they were adopted in the year 2090.
func reader(t testing.TB, v vectors, more ...keyringtest.Outsider) *keyring.Keyring {
	t.Helper()
	at := time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC)
	cmds := []meta.Command{{Init: &meta.Init{Cluster: meta.ClusterID{1}}}}
	for _, k := range v.Keys {
		cmds = append(cmds, meta.Command{Adopt: &meta.Adopt{Time: at, Key: meta.NewKey{
			ID: meta.KeyID(k.ID), Algorithm: k.Algorithm, Public: k.Public, Check: meta.CheckValue{1}, Created: at,
		}}})
	}
	for _, o := range more {
		cmds = append(cmds, meta.Command{Adopt: &meta.Adopt{Time: at, Key: o.NewKey(t)}})
	}
	r := idleRaft(t)
	if err, _ := r.fsm.Apply(keyringtest.LogEntry(t, 1, cmds...)).(error); err != nil {
		t.Fatal(err)
	}
	k, err := keyring.Open(t.Context(), keyring.Config{
		Dir: t.TempDir(), ID: "s1", Raft: r.Raft, FSM: r.fsm, KEKs: []keyring.KEK{keyring.InlineKEK()},
		Tokens: keyring.TokenPolicy{Issuer: keyringtest.TokenIssuer},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// refusedHere: a server without a leader can't tell that a key is unknown.
func refusedHere(err error) bool {
	return errors.Is(err, keyring.ErrToken) || errors.Is(err, keyring.ErrNotReady)
}

func TestTokensThatAnotherLibraryMade(t *testing.T) {
	v := readVectors(t)
	k := reader(t, v)
	for _, token := range v.Tokens {
		var claims struct{ Sub string }
		err := k.Verify(token.Token, keyringtest.ForMe, &claims)
		if token.Verifies != (err == nil) || err != nil && !refusedHere(err) || token.Verifies && claims.Sub != "job:web" {
			t.Errorf("%s: %v", token.Name, err)
		}
	}
}

// FuzzVerify: what is taken, another reader of it, made of the standard library, must take too.
func FuzzVerify(f *testing.F) {
	v := readVectors(f)
	k := reader(f, v)
	public := map[string]any{}
	for _, key := range v.Keys {
		p, err := x509.ParsePKIXPublicKey(key.Public)
		if err != nil {
			f.Fatal(err)
		}
		public[key.ID.String()] = p
	}
	f.Fuzz(func(t *testing.T, token string) {
		var claims map[string]any
		err := k.Verify(token, keyringtest.ForMe, &claims)
		if err != nil && (!refusedHere(err) || claims != nil) {
			t.Errorf("%v, %v", claims, err)
		}
		if err == nil {
			if err := second(token, public); err != nil {
				t.Errorf("%q: %v", token, err)
			}
		}
	})
}

// FuzzVerifyClaims signs whatever claims there are, after which nothing but Verify stands between
// them and the caller.
func FuzzVerifyClaims(f *testing.F) {
	o := keyringtest.NewOutsider(f, "EdDSA", 1)
	k := reader(f, vectors{}, o)
	for _, claims := range []string{
		`{}`, `{"iss":"https://issuer.example","aud":"me","exp":4102444800}`,
		`{"iss":"https://issuer.example","aud":["you","m\u0065"],"exp":4.1024448e9,"nbf":0}`,
		`{"iss":"https://issuer.example","aud":"me","exp":1,"Exp":4102444800}`,
		`{"iss":"https://issuer.example","aud":"me","exp":1,"exp":4102444800}`,
		`{"iss":"https://issuer.example","aud":["me"],"exp":4102444800,"a":{"b":[{"c":null}]}}`,
	} {
		f.Add(claims)
	}
	public := map[string]any{o.ID.String(): o.Private.Public()}
	f.Fuzz(func(t *testing.T, claims string) {
		token := o.Token(o.Header(o.ID.String()), claims)
		if err := k.Verify(token, keyringtest.ForMe); err == nil {
			if err := second(token, public); err != nil {
				t.Errorf("%q: %v", claims, err)
			}
		}
	})
}

// second is a second opinion on a token that was taken.
func second(token string, public map[string]any) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("%d parts", len(parts))
	}
	var raw [3][]byte
	for i, p := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.Strict().DecodeString(p); err != nil || base64.RawURLEncoding.EncodeToString(raw[i]) != p {
			return fmt.Errorf("part %d: %w", i, err)
		}
	}
	var header map[string]string
	if err := json.Unmarshal(raw[0], &header); err != nil || len(header) > 3 {
		return fmt.Errorf("header %s: %w", raw[0], err)
	}
	input := []byte(parts[0] + "." + parts[1])
	sum, ok := sha256.Sum256(input), false
	switch p := public[header["kid"]].(type) {
	case *rsa.PublicKey:
		ok = header["alg"] == "RS256" && rsa.VerifyPKCS1v15(p, crypto.SHA256, sum[:], raw[2]) == nil
	case *ecdsa.PublicKey:
		ok = header["alg"] == "ES256" && len(raw[2]) == 64 &&
			ecdsa.Verify(p, sum[:], new(big.Int).SetBytes(raw[2][:32]), new(big.Int).SetBytes(raw[2][32:]))
	case ed25519.PublicKey:
		ok = header["alg"] == "EdDSA" && ed25519.Verify(p, input, raw[2])
	}
	if !ok {
		return errors.New("signature")
	}
	var c struct {
		Iss string
		Aud any
		Exp float64
		Nbf float64
	}
	if err := json.Unmarshal(raw[1], &c); err != nil {
		return err
	}
	at := float64(time.Now().Unix())
	if many, ok := c.Aud.([]any); ok {
		for _, a := range many {
			if a == "me" {
				c.Aud = a
			}
		}
	}
	if c.Iss != keyringtest.TokenIssuer || c.Aud != "me" || c.Exp+60 < at || c.Nbf-61 > at {
		return fmt.Errorf("claims %s", raw[1])
	}
	return nil
}
