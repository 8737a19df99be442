package keyring

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
	"fmt"
	"io"
	"os"
)

// KEK wraps key material on one server. Implementations are safe for concurrent use.
type KEK interface {
	// ID names the KEK in the key files: 1 to 128 printable ASCII characters. It is the
	// same for the same KEK at every start, and no secret. Another KEK has another ID;
	// where that can't be, as with two passphrases, one may be in Config.KEKs and the
	// others in Config.OldKEKs.
	ID() string
	// Wrap encrypts plaintext and binds it to aad.
	Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error)
	// Unwrap reverses Wrap. An error that matches ErrDecrypt says that the bytes are
	// not what this KEK wrapped for that aad, one that matches ErrWrapOnly that it never
	// unwraps. Any other means that the KEK could not be reached. In no case is the file
	// touched: it may be the way back, and it is tried again. Both calls return soon
	// after ctx has ended, 10 seconds after they began at the latest.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

const (
	kekSize  = 32
	inlineID = "inline"
)

// InlineKEK wraps each key under a random KEK that lies in the file beside what it wraps. It
// protects the keys from those who get a raft backup, and from nobody who can read the file.
// Status says so. Files wrapped this way open only on servers that are configured with it.
func InlineKEK() KEK { return inlineKEK{} }

type inlineKEK struct{}

func (inlineKEK) ID() string { return inlineID }

func (inlineKEK) unwraps() bool { return true }

// Wrap returns the KEK, then what it wraps.
func (inlineKEK) Wrap(_ context.Context, plaintext, aad []byte) ([]byte, error) {
	key := make([]byte, kekSize, kekSize+aeadOverhead+len(plaintext))
	rand.Read(key) // never fails
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return aead.Seal(key, nil, plaintext, aad), nil
}

func (inlineKEK) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	if len(wrapped) < kekSize {
		return nil, ErrDecrypt
	}
	return openWrapped(wrapped[:kekSize], wrapped[kekSize:], aad)
}

// FileKEK wraps keys under a 32-byte key in a file of its own: outside the data directory,
// on a medium that does not travel with it, or a systemd credential. The file holds 32 raw
// bytes, or their base64 or hexadecimal text with at most one newline at its end. Its ID is
// derived from the key, so a file renamed is the same KEK, and another key another KEK.
func FileKEK(path string) (KEK, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("KEK: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 2*kekSize+2))
	defer clear(b)
	if err != nil {
		return nil, fmt.Errorf("KEK: %w", err)
	}
	key, ok := parseKEK(b)
	if !ok {
		return nil, fmt.Errorf("KEK: %s does not hold 32 bytes, raw, in base64 or in hexadecimal", path)
	}
	return newFileKEK(key)
}

// parseKEK tells the forms of a KEK file apart by their length.
func parseKEK(b []byte) ([]byte, bool) {
	if len(b) == kekSize {
		return bytes.Clone(b), true
	}
	b = bytes.TrimSuffix(b, []byte("\n"))
	key := make([]byte, kekSize+1) // base64 decodes 44 characters into up to 33 bytes
	var n int
	var err error
	switch len(b) {
	case hex.EncodedLen(kekSize):
		n, err = hex.Decode(key, b)
	case base64.StdEncoding.EncodedLen(kekSize):
		n, err = base64.StdEncoding.Strict().Decode(key, b)
	}
	return key[:kekSize], err == nil && n == kekSize
}

type fileKEK struct {
	id   string
	aead cipher.AEAD
}

// newFileKEK takes over key and overwrites it.
func newFileKEK(key []byte) (KEK, error) {
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
	plaintext, err := k.aead.Open(nil, nil, wrapped, aad)
	if err != nil {
		return nil, ErrDecrypt
	}
	return plaintext, nil
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

func openWrapped(key, wrapped, aad []byte) ([]byte, error) {
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, nil, wrapped, aad)
	if err != nil {
		return nil, ErrDecrypt
	}
	return plaintext, nil
}
