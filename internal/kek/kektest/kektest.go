// Package kektest has KEKs for tests: a KMS that fails when it is told to, and those that come with the library
// without the errors.
package kektest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"example.com/keyring/internal/kek"
	"filippo.io/age"
)

// KMS is a KEK that a test can make fail, hang, or only wrap.
type KMS struct {
	Name  string  // its ID
	Inner kek.KEK // what wraps for it

	mu       sync.Mutex // guards below
	Err      error      // of both calls
	NoWrap   error      // of Wrap
	NoUnwrap error      // of Unwrap
	Hang     bool       // until the context ends
	calls    int
}

// New returns a KMS that answers.
func New(name string) *KMS { return &KMS{Name: name, Inner: kek.Inline()} }

// ID is its name.
func (k *KMS) ID() string { return k.Name }

// Set changes how it behaves.
func (k *KMS) Set(change func(*KMS)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

// Calls counts the calls so far, whatever came of them.
func (k *KMS) Calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls
}

// answer waits or fails as the test wants.
func (k *KMS) answer(ctx context.Context, ofCall func(*KMS) error) error {
	k.mu.Lock()
	k.calls++
	hang, err := k.Hang, errors.Join(k.Err, ofCall(k))
	k.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

// Wrap binds what it wraps to the name too.
func (k *KMS) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if err := k.answer(ctx, func(k *KMS) error { return k.NoWrap }); err != nil {
		return nil, err
	}
	return k.Inner.Wrap(ctx, plaintext, append([]byte(k.Name), aad...))
}

// Unwrap reverses Wrap.
func (k *KMS) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if err := k.answer(ctx, func(k *KMS) error { return k.NoUnwrap }); err != nil {
		return nil, err
	}
	return k.Inner.Unwrap(ctx, wrapped, append([]byte(k.Name), aad...))
}

// ErrDown is the error of a KMS that is down.
var ErrDown = errors.New("the KMS is down")

// Outages are the ways in which a KMS does not answer.
var Outages = map[string]func(*KMS){
	"fails": func(k *KMS) { k.Err = ErrDown },
	"hangs": func(k *KMS) { k.Hang = true },
}

// Answers makes it answer again.
func Answers(k *KMS) { k.Err, k.Hang, k.NoWrap, k.NoUnwrap = nil, false, nil, nil }

// Picky is a KMS that does not say which ciphertext another KEK has made, only that something is wrong.
type Picky struct{ kek.KEK }

// Unwrap gives every error the same text.
func (k Picky) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	b, err := k.KEK.Unwrap(ctx, wrapped, aad)
	if err != nil {
		err = errors.New("400 Bad Request")
	}
	return b, err
}

// Garbler is a KEK that authenticates nothing: with another key something else comes out.
type Garbler struct {
	Name string
	Key  byte
}

// ID is its name.
func (g Garbler) ID() string { return g.Name }

// Wrap changes every byte.
func (g Garbler) Wrap(_ context.Context, plaintext, _ []byte) ([]byte, error) {
	out := make([]byte, len(plaintext))
	for i, b := range plaintext {
		out[i] = b ^ g.Key
	}
	return out, nil
}

// Unwrap changes them again.
func (g Garbler) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	return g.Wrap(ctx, wrapped, aad)
}

// CountingKey is 0, 1, 2 to 31.
func CountingKey() []byte {
	key := make([]byte, kek.Size)
	for i := range key {
		key[i] = byte(i)
	}
	return key
}

// WriteFile writes the file of a KEK, and returns its path.
func WriteFile(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// File is the KEK of a file with that content.
func File(t testing.TB, content []byte) kek.KEK {
	t.Helper()
	return must(kek.File(WriteFile(t, content)))(t)
}

// NewDown is a KMS that does not answer.
func NewDown(name string) *KMS {
	k := New(name)
	k.Err = ErrDown
	return k
}

// NewVault is a KMS named vault with a key of its own: two of them are told apart by nothing but what they open.
func NewVault(t testing.TB, key byte) *KMS {
	t.Helper()
	k := New("vault")
	k.Inner = File(t, bytes.Repeat([]byte{key}, 32))
	return k
}

// Passphrase is the KEK of a passphrase.
func Passphrase(t testing.TB, passphrase string) kek.KEK {
	t.Helper()
	return must(kek.Passphrase([]byte(passphrase), kek.Argon2id{}))(t)
}

// Identity is a new age identity.
func Identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

// Age is the KEK that wraps to an identity's recipient, and unwraps with the others.
func Age(t testing.TB, to *age.X25519Identity, with ...age.Identity) kek.KEK {
	t.Helper()
	return must(kek.Age([]age.Recipient{to.Recipient()}, with...))(t)
}

func must(k kek.KEK, err error) func(testing.TB) kek.KEK {
	return func(t testing.TB) kek.KEK {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
}
