package kek_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/seal"
	"golang.org/x/crypto/argon2"
)

func wrapped(t testing.TB, k kek.KEK) []byte {
	t.Helper()
	b, err := k.Wrap(t.Context(), []byte("material"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPassphraseKEKUnwrapsWhatItWrappedForThatAADOnly(t *testing.T) {
	k := kektest.Passphrase(t, "correct horse")
	b := wrapped(t, k)
	for _, k := range []kek.KEK{k, kektest.Passphrase(t, "correct horse")} {
		if got, err := k.Unwrap(t.Context(), b, []byte("aad")); err != nil || string(got) != "material" {
			t.Errorf("%q, %v", got, err)
		}
	}
	refuse := func(what string, k kek.KEK, b []byte, aad string) {
		t.Helper()
		if got, err := k.Unwrap(t.Context(), b, []byte(aad)); err != seal.ErrOpen || got != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	refuse("another AAD", k, b, "aaD")
	refuse("another passphrase", kektest.Passphrase(t, "correct hoarse"), b, "aad")
	for i := range b {
		refuse("truncated", k, b[:i], "aad")
	}
	for i := 25; i < len(b); i++ { // the last byte of the salt, and all behind it
		flipped := bytes.Clone(b)
		flipped[i] ^= 1
		refuse("a bit flipped", k, flipped, "aad")
	}
}

// TestPassphraseIsDerivedOnce for all files of a keystore: after the first one there is no
// derivation left that a context which has ended would stop.
func TestPassphraseIsDerivedOnce(t *testing.T) {
	first := kektest.Passphrase(t, "correct horse")
	files := [][]byte{wrapped(t, first), wrapped(t, first)}
	next := kektest.Passphrase(t, "correct horse")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := next.Unwrap(ended, files[0], []byte("aad")); !errors.Is(err, context.Canceled) {
		t.Errorf("it derived after the context had ended: %v", err)
	}
	if _, err := next.Unwrap(t.Context(), files[0], []byte("aad")); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Unwrap(ended, files[1], []byte("aad")); err != nil {
		t.Errorf("the second file is derived for again: %v", err)
	}
	if b, err := next.Wrap(ended, nil, nil); err != nil || !bytes.Equal(b[:26], files[0][:26]) {
		t.Errorf("a new file has another salt: %v", err)
	}
}

// TestPassphraseSaltsAreBounded: files that were made to take time may each have a salt.
func TestPassphraseSaltsAreBounded(t *testing.T) {
	k := kektest.Passphrase(t, "correct horse")
	good := wrapped(t, k)
	var err error
	tried := 0
	for ; tried < 100 && !(err != nil && strings.Contains(err.Error(), "salts")); tried++ {
		b := bytes.Clone(good)
		b[25] ^= byte(tried + 1)
		_, err = k.Unwrap(t.Context(), b, []byte("aad"))
	}
	if tried > 16 {
		t.Errorf("%d derivations for files that were made nowhere", tried)
	}
	if got, err := k.Unwrap(t.Context(), good, []byte("aad")); err != nil || string(got) != "material" {
		t.Errorf("the first file: %q, %v", got, err)
	}
	if _, err := k.Wrap(t.Context(), nil, nil); err != nil {
		t.Errorf("a new file: %v", err)
	}
}

// TestPassphraseSaltsOfOthersLeaveRoomForItsOwn: a start may meet planted files before it has wrapped
// anything, and new keys have to be written all the same.
func TestPassphraseSaltsOfOthersLeaveRoomForItsOwn(t *testing.T) {
	t.Parallel()
	k := kektest.Passphrase(t, "correct horse")
	foreign := append([]byte{1, 0, 0, 0, 3, 0, 1, 0, 0, 4}, make([]byte, 16+12+16)...) // version, passes, KiB, lanes, salt
	full := false
	for i := range 100 {
		foreign[10] = byte(i)
		if _, err := k.Unwrap(t.Context(), foreign, nil); !errors.Is(err, seal.ErrOpen) {
			full = true // no more of them
			break
		}
	}
	if !full {
		t.Fatal("nothing bounds the salts")
	}
	if b, err := k.Wrap(t.Context(), []byte("material"), nil); err != nil {
		t.Error(err)
	} else if got, err := k.Unwrap(t.Context(), b, nil); err != nil || string(got) != "material" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestPassphraseParametersAreTheFiles makes a file with others than PassphraseKEK does, by hand.
func TestPassphraseParametersAreTheFiles(t *testing.T) {
	head := []byte{1, 0, 0, 0, 4, 0, 1, 4, 0, 2} // version, passes, KiB, lanes
	head = append(head, "a salt of 16 b.."...)
	block, err := aes.NewCipher(argon2.IDKey([]byte("correct horse"), head[10:], 4, 65<<10, 2, 32))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := []byte("twelve bytes")
	file := slices.Concat(head, nonce, gcm.Seal(nil, nonce, []byte("material"), append(bytes.Clone(head), "aad"...)))
	if got, err := kektest.Passphrase(t, "correct horse").Unwrap(t.Context(), file, []byte("aad")); err != nil || string(got) != "material" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestPassphraseFileDemandsNoMore than the bounds: nothing is derived, and no memory taken.
func TestPassphraseFileDemandsNoMore(t *testing.T) {
	k := kektest.Passphrase(t, "correct horse")
	good := wrapped(t, k)
	for name, alter := range map[string]func(b []byte){
		"4 TiB":     func(b []byte) { binary.BigEndian.PutUint32(b[5:], 1<<32-1) },
		"513 MiB":   func(b []byte) { binary.BigEndian.PutUint32(b[5:], 513<<10) },
		"63 MiB":    func(b []byte) { binary.BigEndian.PutUint32(b[5:], 63<<10) },
		"2 passes":  func(b []byte) { binary.BigEndian.PutUint32(b[1:], 2) },
		"17 passes": func(b []byte) { binary.BigEndian.PutUint32(b[1:], 17) },
		"no lanes":  func(b []byte) { b[9] = 0 },
		"17 lanes":  func(b []byte) { b[9] = 17 },
	} {
		b := bytes.Clone(good)
		alter(b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := k.Unwrap(t.Context(), b, []byte("aad"))
		runtime.ReadMemStats(&after)
		if err == nil || errors.Is(err, seal.ErrOpen) || after.TotalAlloc-before.TotalAlloc > 1<<20 {
			t.Errorf("%s: %v, %d bytes", name, err, after.TotalAlloc-before.TotalAlloc)
		}
	}
	if _, err := kek.Passphrase(nil); err == nil {
		t.Error("an empty passphrase")
	}
}
