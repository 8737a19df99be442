package jwt_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"sync"
	"testing"

	"example.com/keyring/internal/jwt"
)

const (
	kid     = "0270c60e-23bb-b8a1-f229-4f54ad2664c3"
	another = "00112233-4455-6677-8899-aabbccddeeff"
)

// pair is a key pair in the hands of someone who has nothing but the standard library.
type pair struct {
	alg     string
	private crypto.Signer
}

var pairs = sync.OnceValue(func() map[string]pair {
	r, errR := rsa.GenerateKey(rand.Reader, 2048)
	e, errE := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, d, errD := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(errR, errE, errD); err != nil {
		panic(err)
	}
	return map[string]pair{"RS256": {"RS256", r}, "ES256": {"ES256", e}, "EdDSA": {"EdDSA", d}}
})

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// sign returns the encoded signature of an input.
func (p pair) sign(input string) string {
	sum := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch k := p.private.(type) {
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
	case *ecdsa.PrivateKey:
		r, s, e := ecdsa.Sign(rand.Reader, k, sum[:])
		err = e
		signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case ed25519.PrivateKey:
		signature = ed25519.Sign(k, []byte(input))
	}
	if err != nil {
		panic(err)
	}
	return b64(string(signature))
}

// token is a compact JWS of a header and a payload as they are.
func (p pair) token(header, payload string) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + p.sign(input)
}

// written is the header as the keyring writes it.
func (p pair) written() string { return `{"alg":"` + p.alg + `","kid":"` + kid + `","typ":"JWT"}` }

func (p pair) key(t testing.TB) *jwt.Key {
	t.Helper()
	k, err := jwt.NewKey(kid, p.alg, pkix(t, p.private.Public()))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pkix(t testing.TB, public any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pkcs8(t testing.TB, private any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// keys are those of a test.
type keys map[string]*jwt.Key

func (k keys) WithHeader(encoded string) *jwt.Key {
	for _, key := range k {
		if key.Header() == encoded {
			return key
		}
	}
	return nil
}

func (k keys) WithID(id string) (*jwt.Key, error) {
	if key := k[id]; key != nil {
		return key, nil
	}
	return nil, jwt.ErrUnknownKey
}
