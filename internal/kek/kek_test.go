package kek_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/seal"
	"filippo.io/age"
)

func TestKEKUnwrapsWhatItWrappedForThatAADOnly(t *testing.T) {
	another := kektest.File(t, bytes.Repeat([]byte{7}, 32))
	identity := kektest.Identity(t)
	for name, k := range map[string]kek.KEK{
		"inline": kek.Inline(), "file": kektest.File(t, kektest.CountingKey()),
		"age": kektest.Age(t, identity, identity),
	} {
		for _, n := range []int{0, 1, 89, 1300} {
			plaintext, aad := bytes.Repeat([]byte{0xa5}, n), []byte("aad")
			wrapped, err := k.Wrap(t.Context(), plaintext, aad)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := k.Unwrap(t.Context(), wrapped, aad); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%s, %d bytes: %x, %v", name, n, got, err)
			}
			again, err := k.Wrap(t.Context(), plaintext, aad)
			if err != nil || bytes.Equal(wrapped, again) {
				t.Errorf("%s, %d bytes: wrapped twice, it is the same (%v)", name, n, err)
			}
			refuse := func(what string, k kek.KEK, wrapped, aad []byte) {
				t.Helper()
				if got, err := k.Unwrap(t.Context(), wrapped, aad); err != seal.ErrOpen || got != nil {
					t.Fatalf("%s, %d bytes, %s: %x, %v", name, n, what, got, err)
				}
			}
			refuse("no AAD", k, wrapped, nil)
			refuse("another AAD", k, wrapped, []byte("aaD"))
			refuse("longer", k, append(bytes.Clone(wrapped), 0), aad)
			refuse("nil", k, nil, aad)
			if name == "file" {
				refuse("another key", another, wrapped, aad)
			}
			for i := range wrapped {
				refuse("truncated", k, wrapped[:i], aad)
				if n < 100 {
					flipped := bytes.Clone(wrapped)
					flipped[i] ^= 1 << (i % 8)
					refuse("a bit flipped", k, flipped, aad)
				}
			}
		}
	}
}

func TestFileKEKReadsThreeForms(t *testing.T) {
	key := kektest.CountingKey()
	wrapped, err := kektest.File(t, key).Wrap(t.Context(), []byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string][]byte{
		"raw":                []byte(key),
		"base64":             []byte(base64.StdEncoding.EncodeToString(key)),
		"base64 and newline": []byte(base64.StdEncoding.EncodeToString(key) + "\n"),
		"hex":                []byte(hex.EncodeToString(key)),
		"hex and newline":    []byte(hex.EncodeToString(key) + "\n"),
		"upper-case hex":     []byte(strings.ToUpper(hex.EncodeToString(key))),
	}
	for name, content := range forms {
		k := kektest.File(t, content)
		if k.ID() != "file2:d536c7e5218cb682" { // HKDF-SHA256, made with another program
			t.Errorf("%s: the ID is %s", name, k.ID())
		}
		if got, err := k.Unwrap(t.Context(), wrapped, nil); err != nil || string(got) != "data" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	endsInNewline := append(bytes.Repeat([]byte{7}, 31), '\n')
	if kektest.File(t, endsInNewline).ID() == kektest.File(t, bytes.Repeat([]byte{7}, 32)).ID() {
		t.Error("a raw key that ends in a newline is read as another")
	}
}

func TestFileKEKRefusesOtherFilesWithoutTellingWhatIsInThem(t *testing.T) {
	secret := "Zm9vYmFyYmF6"
	hints := map[string]string{ // of what it looks like
		"half a hex key": "half a key", "half one and newline": "half a key", "a passphrase": "PassphraseKEK", "zeros": "equal bytes", "31 bytes": "32 raw bytes",
	}
	h := hex.EncodeToString(kektest.CountingKey())
	b := base64.StdEncoding.EncodeToString(kektest.CountingKey())
	for name, content := range map[string]string{
		"empty":                    "",
		"a newline":                "\n",
		"31 bytes":                 strings.Repeat("k", 31),
		"33 bytes":                 strings.Repeat("k", 33),
		"32 bytes and newline":     strings.Repeat("k", 32) + "\n",
		"hex and two newlines":     h + "\n\n",
		"hex and CRLF":             h + "\r\n",
		"hex, one digit bad":       secret + h[len(secret):63] + "g",
		"hex, 66 digits":           h + "00",
		"base64, two newlines":     b + "\n\n",
		"base64 without its =":     b[:43],
		"base64, stray bits":       secret + b[len(secret):42] + "9=",
		"base64 of 33 bytes":       base64.StdEncoding.EncodeToString(append(kektest.CountingKey(), 0)),
		"base64 of 31 bytes":       base64.StdEncoding.EncodeToString(kektest.CountingKey()[:31]),
		"base64url":                strings.Repeat("_", 43) + "=",
		"a leading space":          " " + h,
		"a PEM file":               "-----BEGIN PRIVATE KEY-----\n" + secret,
		"a megabyte":               strings.Repeat(secret, 1<<17),
		"the key, and then some":   h + "\n" + secret,
		"a passphrase and newline": "correct horse battery staple 12\n",
		"a passphrase":             "correct horse battery staple 123",
		"half a hex key":           strings.Repeat("0f", 16),
		"half one and newline":     strings.Repeat("0F", 16) + "\n",
		"zeros":                    strings.Repeat("\x00", 32),
		"ones":                     strings.Repeat("\xff", 32),
		"zeros in hex":             strings.Repeat("00", 32) + "\n",
		"zeros in base64":          strings.Repeat("A", 43) + "=",
	} {
		path := kektest.WriteFile(t, []byte(content))
		k, err := kek.File(path)
		if err == nil || k != nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		rest := strings.ReplaceAll(err.Error(), path, "")
		if rest == err.Error() || strings.Contains(rest, secret) || strings.Contains(rest, h[:8]) || strings.Contains(rest, "kkk") || strings.Contains(rest, "horse") {
			t.Errorf("%s: the error is %q", name, err)
		}
		if !strings.Contains(rest, hints[name]) {
			t.Errorf("%s: the error is %q, and does not say %q", name, err, hints[name])
		}
	}
	if _, err := kek.File(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestFileKEKIsInAFile, or in one that a symlink names, as Kubernetes mounts secrets. Nothing else is waited for.
func TestFileKEKIsInAFile(t *testing.T) {
	path := kektest.WriteFile(t, kektest.CountingKey())
	symlink, fifo := path+".symlink", path+".fifo"
	if err := errors.Join(os.Symlink(path, symlink), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := kek.File(symlink); err != nil {
		t.Errorf("a symlink: %v", err)
	}
	for _, path := range []string{fifo, "/dev/zero", t.TempDir()} {
		if _, err := kek.File(path); !errors.Is(err, durable.ErrNotRegular) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := kek.File(path); !errors.Is(err, durable.ErrTooLarge) {
		t.Errorf("a huge file: %v", err)
	}
}

func TestFileKEKIDIsOfTheKeyAndNotTheKey(t *testing.T) {
	key := kektest.CountingKey()
	a, b := kektest.File(t, key), kektest.File(t, key)
	if a.ID() != b.ID() {
		t.Errorf("one key, two IDs: %s, %s", a.ID(), b.ID())
	}
	key[31] ^= 1
	if kektest.File(t, key).ID() == a.ID() {
		t.Error("two keys, one ID")
	}
	for i := range len(key) - 2 {
		if strings.Contains(a.ID(), hex.EncodeToString(kektest.CountingKey()[i:i+3])) {
			t.Errorf("the ID %s has bytes of the key in it", a.ID())
		}
	}
}

// sealedUnder is what AES-256-GCM seals, behind the nonce.
func sealedUnder(t testing.TB, key, nonce, plaintext, aad []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm.Seal(bytes.Clone(nonce), nonce, plaintext, aad)
}

// TestFormatsAreThoseOfTheDoc makes what each KEK unwraps by hand.
func TestFormatsAreThoseOfTheDoc(t *testing.T) {
	key, material, aad := kektest.CountingKey(), []byte("material"), []byte("aad")
	nonce := []byte("twelve bytes")
	sealed := sealedUnder(t, key, nonce, material, aad)
	identity := kektest.Identity(t)
	var file bytes.Buffer
	w, err := age.Encrypt(&file, identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(aad)
	if _, err := w.Write(slices.Concat([]byte{1}, sum[:], material)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// HKDF-SHA256 of the key, made with another program
	derived, err := hex.DecodeString("fb267c6c54d6e3ec10575b7253c61d9f18fc20cd7d1ff4cbdc29a65701fabf3b")
	if err != nil {
		t.Fatal(err)
	}
	name := sha256.Sum256([]byte(identity.Recipient().String() + "\n"))
	for _, c := range []struct {
		k       kek.KEK
		id      string
		wrapped []byte
	}{
		{kek.Inline(), "inline", append(bytes.Clone(key), sealed...)},
		{kektest.File(t, key), "file2:d536c7e5218cb682", sealedUnder(t, derived, nonce, material, aad)},
		{kek.First(kektest.File(t, key)), "file:74d8b8ddbeaf0f6d", sealed},
		{kektest.File(t, key), "file2:d536c7e5218cb682", sealed}, // under the key itself, as version 1 of files has it
		{kektest.Age(t, identity, identity), "age:" + hex.EncodeToString(name[:8]), file.Bytes()},
	} {
		if got, err := c.k.Unwrap(t.Context(), c.wrapped, aad); err != nil || !bytes.Equal(got, material) || c.k.ID() != c.id {
			t.Errorf("%s: %q, %v", c.k.ID(), got, err)
		}
	}
}
