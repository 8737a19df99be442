package keyring_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

var algorithms = []string{"RS256", "ES256", "EdDSA"}

// benchSigner is a leader alone whose keys are of that algorithm.
func benchSigner(b *testing.B, algorithm string) *keyring.Keyring {
	b.Helper()
	node, err := node.Start(b.Context(), node.Config{
		Dir: b.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()},
		Tokens: keyring.TokenPolicy{Algorithm: algorithm, Issuer: "https://issuer.example"},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { node.Close() })
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if err := node.Keyring().WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	return node.Keyring()
}

// workload is the claims of a workload identity.
type workload struct {
	Issuer    string   `json:"iss,omitempty"`
	Subject   string   `json:"sub"`
	Audience  []string `json:"aud"`
	Expires   int64    `json:"exp,omitempty"`
	Namespace string   `json:"namespace"`
	Job       string   `json:"job"`
}

var benchClaims = workload{Subject: "prod:job:web", Audience: []string{"consul.example"}, Namespace: "prod", Job: "web"}

// bare is a key pair with nothing around it. Its input is as long as a token's.
type bare struct {
	private          crypto.Signer
	input, signature []byte
}

func newBare(b *testing.B, algorithm string, input int) *bare {
	b.Helper()
	k := &bare{input: make([]byte, input), private: keyringtest.NewPair(b, algorithm).Private}
	k.signature = k.sign()
	return k
}

func (k *bare) sign() (signature []byte) {
	var err error
	switch private := k.private.(type) {
	case *rsa.PrivateKey:
		sum := sha256.Sum256(k.input)
		signature, err = rsa.SignPKCS1v15(nil, private, crypto.SHA256, sum[:])
	case *ecdsa.PrivateKey:
		sum := sha256.Sum256(k.input)
		signature, err = ecdsa.SignASN1(rand.Reader, private, sum[:])
	case ed25519.PrivateKey:
		signature = ed25519.Sign(private, k.input)
	}
	if err != nil {
		panic(err)
	}
	return signature
}

func (k *bare) verify() {
	ok := false
	switch public := k.private.Public().(type) {
	case *rsa.PublicKey:
		sum := sha256.Sum256(k.input)
		ok = rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], k.signature) == nil
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(k.input)
		ok = ecdsa.VerifyASN1(public, sum[:], k.signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(public, k.input, k.signature)
	}
	if !ok {
		panic("signature")
	}
}

// BenchmarkSign compares with the signature alone.
func BenchmarkSign(b *testing.B) {
	for _, algorithm := range algorithms {
		k := benchSigner(b, algorithm)
		alone := newBare(b, algorithm, 400)
		limit := func() func() { return func() { alone.sign() } }
		subject := func() func() {
			return func() {
				if _, err := k.Sign(benchClaims); err != nil {
					panic(err)
				}
			}
		}
		keyringtest.Versus(b, algorithm, 50, limit, subject)
	}
}

// BenchmarkVerify compares with the check of the signature alone.
func BenchmarkVerify(b *testing.B) {
	for _, algorithm := range algorithms {
		k := benchSigner(b, algorithm)
		token, err := k.Sign(benchClaims)
		if err != nil {
			b.Fatal(err)
		}
		alone := newBare(b, algorithm, 400)
		want := keyring.Expect{Audience: []string{"consul.example"}}
		limit := func() func() { return func() { alone.verify() } }
		subject := func() func() {
			return func() {
				var c workload
				if err := k.Verify(token, want, &c); err != nil || c.Job != "web" {
					panic(err)
				}
			}
		}
		keyringtest.Versus(b, algorithm, 100, limit, subject)
	}
}

// BenchmarkJWKS compares with a handler that writes as many bytes.
func BenchmarkJWKS(b *testing.B) {
	h := benchSigner(b, "RS256").WellKnown()
	r := httptest.NewRequest("GET", "/.well-known/jwks.json", nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body := w.Body.Bytes()
	fixed := http.NewServeMux()
	fixed.HandleFunc("GET /.well-known/jwks.json", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	serve := func(h http.Handler) func() func() {
		return func() func() { return func() { h.ServeHTTP(httptest.NewRecorder(), r) } }
	}
	keyringtest.Versus(b, "cached", 200, serve(fixed), serve(h))
}
