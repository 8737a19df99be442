package keyring_test

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

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"golang.org/x/crypto/argon2"
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

// TestPassphraseIsDerivedOnceForThousandsOfFiles, though they are read side by side.
func TestPassphraseIsDerivedOnceForThousandsOfFiles(t *testing.T) {
	disk, first := keyringtest.NewDisk(), passphraseKEK(t, "correct horse")
	const files = 2000
	for i := range files {
		plantKey(t, disk, keyring.KeyID{1, byte(i >> 8), byte(i)}, first)
	}
	next := passphraseKEK(t, "correct horse")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := openStore(t, disk, []keyring.KEK{next}, nil)
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / (64 << 20); n != 1 {
		t.Errorf("memory for %d derivations", n)
	}
	for i := range files {
		if !s.Confirm(keyring.KeyID{1, byte(i >> 8), byte(i)}) {
			t.Fatalf("file %d is not held", i)
		}
	}
}

// TestPassphraseFilesShareOneSalt also where another KEK opens them: each salt is a derivation on
// the day when the passphrase is needed, and there is a bound on them.
func TestPassphraseFilesShareOneSalt(t *testing.T) {
	disk, a := keyringtest.NewDisk(), newKMS("a")
	for i := range 3 {
		s := openStore(t, disk, []keyring.KEK{a, passphraseKEK(t, "correct horse")}, nil)
		if _, err := put(t, s, keyring.KeyID{byte(i)}); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	salts := map[string]bool{}
	for _, content := range keyFiles(disk) {
		f, err := nks.DecodeFile([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		salts[string(f.Wrapped[1].Ciphertext[:26])] = true
	}
	if len(salts) != 1 {
		t.Errorf("%d salts", len(salts))
	}
}

// TestPassphraseSaltsAreBounded: files that were made to take time may have each its own.
func TestPassphraseSaltsAreBounded(t *testing.T) {
	kek := passphraseKEK(t, "correct horse")
	good := wrapped(t, kek)
	var err error
	tried := 0
	for ; tried < 100 && !(err != nil && strings.Contains(err.Error(), "salts")); tried++ {
		b := bytes.Clone(good)
		b[25] ^= byte(tried + 1)
		_, err = kek.Unwrap(t.Context(), b, []byte("aad"))
	}
	if tried > 16 {
		t.Errorf("%d derivations for files that were made nowhere", tried)
	}
	if got, err := kek.Unwrap(t.Context(), good, []byte("aad")); err != nil || string(got) != "material" {
		t.Errorf("its own: %q, %v", got, err)
	}
	if _, err := kek.Wrap(t.Context(), nil, nil); err != nil {
		t.Errorf("a new file: %v", err)
	}
}

// TestPassphraseSaltsOfOthersLeaveRoomForItsOwn: a start may meet planted files before it has wrapped
// anything, and new keys have to be written all the same.
func TestPassphraseSaltsOfOthersLeaveRoomForItsOwn(t *testing.T) {
	t.Parallel()
	kek := passphraseKEK(t, "correct horse")
	foreign := append([]byte{1, 0, 0, 0, 3, 0, 1, 0, 0, 4}, make([]byte, 16+12+16)...) // version, passes, KiB, lanes, salt
	full := false
	for i := range 100 {
		foreign[10] = byte(i)
		if _, err := kek.Unwrap(t.Context(), foreign, nil); !errors.Is(err, keyring.ErrDecrypt) {
			full = true // no more of them
			break
		}
	}
	if !full {
		t.Fatal("nothing bounds the salts")
	}
	if b, err := kek.Wrap(t.Context(), []byte("material"), nil); err != nil {
		t.Error(err)
	} else if got, err := kek.Unwrap(t.Context(), b, nil); err != nil || string(got) != "material" {
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
	if got, err := passphraseKEK(t, "correct horse").Unwrap(t.Context(), file, []byte("aad")); err != nil || string(got) != "material" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestKEKsPrintTheirIDs, and no passphrase, identity or cipher.
func TestKEKsPrintTheirIDs(t *testing.T) {
	identity := ageIdentity(t)
	secrets := [][]byte{[]byte("correct horse battery"), []byte(identity.String())}
	passphrase := passphraseKEK(t, string(secrets[0]))
	wrapped(t, passphrase) // so that it has a cipher
	for name, kek := range map[string]keyring.KEK{"passphrase": passphrase, "age": ageKEK(t, identity, identity)} {
		for _, v := range []any{kek, &kek, []keyring.KEK{kek}, struct{ k keyring.KEK }{kek}} {
			text := printed(v)
			if n := leaks([]byte(text), secrets); n > 0 || strings.Contains(text, decimals(secrets[0][:8])[0]) {
				t.Errorf("%s prints %d secrets: %s", name, n, text)
			}
		}
		if !strings.Contains(printed(kek), "KEK "+kek.ID()) {
			t.Errorf("%s prints %s", name, printed(kek))
		}
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
