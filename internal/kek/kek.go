// Package kek has the KEKs that come with the library, and [Set], the KEKs that the key files of
// one server are wrapped under.
//
// A KEK that is local needs no answer from elsewhere, and knows by itself whether it unwraps. The KEKs of this
// package are local. Any other KEK may be a KMS, which can fail, hang, or lack a permission: the set asks it with a
// deadline, and stops asking it for each file once it counts as down.
//
// A new KEK of 32 bytes from elsewhere ends in [FromKey], and has the ID that the same key has in a file. A new type of KEK
// says what it is for in its ID, has a method unwraps, and stands in neverWaits if it needs no answer from anywhere.
//
// # What the KEKs of this package return for material
//
// sealed(k, aad) is a random nonce of 12 bytes, then ciphertext and tag (16 bytes) of AES-256-GCM under k.
// u32(n) is four bytes, big endian.
//
//	Inline      k | sealed(k, aad)        where k is 32 random bytes
//	File        sealed(w, aad)            where w is HKDF-SHA256(k, no salt, info "keyring v2 kek wrap", 32 bytes),
//	                                      and k is the key in the file
//	Passphrase  head | sealed(k, head | aad)
//	            head  = 0x02 | u32(passes) | u32(KiB of memory) | lanes (1 byte) | salt (16 bytes) | c
//	            k | c = argon2id(passphrase, salt, passes, KiB, lanes, 64 bytes), 32 bytes each
//	Age         an age file of 0x01 | SHA-256(aad) | material, for age has no additional data
//
// c commits to the passphrase: it is compared before anything is opened. AES-GCM alone lets somebody make bytes that open
// under many keys, and so try many passphrases with one file.
//
// Two of them were otherwise in key files of version 1, are written so in those, and open for ever:
//
//	File        sealed(k, aad)
//	Passphrase  head | sealed(k, head | aad)
//	            head = 0x01 | u32(passes) | u32(KiB of memory) | lanes (1 byte) | salt (16 bytes)
//	            k    = argon2id(passphrase, salt, passes, KiB, lanes, 32 bytes)
//
// # Their IDs
//
//	Inline      inline
//	File        file2:<16 hexadecimal digits> of HKDF-SHA256(k, no salt, info "keyring v2 kek id", 8 bytes);
//	            in key files of version 1 file:<16 hexadecimal digits>, with info "keyring v1 kek id"
//	Passphrase  passphrase
//	Age         age:<16 hexadecimal digits>, the first 8 bytes of the SHA-256 of the names of the recipients,
//	            sorted, each once, each with a newline
package kek

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"

	"example.com/keyring/internal/seal"
	"example.com/keyring/internal/secret"
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

// aeadOverhead is what newAEAD's AEAD adds: a 12-byte random nonce and a 16-byte tag.
const aeadOverhead = 28

func newAEAD(key []byte) (aead cipher.AEAD, err error) {
	secret.Do(func() {
		var block cipher.Block
		if block, err = aes.NewCipher(key); err == nil {
			aead, err = cipher.NewGCMWithRandomNonce(block)
		}
	})
	return aead, err
}

// openWith opens what newAEAD's AEAD has sealed. Its error does not tell why it failed.
func openWith(aead cipher.AEAD, wrapped, aad []byte) (plaintext []byte, err error) {
	if secret.Do(func() { plaintext, err = aead.Open(nil, nil, wrapped, aad) }); err != nil {
		return nil, errOpen
	}
	return plaintext, nil
}
