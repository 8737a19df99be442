package keyring_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"example.com/keyring"
)

func passphraseKEK(t testing.TB, passphrase string) keyring.KEK {
	t.Helper()
	kek, err := keyring.PassphraseKEK([]byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	return kek
}

func wrapped(t testing.TB, kek keyring.KEK) []byte {
	t.Helper()
	b, err := kek.Wrap(t.Context(), []byte("material"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPassphraseKEKUnwrapsWhatItWrappedForThatAADOnly(t *testing.T) {
	kek := passphraseKEK(t, "correct horse")
	b := wrapped(t, kek)
	for _, k := range []keyring.KEK{kek, passphraseKEK(t, "correct horse")} {
		if got, err := k.Unwrap(t.Context(), b, []byte("aad")); err != nil || string(got) != "material" {
			t.Errorf("%q, %v", got, err)
		}
	}
	refuse := func(what string, kek keyring.KEK, b []byte, aad string) {
		t.Helper()
		if got, err := kek.Unwrap(t.Context(), b, []byte(aad)); err != keyring.ErrDecrypt || got != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	refuse("another AAD", kek, b, "aaD")
	refuse("another passphrase", passphraseKEK(t, "correct hoarse"), b, "aad")
	for i := range b {
		refuse("truncated", kek, b[:i], "aad")
	}
	for i := 25; i < len(b); i++ { // the last byte of the salt, and all behind it
		flipped := bytes.Clone(b)
		flipped[i] ^= 1
		refuse("a bit flipped", kek, flipped, "aad")
	}
}

// TestPassphraseIsDerivedOnce for all files of a keystore: after the first one there is no
// derivation left that a context which has ended would stop.
func TestPassphraseIsDerivedOnce(t *testing.T) {
	first := passphraseKEK(t, "correct horse")
	files := [][]byte{wrapped(t, first), wrapped(t, first)}
	next := passphraseKEK(t, "correct horse")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := next.Unwrap(ended, files[0], []byte("aad")); !errors.Is(err, context.Canceled) {
		t.Errorf("it derived after the context had ended: %v", err)
	}
	if _, err := next.Unwrap(t.Context(), files[0], []byte("aad")); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Unwrap(ended, files[1], []byte("aad")); err != nil {
		t.Errorf("the second file is derived for anew: %v", err)
	}
	if b, err := next.Wrap(ended, nil, nil); err != nil || !bytes.Equal(b[:26], files[0][:26]) {
		t.Errorf("a new file has another salt: %v", err)
	}
}

// TestPassphraseFileDemandsNoMore than the bounds: nothing is derived, and no memory taken.
func TestPassphraseFileDemandsNoMore(t *testing.T) {
	kek := passphraseKEK(t, "correct horse")
	good := wrapped(t, kek)
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
		_, err := kek.Unwrap(t.Context(), b, []byte("aad"))
		runtime.ReadMemStats(&after)
		if err == nil || errors.Is(err, keyring.ErrDecrypt) || after.TotalAlloc-before.TotalAlloc > 1<<20 {
			t.Errorf("%s: %v, %d bytes", name, err, after.TotalAlloc-before.TotalAlloc)
		}
	}
	if _, err := keyring.PassphraseKEK(nil); err == nil {
		t.Error("an empty passphrase")
	}
}
