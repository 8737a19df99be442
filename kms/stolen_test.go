package kms_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/v2/aead"
)

// TestStolenDiskOpensNothing: somebody has a copy of everything that a server had in its directory,
// and not the KMS. With escrow beside, the offline identity opens all of it, also when the KMS is
// gone for good.
func TestStolenDiskOpensNothing(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	escrow := func(with ...age.Identity) keyring.KEK {
		k, err := keyring.AgeKEK([]age.Recipient{identity.Recipient()}, with...)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	another := aead.NewWrapper()
	if _, err := another.SetConfig(t.Context(), wrapping.WithKeyId("the-key"), aead.WithKey(bytes.Repeat([]byte{8}, 32))); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ kek, anothers keyring.KEK }{
		"aead":    {newKEK(t, "kms", newAEAD(t)), newKEK(t, "kms", another)},
		"transit": {newKEK(t, "kms", newTransit(t, newVault(t).URL)), newKEK(t, "kms", newTransit(t, newVault(t).URL))},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			dir, sealed := live(t, ctx, c.kek, escrow())
			secrets := append(keysIn(t, dir, c.kek), aeadKey)
			if n := search(t, dir, secrets...); n > 0 {
				t.Errorf("%d secrets in the files", n)
			}
			for how, keks := range map[string][]keyring.KEK{
				"inline": {keyring.InlineKEK(), escrow()}, "another of its kind": {c.anothers, escrow()},
			} {
				n := startNode(t, ctx, copyDir(t, dir), keks)
				if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil { // by then raft has all that it had
					t.Fatal(err)
				}
				for _, b := range sealed {
					if got, err := n.Decrypt(ctx, b, nil); !errors.Is(err, keyring.ErrKeyMissing) {
						t.Errorf("%s: %q, %v", how, got, err)
					}
				}
				shut(t, n)
			}
			n := startNode(t, ctx, copyDir(t, dir), []keyring.KEK{c.anothers, escrow()}, escrow(identity))
			defer shut(t, n)
			if err := n.Keyring().WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			for _, b := range sealed {
				if got, err := n.Decrypt(ctx, b, nil); err != nil || string(got) != "data" {
					t.Errorf("with the identity: %q, %v", got, err)
				}
			}
		})
	}
}

// live has a server seal something under two keys, and returns its directory.
func live(t *testing.T, ctx context.Context, keks ...keyring.KEK) (dir string, sealed [][]byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	n := openNode(t, ctx, dir, keks...)
	defer shut(t, n)
	for range 2 {
		b, err := n.Encrypt(ctx, []byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, b)
		if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return dir, sealed
}

// keysIn returns the root keys and signing keys in a directory's key files.
func keysIn(t *testing.T, dir string, kek keyring.KEK) (secrets [][]byte) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "keystore", "*.nks.json"))
	if err != nil || len(names) != 3 {
		t.Fatalf("%d key files, %v", len(names), err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := nks.DecodeFile(b)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(f.Wrapped, func(w nks.Wrapped) bool { return w.KEK == kek.ID() })
		plaintext, err := kek.Unwrap(t.Context(), f.Wrapped[i].Ciphertext, f.AAD())
		if err != nil {
			t.Fatal(err)
		}
		m, err := nks.Decode(plaintext)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, bytes.Clone(m.Root()[:]), bytes.Clone(m.Signing()))
	}
	return secrets
}

// search returns how many of the secrets are in the files of a directory, raw, in hex or in
// base64 at any alignment.
func search(t *testing.T, dir string, secrets ...[]byte) (found int) {
	t.Helper()
	var spelt [][]byte
	for _, s := range secrets {
		s = s[len(s)/2-12 : len(s)/2+12] // enough, and nothing of an encoding around it
		spelt = append(spelt, s, []byte(hex.EncodeToString(s)), bytes.ToUpper([]byte(hex.EncodeToString(s))))
		for skip := range 3 {
			whole := s[skip : skip+21]
			spelt = append(spelt, []byte(base64.StdEncoding.EncodeToString(whole)), []byte(base64.URLEncoding.EncodeToString(whole)))
		}
	}
	files := 0
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, path))
		for _, s := range spelt {
			if bytes.Contains(b, s) {
				found++
			}
		}
		files++
		return err
	})
	if err != nil || files < 3+2 {
		t.Errorf("%d files searched, %v", files, err)
	}
	return found
}

func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestSearchFindsWhatIsThere in every spelling.
func TestSearchFindsWhatIsThere(t *testing.T) {
	secret := []byte("0123456789abcdef\x00\xff\xfe\xfd456789abcdef")
	for i, text := range []string{
		"xy" + string(secret), hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(append([]byte("x"), secret...)),
		base64.RawURLEncoding.EncodeToString(append([]byte("xy"), secret...)),
	} {
		dir := t.TempDir()
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if search(t, dir, secret) == 0 {
			t.Errorf("spelling %d is not found", i)
		}
	}
}
