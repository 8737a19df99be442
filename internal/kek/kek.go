// Package kek has the KEKs that come with the library, and [Set], the KEKs that the key files of
// one server are wrapped under.
//
// A KEK that is local needs no answer from elsewhere, and knows by itself whether it unwraps. The KEKs of this
// package are local. Any other KEK may be a KMS, which can fail, hang, or lack a permission: the set asks it with a
// deadline, and stops asking it for each file once it counts as down.
//
// A new KEK of 32 bytes from elsewhere ends in [FromKey], and has the ID that the same key has in a file. A new type of KEK
// says what it is for in its ID, has a method unwraps, and is left out of the deadlines of the set if it never waits: see
// withTimeout.
//
// # What the KEKs of this package return for material
//
// sealed(k, aad) is a random nonce of 12 bytes, then ciphertext and tag (16 bytes) of AES-256-GCM under k.
// u32(n) is four bytes, big endian.
//
//	Inline      k | sealed(k, aad)        where k is 32 random bytes
//	File        sealed(k, aad)            where k is the key in the file
//	Passphrase  head | sealed(k, head | aad)
//	            head = 0x01 | u32(passes) | u32(KiB of memory) | lanes (1 byte) | salt (16 bytes)
//	            k    = argon2id(passphrase, salt, passes, KiB, lanes, 32 bytes)
//	Age         an age file of 0x01 | SHA-256(aad) | material, for age has no additional data
//
// # Their IDs
//
//	Inline      inline
//	File        file:<16 hexadecimal digits> of HKDF-SHA256(k, no salt, info "keyring v1 kek id", 8 bytes)
//	Passphrase  passphrase
//	Age         age:<16 hexadecimal digits>, the first 8 bytes of the SHA-256 of the names of the recipients,
//	            sorted, each once, each with a newline
package kek

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"example.com/keyring/internal/seal"
)

// KEK wraps key material on one server. It is the public interface of that name, which says what its
// methods owe.
type KEK interface {
	ID() string
	Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

// ErrWrapOnly is what the Unwrap of a KEK returns that can only wrap.
var ErrWrapOnly = errors.New("this KEK can wrap but not unwrap")

// Errors that the calls of a KEK may match, to say why it does not do its work. Any other means that it does not answer.
var (
	// ErrRefused means that it answers and does not do this: a permission is missing, a key is disabled or destroyed.
	ErrRefused = errors.New("the KEK refuses")
	// ErrThrottled means that it answers, and is asked too often.
	ErrThrottled = errors.New("the KEK is asked too often")
)

// errOpen is what the Unwrap of every KEK here returns for bytes that it has not wrapped for that AAD.
var errOpen = seal.ErrOpen

// Size is how many bytes a KEK has, where it is a key.
const Size = 32

// InlineID is the ID of the KEK that Inline returns.
const InlineID = "inline"

// Inline returns the KEK that wraps each key under a random key, which lies in the file beside what it
// wraps.
func Inline() KEK { return inlineKEK{} }

type inlineKEK struct{}

func (inlineKEK) ID() string { return InlineID }

func (inlineKEK) unwraps() bool { return true }

func (inlineKEK) Wrap(_ context.Context, plaintext, aad []byte) ([]byte, error) {
	key := make([]byte, Size, Size+aeadOverhead+len(plaintext))
	rand.Read(key) // never fails
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return aead.Seal(key, nil, plaintext, aad), nil
}

func (inlineKEK) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	if len(wrapped) < Size {
		return nil, errOpen
	}
	aead, err := newAEAD(wrapped[:Size])
	if err != nil {
		return nil, err
	}
	return openWith(aead, wrapped[Size:], aad)
}

// File returns the KEK whose key is in a file: 32 raw bytes, or their base64 or hexadecimal text with at
// most one newline at its end.
func File(path string) (KEK, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("KEK: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 2*Size+2))
	defer clear(b)
	if err != nil {
		return nil, fmt.Errorf("KEK: %w", err)
	}
	key, ok := parseKey(b)
	if !ok {
		return nil, fmt.Errorf("KEK: %s does not hold 32 bytes, raw, in base64 or in hexadecimal", path)
	}
	return FromKey(key)
}

// parseKey tells the forms of a KEK file apart by their length.
func parseKey(b []byte) ([]byte, bool) {
	if len(b) == Size {
		return bytes.Clone(b), true
	}
	b = bytes.TrimSuffix(b, []byte("\n"))
	key := make([]byte, Size+1) // base64 decodes 44 characters into up to 33 bytes
	var n int
	var err error
	switch len(b) {
	case hex.EncodedLen(Size):
		n, err = hex.Decode(key, b)
	case base64.StdEncoding.EncodedLen(Size):
		n, err = base64.StdEncoding.Strict().Decode(key, b)
	}
	return key[:Size], err == nil && n == Size
}

type fileKEK struct {
	id   string
	aead cipher.AEAD
}

// FromKey returns what File does for a file with these 32 bytes. It takes over key and overwrites it.
func FromKey(key []byte) (KEK, error) {
	defer clear(key)
	mark, err := hkdf.Key(sha256.New, key, nil, "keyring v1 kek id", 8)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return &fileKEK{"file:" + hex.EncodeToString(mark), aead}, nil
}

func (k *fileKEK) ID() string { return k.id }

func (k *fileKEK) unwraps() bool { return true }

func (k *fileKEK) Wrap(_ context.Context, plaintext, aad []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, plaintext, aad), nil
}

func (k *fileKEK) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	return openWith(k.aead, wrapped, aad)
}

// Format keeps the cipher out of everything that prints.
func (k *fileKEK) Format(s fmt.State, _ rune) { io.WriteString(s, "KEK "+k.id) }

// aeadOverhead is what newAEAD's AEAD adds: a 12-byte random nonce and a 16-byte tag.
const aeadOverhead = 28

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// openWith opens what newAEAD's AEAD has sealed. Its error does not tell why it failed.
func openWith(aead cipher.AEAD, wrapped, aad []byte) ([]byte, error) {
	plaintext, err := aead.Open(nil, nil, wrapped, aad)
	if err != nil {
		return nil, errOpen
	}
	return plaintext, nil
}
