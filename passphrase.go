package keyring

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/crypto/argon2"
)

// PassphraseKEK wraps keys under a key that argon2id derives from a passphrase, with the second
// set of parameters that RFC 9106 recommends: 3 passes over 64 MiB, 4 lanes. They and the salt
// are in each file, and what a file asks for is bounded: 3 to 16 passes, 64 to 512 MiB, 1 to
// 16 lanes, for at most 16 salts. The files of a keystore share one salt, so that a start derives
// once, which takes about as long as it takes to hash a password.
//
// Its ID is "passphrase", whichever it is: a hash of it in the ID would be something to guess
// against beforehand. To change it, put the new one in Config.KEKs and the old one in
// Config.OldKEKs, and call Rewrap.
//
// An empty passphrase is an error, and so is any under GODEBUG=fips140=only, since argon2 is
// not approved. The bytes are copied.
func PassphraseKEK(passphrase []byte) (KEK, error) {
	if fips140.Enforced() {
		return nil, errors.New("KEK: argon2id, which PassphraseKEK needs, is not allowed in FIPS 140-only mode")
	}
	if len(passphrase) == 0 {
		return nil, errors.New("KEK: the passphrase is empty")
	}
	passphrase = bytes.Clone(passphrase)
	k := &passphraseKEK{passphrase: func() []byte { return passphrase }, derived: map[stretch]cipher.AEAD{}}
	k.wraps = stretch{passes: 3, kibibytes: 64 << 10, lanes: 4}
	rand.Read(k.wraps.salt[:]) // never fails
	return k, nil
}

// passphraseID is the ID of every PassphraseKEK.
const passphraseID = "passphrase"

// maxSalts bounds how many keys one KEK derives: the files of a keystore share a salt.
const maxSalts = 16

type passphraseKEK struct {
	passphrase func() []byte // fmt looks into the fields of others' fields, not into a func

	mu      sync.Mutex // guards below, and one derivation at a time: each takes its memory
	derived map[stretch]cipher.AEAD
	wraps   stretch // what new files are wrapped under
	known   bool    // wraps is what a file has already
}

// stretch is how a key is derived from the passphrase.
type stretch struct {
	passes    uint32
	kibibytes uint32
	lanes     uint8
	salt      [16]byte
}

// stretchSize is the size of a stretch in a file, version included.
const stretchSize = 1 + 4 + 4 + 1 + 16

func (s stretch) encode() []byte {
	b := []byte{1}
	b = binary.BigEndian.AppendUint32(b, s.passes)
	b = binary.BigEndian.AppendUint32(b, s.kibibytes)
	b = append(b, s.lanes)
	return append(b, s.salt[:]...)
}

func decodeStretch(b []byte) (stretch, bool) {
	if len(b) < stretchSize || b[0] != 1 {
		return stretch{}, false
	}
	return stretch{
		passes: binary.BigEndian.Uint32(b[1:]), kibibytes: binary.BigEndian.Uint32(b[5:]),
		lanes: b[9], salt: [16]byte(b[10:26]),
	}, true
}

// check bounds what a file may ask for, from below too: one with weaker parameters was not
// made here.
func (s stretch) check() error {
	switch {
	case s.passes < 3 || s.passes > 16:
		return fmt.Errorf("argon2id: %d passes, not 3 to 16", s.passes)
	case s.kibibytes < 64<<10 || s.kibibytes > 512<<10:
		return fmt.Errorf("argon2id: %d KiB of memory, not 64 to 512 MiB", s.kibibytes)
	case s.lanes < 1 || s.lanes > 16:
		return fmt.Errorf("argon2id: %d lanes, not 1 to 16", s.lanes)
	}
	return nil
}

func (k *passphraseKEK) ID() string { return passphraseID }

func (k *passphraseKEK) unwraps() bool { return true }

// settled reports whether it knows the salt of the files that are there.
func (k *passphraseKEK) settled() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.known
}

// Format keeps the passphrase out of everything that prints.
func (k *passphraseKEK) Format(s fmt.State, _ rune) { io.WriteString(s, "KEK "+passphraseID) }

// Wrap returns version and parameters (26 bytes), then nonce, ciphertext and tag of
// AES-256-GCM, which covers the parameters too.
func (k *passphraseKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	aead, err := k.derive(ctx, k.wraps)
	if err != nil {
		return nil, err
	}
	k.known = true
	head := k.wraps.encode()
	return append(head, aead.Seal(nil, nil, plaintext, slices.Concat(head, aad))...), nil
}

func (k *passphraseKEK) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	s, ok := decodeStretch(wrapped)
	if !ok {
		return nil, ErrDecrypt
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	aead, err := k.derive(ctx, s)
	if err != nil {
		return nil, err
	}
	head, sealed := wrapped[:stretchSize], wrapped[stretchSize:]
	plaintext, err := aead.Open(nil, nil, sealed, slices.Concat(head, aad))
	if err != nil {
		return nil, ErrDecrypt
	}
	if !k.known && s.passes == k.wraps.passes && s.kibibytes == k.wraps.kibibytes && s.lanes == k.wraps.lanes {
		k.wraps, k.known = s, true
	}
	return plaintext, nil
}

// derive returns the cipher for a salt, from memory if it was derived before.
func (k *passphraseKEK) derive(ctx context.Context, s stretch) (cipher.AEAD, error) {
	if aead := k.derived[s]; aead != nil {
		return aead, nil
	}
	if len(k.derived) >= maxSalts && s != k.wraps { // planted files must not keep new ones from being written
		return nil, fmt.Errorf("argon2id: more than %d salts", maxSalts)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	key := argon2.IDKey(k.passphrase(), s.salt[:], s.passes, s.kibibytes, s.lanes, kekSize)
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	k.derived[s] = aead
	return aead, nil
}
