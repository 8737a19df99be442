// Package kms makes a keyring.KEK from any wrapping.Wrapper of github.com/hashicorp/go-kms-wrapping/v2. There
// are wrappers for AWS KMS, Azure Key Vault, Google Cloud KMS, OCI, AliCloud, Tencent Cloud, Huawei Cloud,
// and the transit engine of Vault or OpenBao.
//
//	vault := transit.NewWrapper()
//	_, err := vault.SetConfig(ctx, transit.WithAddress("https://vault.internal:8200"),
//		transit.WithMountPath("transit"), transit.WithKeyName("keyring"))
//	if err != nil {
//		return err
//	}
//	kek, err := kms.New("transit:vault.internal/transit/keyring", vault)
//	if err != nil {
//		return err
//	}
//	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{kek, escrow}}) // or keyring.Open
//
// Use a second KMS or an escrow, see [keyring.AgeKEK], beside it: the key files open as long as one of the
// KEKs unwraps. docs/keks.md of the repository says how to change KEKs, and what to do when a KMS is gone.
//
// # Format
//
// The KMS encrypts
//
//	version 1 (1 byte) | SHA-256 of the AAD (32 bytes) | plaintext
//
// and the key file contains
//
//	version 1 (1 byte) | protobuf encoding of the wrapping.BlobInfo that it returned
//
// Only that hash binds the AAD. It is not given to the wrapper as wrapping.WithAad: some wrappers use that
// and some, such as transit, ignore it. A wrapper that began to use it could no longer open older
// ciphertexts.
//
// # Limitations
//
// SetConfig of most wrappers asks the KMS, and fails if it does not answer; keyring.Open and node.Start with
// the KEK would not fail. Fields of a BlobInfo that a wrapper does not read or authenticate, such as the key
// ID with transit, can be altered, and the rest still opens to the same plaintext. Copies of the plaintext
// that a wrapper or its client makes are not overwritten. The wrapper of AWS KMS ignores ctx as of v2.0.11: a
// call whose context has ended goes on in the background until it returns, even after the keyring has been
// closed.
package kms

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"time"

	"example.com/keyring"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"
)

const (
	version    = 1
	headerSize = 1 + sha256.Size // of what the KMS encrypts
)

// New returns a KEK that wraps with w. id names the KEK in the key files: 1 to 128 printable ASCII
// characters, the same at every start for the same key of the KMS.
//
// The KEK is a keyring.VersionedKEK. The version is the KeyId of the KeyInfo that w returns. With transit,
// Azure Key Vault and Google Cloud KMS that is the key version. With AWS KMS it is the key behind an alias;
// that key's older versions remain usable.
//
// w must be configured, stay so until the keyring is closed, be safe for concurrent use, and keep no slice
// that it is given. After ctx has ended, the KEK waits one second more for w.
//
// Unwrap returns keyring.ErrDecrypt for bytes that do not parse or have an unknown version, and for another
// AAD. An error or panic of w is returned wrapped. It matches keyring.ErrDecrypt only if w's error does,
// because a KMS does not always distinguish a foreign ciphertext from a missing permission. It matches
// keyring.ErrKEKRefused or keyring.ErrKEKThrottled if its HTTP status or its code says so, in the forms of
// the clients of AWS, Azure, Google and Vault.
func New(id string, w wrapping.Wrapper) (keyring.KEK, error) {
	if !printable(id) {
		return nil, errors.New("KMS: the ID is not 1 to 128 printable ASCII characters")
	}
	if w == nil {
		return nil, fmt.Errorf("KMS %s: the wrapper is nil", id)
	}
	return &kek{id, w}, nil
}

type kek struct {
	id string
	w  wrapping.Wrapper
}

func (k *kek) ID() string { return k.id }

// Format keeps the wrapper, which may hold a token or a key, out of everything that prints.
func (k *kek) Format(s fmt.State, _ rune) { io.WriteString(s, "KEK "+k.id) }

// Version returns the KeyId of the KeyInfo that the wrapper returned, if files can carry it.
func (k *kek) Version(wrapped []byte) string {
	blob := new(wrapping.BlobInfo)
	if len(wrapped) == 0 || wrapped[0] != version || proto.Unmarshal(wrapped[1:], blob) != nil {
		return ""
	}
	if id := blob.GetKeyInfo().GetKeyId(); printable(id) {
		return id
	}
	return ""
}

func (k *kek) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	sum := sha256.Sum256(aad)
	bound := make([]byte, 0, headerSize+len(plaintext)) // never grows: a copy would stay behind
	bound = append(bound, version)
	bound = append(bound, sum[:]...)
	bound = append(bound, plaintext...)
	return k.call(ctx, "encrypt", func() ([]byte, error) {
		defer clear(bound)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		blob, err := k.w.Encrypt(ctx, bound)
		if err != nil {
			return nil, err
		}
		if !storable(blob) {
			return nil, errors.New("the wrapper returned no ciphertext, or a secret with it")
		}
		return proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{version}, blob)
	})
}

func (k *kek) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if len(wrapped) == 0 || wrapped[0] != version {
		return nil, keyring.ErrDecrypt
	}
	blob := new(wrapping.BlobInfo)
	if proto.Unmarshal(wrapped[1:], blob) != nil || !storable(blob) {
		return nil, keyring.ErrDecrypt
	}
	bound, err := k.call(ctx, "decrypt", func() ([]byte, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return k.w.Decrypt(ctx, blob)
	})
	defer clear(bound)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(aad)
	if len(bound) < headerSize || bound[0] != version ||
		subtle.ConstantTimeCompare(bound[1:headerSize], sum[:]) != 1 {
		return nil, keyring.ErrDecrypt
	}
	return bytes.Clone(bound[headerSize:]), nil
}

// patience is how long a wrapper is waited for when ctx has ended.
const patience = time.Second

// call asks the KMS on a goroutine of its own, since a wrapper may ignore ctx. One that is out of
// patience is left alone with its answer.
func (k *kek) call(ctx context.Context, what string, ask func() ([]byte, error)) ([]byte, error) {
	type answer struct {
		b   []byte
		err error
	}
	answers, left := make(chan answer), make(chan struct{})
	defer close(left)
	go func() {
		b, err := guarded(ask)
		select {
		case answers <- answer{b, err}:
		case <-left:
			clear(b)
		}
	}()
	var late <-chan time.Time
	ended := ctx.Done()
	for {
		select {
		case a := <-answers:
			if a.err != nil {
				return a.b, fmt.Errorf("KMS %s: %s: %w", k.id, what, a.err)
			}
			return a.b, nil
		case <-ended:
			late, ended = time.After(patience), nil
		case <-late:
			return nil, fmt.Errorf("KMS %s: %s: the wrapper does not return: %w", k.id, what, context.Cause(ctx))
		}
	}
}

// guarded asks a wrapper that may panic on what it does not expect, as on a nonce of another
// length, or when its error is looked at. The value of a panic may be a secret, so only its type is told.
func guarded(ask func() ([]byte, error)) (b []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the wrapper panicked with a %T", r)
		}
	}()
	b, err = ask()
	return b, classified(err)
}

// storable reports whether a blob may be in a file: it has a ciphertext, which is no shorter
// than what was encrypted, and no plaintext or unwrapped key beside it.
func storable(b *wrapping.BlobInfo) bool {
	return len(b.GetCiphertext()) >= headerSize && len(b.GetPlaintext()) == 0 && len(b.GetKeyInfo().GetKey()) == 0
}

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}
