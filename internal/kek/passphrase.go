package kek

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

// Passphrase returns the KEK that is derived from a passphrase with argon2id. The parameters and the salt are
// in each file, and what a file asks for is bounded.
func Passphrase(passphrase []byte) (KEK, error) {
	if fips140.Enforced() {
		return nil, errors.New("KEK: argon2id, which PassphraseKEK needs, is not allowed in FIPS 140-only mode")
	}
	if len(passphrase) == 0 {
		return nil, errors.New("KEK: the passphrase is empty")
	}
	passphrase = bytes.Clone(passphrase)
	k := &passphraseKEK{passphrase: func() []byte { return passphrase }, derived: map[derivation]cipher.AEAD{}}
	k.wraps = derivation{passes: 3, kibibytes: 64 << 10, lanes: 4}
	rand.Read(k.wraps.salt[:]) // never fails
	return k, nil
}

// passphraseID is the ID of each of them: a hash of the passphrase would be something to guess against.
const passphraseID = "passphrase"

// maxSalts bounds how many keys one KEK derives: the files of a keystore share a salt.
const maxSalts = 16

type passphraseKEK struct {
	passphrase func() []byte // fmt looks into the fields of others' fields, not into a func

	mu      sync.Mutex // guards below, and one derivation at a time: each takes its memory
	derived map[derivation]cipher.AEAD
	wraps   derivation // what new files are wrapped under
	known   bool       // a file has wraps already
}

// derivation is how a key is derived from the passphrase.
type derivation struct {
	passes    uint32
	kibibytes uint32
	lanes     uint8
	salt      [16]byte
}

// derivationSize is the size of a derivation in a file, version included.
const derivationSize = 1 + 4 + 4 + 1 + 16

func (d derivation) encode() []byte {
	b := []byte{1}
	b = binary.BigEndian.AppendUint32(b, d.passes)
	b = binary.BigEndian.AppendUint32(b, d.kibibytes)
	b = append(b, d.lanes)
	return append(b, d.salt[:]...)
}

func decodeDerivation(b []byte) (derivation, bool) {
	if len(b) < derivationSize || b[0] != 1 {
		return derivation{}, false
	}
	return derivation{
		passes: binary.BigEndian.Uint32(b[1:]), kibibytes: binary.BigEndian.Uint32(b[5:]),
		lanes: b[9], salt: [16]byte(b[10:26]),
	}, true
}

// check bounds what a file may ask for, from below too: one with weaker parameters was not
// made here.
func (d derivation) check() error {
	switch {
	case d.passes < 3 || d.passes > 16:
		return fmt.Errorf("argon2id: %d passes, not 3 to 16", d.passes)
	case d.kibibytes < 64<<10 || d.kibibytes > 512<<10:
		return fmt.Errorf("argon2id: %d KiB of memory, not 64 to 512 MiB", d.kibibytes)
	case d.lanes < 1 || d.lanes > 16:
		return fmt.Errorf("argon2id: %d lanes, not 1 to 16", d.lanes)
	}
	return nil
}

func (k *passphraseKEK) ID() string { return passphraseID }

func (k *passphraseKEK) unwraps() bool { return true }

// knowsSalt reports whether it knows the salt of the files that are there.
func (k *passphraseKEK) knowsSalt() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.known
}

// Format keeps the passphrase out of everything that prints.
func (k *passphraseKEK) Format(s fmt.State, _ rune) { io.WriteString(s, "KEK "+passphraseID) }

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
	d, ok := decodeDerivation(wrapped)
	if !ok {
		return nil, errOpen
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	aead, err := k.derive(ctx, d)
	if err != nil {
		return nil, err
	}
	head, sealed := wrapped[:derivationSize], wrapped[derivationSize:]
	plaintext, err := openWith(aead, sealed, slices.Concat(head, aad))
	if err != nil {
		return nil, err
	}
	if !k.known && d.passes == k.wraps.passes && d.kibibytes == k.wraps.kibibytes && d.lanes == k.wraps.lanes {
		k.wraps, k.known = d, true
	}
	return plaintext, nil
}

// derive returns the cipher for a salt, from memory if it was derived before.
func (k *passphraseKEK) derive(ctx context.Context, d derivation) (cipher.AEAD, error) {
	if aead := k.derived[d]; aead != nil {
		return aead, nil
	}
	if len(k.derived) >= maxSalts && d != k.wraps { // planted files must not keep new ones from being written
		return nil, fmt.Errorf("argon2id: more than %d salts", maxSalts)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	key := argon2.IDKey(k.passphrase(), d.salt[:], d.passes, d.kibibytes, d.lanes, Size)
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	k.derived[d] = aead
	return aead, nil
}
