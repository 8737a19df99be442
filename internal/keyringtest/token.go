package keyringtest

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
	"fmt"
	"testing"
)

// Pair is a signing key in the hands of someone who has nothing but the standard library: what
// other issuers, and forgers, make of it.
type Pair struct {
	Algorithm string
	Private   crypto.Signer
}

// NewPair makes a key pair for RS256, ES256 or EdDSA.
func NewPair(tb testing.TB, algorithm string) Pair {
	tb.Helper()
	p := Pair{Algorithm: algorithm}
	var err error
	switch algorithm {
	case "RS256":
		p.Private, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ES256":
		p.Private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, p.Private, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("no algorithm %q", algorithm)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// ReadPair reads a private key in PKCS #8.
func ReadPair(tb testing.TB, algorithm string, der []byte) Pair {
	tb.Helper()
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		tb.Fatal(err)
	}
	return Pair{algorithm, private.(crypto.Signer)}
}

// Public is the public half in PKIX DER.
func (p Pair) Public(tb testing.TB) []byte { return PKIX(tb, p.Private.Public()) }

// PKIX is the DER of a public key.
func PKIX(tb testing.TB, public crypto.PublicKey) []byte {
	tb.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// Header is a header with that kid, as most issuers write it.
func (p Pair) Header(kid string) string {
	return `{"alg":"` + p.Algorithm + `","kid":"` + kid + `","typ":"JWT"}`
}

// Token is the compact JWS of a header and a payload as they are.
func (p Pair) Token(header, payload string) string {
	input := Base64(header) + "." + Base64(payload)
	return input + "." + p.Sign(input)
}

// Sign returns the encoded signature of an input.
func (p Pair) Sign(input string) string {
	sum := sha256.Sum256([]byte(input))
	var signature []byte
	var err error
	switch private := p.Private.(type) {
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(nil, private, crypto.SHA256, sum[:])
	case *ecdsa.PrivateKey:
		r, s, e := ecdsa.Sign(rand.Reader, private, sum[:])
		signature, err = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...), e
	case ed25519.PrivateKey:
		signature = ed25519.Sign(private, []byte(input))
	}
	if err != nil {
		panic(err)
	}
	return Base64(string(signature))
}

// Base64 is the base64url of JOSE.
func Base64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
