package jwt

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"example.com/keyring/internal/secret"
)

// ErrWiped is the error of a Signer that was wiped.
var ErrWiped = errors.New("signing key is wiped")

// Signer signs with one private key. It is safe for concurrent use.
type Signer struct {
	id, alg string
	header  string // of tokens with typ JWT

	mu sync.RWMutex // guards below: Wipe waits for the signatures under way
	// A closure, because nothing that works by reflection can look into one.
	sign func(input []byte) ([]byte, error)
	wipe func()
}

// NewSigner parses a private key in PKCS #8 DER, which for RSA takes about as long as a
// signature. It keeps no part of der.
func NewSigner(id, alg string, der []byte) (*Signer, error) {
	var private any
	var err error
	if secret.Do(func() { private, err = x509.ParsePKCS8PrivateKey(der) }); err != nil {
		// Without the cause: it may tell something about the private key.
		return nil, errors.New("signing key is not PKCS #8")
	}
	return newSigner(id, alg, private)
}

// newSigner takes over the private key.
func newSigner(id, alg string, private any) (*Signer, error) {
	s := &Signer{id: id, alg: alg, header: headerOf(id, alg, JWT), wipe: func() {}}
	signer, ok := private.(crypto.Signer)
	if !ok || !fits(signer.Public(), alg) {
		return nil, fmt.Errorf("signing key is not one for %s", alg)
	}
	switch private := private.(type) {
	case *rsa.PrivateKey:
		s.sign = func(input []byte) ([]byte, error) {
			sum := sha256.Sum256(input)
			return rsa.SignPKCS1v15(nil, private, crypto.SHA256, sum[:])
		}
	case *ecdsa.PrivateKey:
		s.sign = func(input []byte) ([]byte, error) {
			sum := sha256.Sum256(input)
			der, err := ecdsa.SignASN1(rand.Reader, private, sum[:])
			if err != nil {
				return nil, err
			}
			return concatenated(der), nil
		}
	case ed25519.PrivateKey:
		s.sign = func(input []byte) ([]byte, error) { return ed25519.Sign(private, input), nil }
		s.wipe = func() { clear(private) }
	}
	return s, nil
}

// Sign returns the token of a payload. typ is one that Type has returned. It is an error if the token is too long to be
// accepted.
func (s *Signer) Sign(typ string, payload []byte) (string, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.sign == nil {
		return "", ErrWiped
	}
	header := s.header
	if typ != JWT {
		header = headerOf(s.id, s.alg, typ)
	}
	token := make([]byte, 0, len(header)+1+strict.EncodedLen(len(payload))+1+strict.EncodedLen(rsaBits/8))
	token = append(token, header...)
	token = append(token, '.')
	token = strict.AppendEncode(token, payload)
	signature, err := s.sign(token)
	if err != nil {
		return "", err
	}
	token = append(token, '.')
	token = strict.AppendEncode(token, signature)
	if len(token) > MaxToken {
		return "", fmt.Errorf("a token of %d bytes, at most %d", len(token), MaxToken)
	}
	return string(token), nil
}

// concatenated turns a signature as crypto/ecdsa writes it, in DER of less than 128 bytes, into r and s side by side, as
// RFC 7518 has it. ecdsa.Sign, which returns the two, makes numbers of them first.
func concatenated(der []byte) []byte {
	signature := make([]byte, 2*p256Len)
	rest := der[2:] // SEQUENCE
	for _, half := range [][]byte{signature[:p256Len], signature[p256Len:]} {
		end := 2 + rest[1] // INTEGER
		n := bytes.TrimLeft(rest[2:end], "\x00")
		copy(half[p256Len-len(n):], n)
		rest = rest[end:]
	}
	return signature
}

// Wipe ends the use of s: calls under way finish, later ones return ErrWiped. It overwrites an Ed25519 key. What crypto/rsa
// and crypto/ecdsa have computed from their keys is left to the garbage collector, which overwrites what NewSigner has made
// where package secret says so.
func (s *Signer) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sign != nil {
		s.wipe()
	}
	s.sign, s.wipe = nil, nil
}
