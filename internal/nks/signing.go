package nks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	erase "example.com/keyring/internal/secret"
)

const rsaBits = 2048

// generateSigning returns the PKCS #8 DER of a new private key.
func generateSigning(algorithm string) ([]byte, error) {
	private, err := newPrivate(algorithm)
	if err != nil {
		return nil, fmt.Errorf("generate signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("encode signing key: %w", err)
	}
	return der, nil
}

func newPrivate(algorithm string) (private any, err error) {
	switch algorithm {
	case rs256:
		return rsa.GenerateKey(rand.Reader, rsaBits)
	case es256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case eddsa:
		_, private, err = ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return nil, fmt.Errorf("unknown algorithm %q", algorithm)
}

// Public returns the PKIX DER of the public key that belongs to the signing key. It is an error if the private key is not
// one for algorithm. Parsing an RSA key costs more than everything else here together, so only Public does it. The parsed
// key is left to the garbage collector, which overwrites it where package secret says so.
func (m *Material) Public(algorithm string) ([]byte, error) {
	var private any
	var err error
	if erase.Do(func() { private, err = x509.ParsePKCS8PrivateKey(m.Signing()) }); err != nil {
		// Without the cause: it may tell something about the private key.
		return nil, fmt.Errorf("%w: signing key: not PKCS #8", ErrFormat)
	}
	public := publicFor(private, algorithm)
	if public == nil {
		return nil, fmt.Errorf("%w: signing key: not a key for %q", ErrFormat, algorithm)
	}
	return x509.MarshalPKIXPublicKey(public)
}

// publicFor returns nil unless private is a key for algorithm.
func publicFor(private any, algorithm string) crypto.PublicKey {
	switch k := private.(type) {
	case *rsa.PrivateKey:
		if algorithm == rs256 && k.N.BitLen() == rsaBits {
			return k.Public()
		}
	case *ecdsa.PrivateKey:
		if algorithm == es256 && k.Curve == elliptic.P256() {
			return k.Public()
		}
	case ed25519.PrivateKey:
		if algorithm == eddsa {
			return k.Public()
		}
	}
	return nil
}
