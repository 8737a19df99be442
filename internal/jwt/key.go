package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/big"

	"github.com/go-jose/go-jose/v3"
)

// The signing algorithms, by the names they have in JOSE.
const (
	rs256 = "RS256"
	es256 = "ES256"
	eddsa = "EdDSA"
)

// Algorithms are all of them, as the discovery document names them.
func Algorithms() []string { return []string{rs256, es256, eddsa} }

const (
	rsaBits = 2048
	p256Len = 32 // bytes of r, and of s, in an ES256 signature
)

// Key is a public key, with the ID and algorithm in the headers of its tokens.
type Key struct {
	alg    string
	public crypto.PublicKey
	header string
	jwk    []byte
}

// NewKey reads a public key in PKIX DER. It is an error unless the key is one for the algorithm: RSA with 2048 bits, P-256
// or Ed25519.
func NewKey(id, alg string, pkix []byte) (*Key, error) {
	public, err := x509.ParsePKIXPublicKey(pkix)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	if !fits(public, alg) {
		return nil, fmt.Errorf("public key: %T is not one for %s", public, alg)
	}
	jwk, err := jose.JSONWebKey{Key: public, KeyID: id, Algorithm: alg, Use: "sig"}.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return &Key{alg: alg, public: public, header: headerOf(id, alg, JWT), jwk: jwk}, nil
}

// fits reports whether the algorithm is that of the public key.
func fits(public crypto.PublicKey, alg string) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return alg == rs256 && k.N.BitLen() == rsaBits && k.E >= 3 && k.E%2 == 1
	case *ecdsa.PublicKey:
		return alg == es256 && k.Curve == elliptic.P256()
	case ed25519.PublicKey:
		return alg == eddsa && len(k) == ed25519.PublicKeySize
	}
	return false
}

// Header returns the encoded header of the tokens with typ JWT that the keyring signs with this key.
func (k *Key) Header() string { return k.header }

// headerOf escapes nothing: a key ID is hexadecimal, an algorithm one of three, and a typ has none of what JSON escapes.
func headerOf(id, alg, typ string) string {
	return strict.EncodeToString([]byte(`{"alg":"` + alg + `","kid":"` + id + `","typ":"` + typ + `"}`))
}

// Check reports whether the signature is one over input by this key.
func (k *Key) Check(input, signature []byte) bool {
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		sum := sha256.Sum256(input)
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], signature) == nil
	case *ecdsa.PublicKey:
		if len(signature) != 2*p256Len {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:p256Len]), new(big.Int).SetBytes(signature[p256Len:])
		sum := sha256.Sum256(input)
		return ecdsa.Verify(public, sum[:], r, s)
	case ed25519.PublicKey:
		return ed25519.Verify(public, input, signature)
	}
	return false
}

// JWKS returns the document (RFC 7517) of the keys, in their order.
func JWKS(keys []*Key) []byte {
	doc := []byte(`{"keys":[`)
	for i, k := range keys {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = append(doc, k.jwk...)
	}
	return append(doc, `]}`...)
}
