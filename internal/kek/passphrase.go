package kek

// The KEK that is derived from a passphrase. argon2.go has how.

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Passphrase returns the KEK that is derived from a passphrase with argon2id. The parameters and the salt are
// in each file, and what a file asks for is bounded.
func Passphrase(passphrase []byte, with Argon2id) (KEK, error) {
	if fips140.Enforced() {
		return nil, errors.New("KEK: argon2id, which PassphraseKEK needs, is not allowed in FIPS 140-only mode")
	}
	if len(passphrase) == 0 {
		return nil, errors.New("KEK: the passphrase is empty")
	}
	with = with.orDefault()
	if err := with.check(); err != nil {
		return nil, fmt.Errorf("KEK: %w", err)
	}
	passphrase = bytes.Clone(passphrase)
	k := &passphraseKEK{with: with, deriver: newDeriver(func() []byte { return passphrase })}
	rand.Read(k.salt[:]) // never fails
	return k, nil
}

// passphraseID is the ID of each of them: a hash of the passphrase would be something to guess against.
const passphraseID = "passphrase"

type passphraseKEK struct {
	with    Argon2id
	deriver *deriver

	mu    sync.Mutex // guards below
	salt  [16]byte   // what new entries are wrapped under
	known bool       // a file has it already
}

// The head of an entry: its form, the parameters, the salt and, in the second form, the commitment.
const (
	firstForm      = 1
	secondForm     = 2
	firstHeadSize  = 1 + 4 + 4 + 1 + 16
	secondHeadSize = firstHeadSize + 32
)

// appendHead appends the head of an entry, without a commitment.
func appendHead(b []byte, d derivation) []byte {
	b = append(b, d.form)
	b = binary.BigEndian.AppendUint32(b, d.Time)
	b = binary.BigEndian.AppendUint32(b, d.Memory)
	b = append(b, d.Threads)
	return append(b, d.salt[:]...)
}

// cutHead is the reverse of appendHead, and returns the commitment of the second form too. head is all of what was read.
func cutHead(b []byte) (d derivation, commitment, head []byte, ok bool) {
	size := firstHeadSize
	if len(b) > 0 && b[0] == secondForm {
		size = secondHeadSize
	}
	if len(b) < size || b[0] != firstForm && b[0] != secondForm {
		return derivation{}, nil, nil, false
	}
	d = derivation{
		form:     b[0],
		Argon2id: Argon2id{binary.BigEndian.Uint32(b[1:]), binary.BigEndian.Uint32(b[5:]), b[9]},
		salt:     [16]byte(b[10:firstHeadSize]),
	}
	return d, b[firstHeadSize:size], b[:size:size], true
}

func (k *passphraseKEK) ID() string { return passphraseID }

func (k *passphraseKEK) unwraps() bool { return true }

// isOutdated reports whether an entry was made with other parameters than those of now.
func (k *passphraseKEK) isOutdated(entry []byte) bool {
	d, _, _, ok := cutHead(entry)
	return !ok || d.Argon2id != k.with
}

// commits reports whether an entry commits to its passphrase.
func (k *passphraseKEK) commits(entry []byte) bool { return len(entry) > 0 && entry[0] == secondForm }

// knowsSalt reports whether it knows the salt of the files that are there.
func (k *passphraseKEK) knowsSalt() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.known
}

// useSalt returns the salt for a new entry, which is then one that a file has.
func (k *passphraseKEK) useSalt() [16]byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known = true
	return k.salt
}

// learnSalt has new entries share the salt of one that has opened: a start then derives once for all.
func (k *passphraseKEK) learnSalt(d derivation) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.known && d.Argon2id == k.with {
		k.salt, k.known = d.salt, true
	}
}

// Format keeps the passphrase out of everything that prints.
func (k *passphraseKEK) Format(s fmt.State, _ rune) { io.WriteString(s, "KEK "+passphraseID) }

func (k *passphraseKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	return k.wrapIn(ctx, secondForm, plaintext, aad)
}

func (k *passphraseKEK) wrapIn(ctx context.Context, form byte, plaintext, aad []byte) ([]byte, error) {
	d := derivation{form: form, Argon2id: k.with, salt: k.useSalt()}
	key, err := k.deriver.derive(ctx, d, true)
	if err != nil {
		return nil, err
	}
	head := append(appendHead(nil, d), key.commitment...)
	return append(head, key.aead.Seal(nil, nil, plaintext, slices.Concat(head, aad))...), nil
}

func (k *passphraseKEK) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	d, commitment, head, ok := cutHead(wrapped)
	if !ok {
		return nil, errOpen
	}
	if err := d.checkDemand(k.with); err != nil {
		return nil, fmt.Errorf("%w: %w", errOpen, err)
	}
	key, err := k.deriver.derive(ctx, d, false)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(commitment, key.commitment) != 1 {
		return nil, errOpen
	}
	plaintext, err := openWith(key.aead, wrapped[len(head):], slices.Concat(head, aad))
	if err != nil {
		return nil, err
	}
	k.deriver.opened(key)
	k.learnSalt(d)
	return plaintext, nil
}

// first is the KEK for files of version 1.
func (k *passphraseKEK) first() KEK { return firstPassphraseKEK{k} }

type firstPassphraseKEK struct{ *passphraseKEK }

func (k firstPassphraseKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	return k.wrapIn(ctx, firstForm, plaintext, aad)
}
