package kek

// The KEK whose key is in a file.

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/secret"
)

// File returns the KEK whose key is in a file: 32 raw bytes, or their base64 or hexadecimal text with at
// most one newline at its end. What looks like a mistake is refused: text in place of raw bytes, half a hexadecimal key, a file
// of zeros. What is no regular file, nor a symlink to one, is refused at once.
func File(path string) (KEK, error) {
	key, err := readKey(path)
	if err != nil {
		return nil, err
	}
	k, err := FromKey(key)
	if err != nil {
		return nil, err
	}
	k.(*fileKEK).path = path
	return k, nil
}

// readKey returns the key in a file. The caller overwrites it.
func readKey(path string) ([]byte, error) {
	b, err := durable.ReadFile(path, maxKeyText)
	defer clear(b)
	if errors.Is(err, durable.ErrTooLarge) {
		return nil, fmt.Errorf("KEK: %w: it is not %s", err, keyForms)
	}
	if err != nil {
		return nil, fmt.Errorf("KEK: %w", err)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("KEK: %s: %w", path, err)
	}
	return key, nil
}

// maxKeyText is the size of the longest file that holds a key.
const maxKeyText = 2*Size + 1

// parseKey tells the forms of a KEK file apart by their length. Its errors tell nothing of the content but its form.
func parseKey(b []byte) (key []byte, err error) {
	text := bytes.TrimSuffix(b, []byte("\n"))
	switch raw := len(b) == Size; {
	case (raw || len(text) == Size) && isText(text, isHexDigit):
		return nil, fmt.Errorf("%d hexadecimal digits, which are half a key: a key has %d", len(text), 2*Size)
	case raw && isText(text, isPrintable):
		return nil, fmt.Errorf("%d characters of text instead of random bytes; use PassphraseKEK for a passphrase", len(text))
	}
	key = make([]byte, Size+1) // base64 decodes 44 characters into up to 33 bytes
	n := 0
	switch {
	case len(b) == Size:
		n = copy(key, b)
	case len(text) == hex.EncodedLen(Size):
		n, err = hex.Decode(key, text)
	case len(text) == base64.StdEncoding.EncodedLen(Size):
		n, err = base64.StdEncoding.Strict().Decode(key, text)
	default:
		return nil, fmt.Errorf("%d bytes, which are not %s", len(b), keyForms)
	}
	if err != nil || n != Size { // without the cause, which quotes a character
		clear(key)
		return nil, fmt.Errorf("%d characters that are no key: it has %s", len(text), keyForms)
	}
	if key = key[:Size]; isText(key, func(c byte) bool { return c == key[0] && (c == 0 || c == 0xff) }) {
		return nil, fmt.Errorf("a key of %d equal bytes, as in a file that was never written or was erased", Size)
	}
	return key, nil
}

const keyForms = "32 raw bytes, 64 hexadecimal digits or 44 characters of base64, the text with at most one newline at its end"

func isText(b []byte, is func(byte) bool) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return !is(c) })
}

func isHexDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func isPrintable(c byte) bool { return ' ' <= c && c <= '~' }

// fileKEK derives all that it uses from the key in the file.
type fileKEK struct {
	id, firstID string
	path        string      // of the file; empty if the key came from elsewhere
	aead        cipher.AEAD // under a key of its own
	firstAEAD   cipher.AEAD // under the key itself, as in files of version 1
}

// FromKey returns what File does for a file with these 32 bytes. It takes over key and overwrites it.
func FromKey(key []byte) (KEK, error) {
	defer clear(key)
	first, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	wrapping := derive(key, "keyring v2 kek wrap", Size)
	defer clear(wrapping)
	aead, err := newAEAD(wrapping)
	if err != nil {
		return nil, err
	}
	return &fileKEK{
		id:      idOf(key),
		firstID: "file:" + hex.EncodeToString(derive(key, "keyring v1 kek id", 8)),
		aead:    aead, firstAEAD: first,
	}, nil
}

// idOf is the ID of the KEK with that key.
func idOf(key []byte) string {
	return "file2:" + hex.EncodeToString(derive(key, "keyring v2 kek id", 8))
}

func derive(key []byte, info string, n int) (b []byte) {
	var err error
	if secret.Do(func() { b, err = hkdf.Key(sha256.New, key, nil, info, n) }); err != nil {
		panic("kek: " + err.Error()) // the lengths are constants that HKDF allows
	}
	return b
}

func (k *fileKEK) ID() string { return k.id }

func (k *fileKEK) unwraps() bool { return true }

func (k *fileKEK) Wrap(_ context.Context, plaintext, aad []byte) ([]byte, error) {
	return k.aead.Seal(nil, nil, plaintext, aad), nil
}

// Unwrap opens what was wrapped for files of either version: a KEK around this one may not tell which it was.
func (k *fileKEK) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	b, err := openWith(k.aead, wrapped, aad)
	if err != nil {
		b, err = openWith(k.firstAEAD, wrapped, aad)
	}
	return b, err
}

// Format keeps the cipher out of everything that prints.
func (k *fileKEK) Format(s fmt.State, _ rune) { io.WriteString(s, "KEK "+k.id) }

// first is the KEK for files of version 1.
func (k *fileKEK) first() KEK { return firstFileKEK{k} }

type firstFileKEK struct{ *fileKEK }

func (k firstFileKEK) ID() string { return k.firstID }

func (k firstFileKEK) Wrap(_ context.Context, plaintext, aad []byte) ([]byte, error) {
	return k.firstAEAD.Seal(nil, nil, plaintext, aad), nil
}

// warning says that the file no longer has this KEK, that everybody may read it, or that others than its owner may write it.
// The file of an old KEK may go: it is deleted after Rewrap.
func (k *fileKEK) warning(old bool) string {
	if k.path == "" {
		return ""
	}
	if gone := k.gone(); gone != "" && !old {
		return gone
	}
	info, err := os.Stat(k.path)
	if err != nil || info.Mode().Perm()&0o027 == 0 {
		return "" // one that is gone by now is named next time
	}
	return fmt.Sprintf("others may read or change %s: its mode is %v", k.path, info.Mode())
}

// gone says that the file no longer has this KEK.
func (k *fileKEK) gone() string {
	key, err := readKey(k.path)
	if err != nil {
		return fmt.Sprintf("the KEK is only in this server's memory, and a start of this server needs its file: %v", err)
	}
	defer clear(key)
	if now := idOf(key); now != k.id {
		return fmt.Sprintf("%s now has another KEK, %s: after the next start, this server can't open the key files under %s alone", k.path, now, k.id)
	}
	return ""
}

// HaveFiles reports whether one of the KEKs came from a file.
func (s *Set) HaveFiles() bool {
	return slices.ContainsFunc(s.all, func(k *member) bool {
		f, ok := k.KEK.(*fileKEK)
		return ok && f.path != ""
	})
}

// LookAtFiles looks at the files that have KEKs, and reports whether what Status warns of has changed. A file may be on a
// medium that does not answer: so nothing but this looks at it, and Status tells what it saw.
func (s *Set) LookAtFiles() (changed bool) {
	for _, k := range s.all {
		if f, ok := k.KEK.(*fileKEK); ok && k.warn(f.warning(k.old)) {
			changed = true
		}
	}
	return changed
}

// warn notes what an operator is to be told about the file of a KEK, and reports whether that has changed.
func (k *member) warn(warning string) (changed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed = k.warning != warning
	k.warning = warning
	return changed
}

// warned is what warn has noted.
func (k *member) warned() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.warning
}
