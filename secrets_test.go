package keyring_test

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
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

func TestLeaksFindsEverySpelling(t *testing.T) {
	secret := []byte("0123456789abcdef\x00\xff\xfe\xfd456789abcdef")
	for _, before := range []string{"", "x", "xy"} {
		for _, text := range []string{
			before + string(secret) + "z",
			hex.EncodeToString([]byte(before + string(secret) + "z")),
			base64.StdEncoding.EncodeToString([]byte(before + string(secret) + "z")),
			base64.RawURLEncoding.EncodeToString([]byte(before + string(secret) + "z")),
		} {
			if keyringtest.Leaks([]byte(text), [][]byte{secret}) != 1 {
				t.Errorf("not found in %q", text)
			}
		}
	}
	if keyringtest.Leaks([]byte("nothing here"), [][]byte{secret}) != 0 {
		t.Error("found where it is not")
	}
}

// TestI1MaterialIsInKeyFilesOnly searches all that a real cluster leaves behind: bolt files, raft
// snapshots, everything else in its directories, and its logs at the finest level.
func TestI1MaterialIsInKeyFilesOnly(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var logs keyringtest.Log
	wrapping := []byte("a key of 32 bytes, in a file...\x01")
	file := filepath.Join(t.TempDir(), "kek")
	if err := os.WriteFile(file, wrapping, 0o600); err != nil {
		t.Fatal(err)
	}
	kek, err := keyring.FileKEK(file)
	if err != nil {
		t.Fatal(err)
	}
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		if cfg.ID == "s1" {
			cfg.KEKs = []keyring.KEK{kek, keyring.InlineKEK()}
		}
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &logs})
		cfg.Tokens.Algorithm = "ES256"
	})
	c.Ready(ctx)
	for id, n := range c.Nodes {
		for range 2 {
			if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
			if _, err := n.Sign(ctx, keyringtest.ClaimsForMe()); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
		}
	}
	secrets := [][]byte{wrapping}
	for id, n := range c.Nodes {
		keyringtest.AwaitHolders(n.Keyring(), n.Keyring().Keys()[0].ID, 3)
		secrets = append(secrets, secretsOf(n.Keyring(), func(name string) ([]byte, error) {
			return os.ReadFile(filepath.Join(c.Dirs[id], "keystore", name))
		})...)
		if err := keyring.Raft(n.Keyring()).Snapshot().Error(); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	for id := range c.Nodes { // a restart logs, and syncs what bolt has
		c.Restart(ctx, id)
	}
	c.Ready(ctx)
	c.Close()
	clear(c.Nodes)

	if len(secrets) < 3*7*3 {
		t.Fatalf("only %d secrets to search for", len(secrets))
	}
	inKeyFiles, searched := searchFiles(t, c.Dirs, secrets)
	if n := keyringtest.Leaks(logs.Bytes(), secrets); n > 0 {
		t.Errorf("%d secrets in the logs", n)
	}
	if inKeyFiles == 0 || searched < 3*(7+3) || len(logs.Bytes()) < 1000 {
		t.Errorf("the search has found nothing where it had to: %d in key files, %d files, %d bytes of logs",
			inKeyFiles, searched, len(logs.Bytes()))
	}
}

// searchFiles wants no secret in any other file than a key file. It counts those in key files, and the files.
func searchFiles(t *testing.T, dirs map[raft.ServerID]string, secrets [][]byte) (inKeyFiles, searched int) {
	t.Helper()
	for id, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found := keyringtest.Leaks(b, secrets)
			searched++
			if strings.HasSuffix(path, ".nks.json") {
				inKeyFiles += found
			} else if found > 0 {
				t.Errorf("%s: %d secrets in %s", id, found, filepath.Base(path))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return inKeyFiles, searched
}

// TestStolenDiskOpensNothing: somebody has a copy of everything that a server had in its directory,
// and not the key-file, the passphrase, or the KMS. With escrow beside, the offline identity
// opens all of it.
func TestStolenDiskOpensNothing(t *testing.T) {
	identity := kektest.Identity(t)
	kinds := map[string]struct {
		kek, anothers keyring.KEK
		secret        []byte // what the KEK is made of
	}{
		"key-file":   {kektest.File(t, kektest.CountingKey()), kektest.File(t, bytes.Repeat([]byte{9}, 32)), kektest.CountingKey()},
		"passphrase": {kektest.Passphrase(t, "correct horse battery staple"), kektest.Passphrase(t, "correct hoarse"), []byte("correct horse battery staple")},
		"KMS":        {kektest.NewVault(t, 1), kektest.NewVault(t, 2), bytes.Repeat([]byte{1}, 32)},
	}
	for name, kind := range kinds {
		for with, escrow := range map[string][]keyring.KEK{"": nil, " with escrow": {kektest.Age(t, identity)}} {
			t.Run(name+with, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				d := steal(t, ctx, append([]keyring.KEK{kind.kek}, escrow...)...)
				if n := d.search(t, append(d.secrets, kind.secret, []byte(identity.String()))...); n > 0 {
					t.Errorf("%d secrets in the files", n)
				}
				d.opensNothing(t, "no KEK but an inline one", []keyring.KEK{keyring.InlineKEK()}, escrow)
				d.opensNothing(t, "another "+name, []keyring.KEK{kind.anothers}, escrow)
				var all []keyring.KEK
				for _, k := range kinds {
					all = append(all, k.anothers)
				}
				d.opensNothing(t, "every kind, and another identity", append(all, keyring.InlineKEK()),
					append(escrow, kektest.Age(t, identity, kektest.Identity(t))))
				if escrow != nil {
					d.opensAll(t, ctx, []keyring.KEK{kektest.File(t, bytes.Repeat([]byte{3}, 32))}, []keyring.KEK{kektest.Age(t, identity, identity)})
				}
			})
		}
	}
}

// stolen is a copy of a server's directory, and what the server had in memory.
type stolen struct {
	dir     string
	keys    []keyring.KeyID
	sealed  [][]byte // one under each key
	secrets [][]byte // root keys and signing keys
}

// steal has a server live under these KEKs, and copies its directory.
func steal(t *testing.T, ctx context.Context, keks ...keyring.KEK) stolen {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	n := keyringtest.StartAlone(t, ctx, dir, keks, nil)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	var d stolen
	for i := range 3 {
		if i > 0 {
			if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		b, err := n.Encrypt(ctx, []byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		id, _ := keyring.CiphertextKeyID(b)
		d.sealed, d.keys = append(d.sealed, b), append(d.keys, id)
	}
	if err := keyring.Raft(n.Keyring()).Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	for _, s := range liveKeys(n.Keyring()) {
		d.secrets = append(d.secrets, bytes.Clone(s))
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	d.dir = copyDir(t, dir)
	return d
}

func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// search returns how many of the secrets are in all bytes of all files.
func (d stolen) search(t *testing.T, secrets ...[]byte) (found int) {
	t.Helper()
	files := 0
	err := fs.WalkDir(os.DirFS(d.dir), ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(d.dir, path))
		found += keyringtest.Leaks(b, secrets)
		files++
		return err
	})
	if err != nil || len(d.secrets) != 2*len(d.keys) || files < len(d.keys)+4 { // raft.db, two of a snapshot, the keystore's ID
		t.Errorf("%d keys searched for in %d files, %v", len(d.secrets), files, err)
	}
	return found
}

// opensNothing starts a server on a copy.
func (d stolen) opensNothing(t *testing.T, how string, keks, old []keyring.KEK) {
	t.Helper()
	n := keyringtest.StartAlone(t, t.Context(), copyDir(t, d.dir), keks, old)
	for i, c := range d.sealed {
		keyringtest.AwaitHolders(n.Keyring(), d.keys[i], 0) // until raft has it, holders or not
		if _, err := n.Keyring().Decrypt(c, nil); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("%s: key %d: %v", how, i, err)
		}
	}
	if err := n.Keyring().Rewrap(t.Context()); err == nil {
		t.Errorf("%s: it can be rewrapped", how)
	}
	for _, s := range liveKeys(n.Keyring()) {
		if slices.ContainsFunc(d.secrets, func(k []byte) bool { return bytes.Equal(k, s) }) {
			t.Errorf("%s: a key is in memory", how)
		}
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// opensAll starts a server on a copy and wants everything to open.
func (d stolen) opensAll(t *testing.T, ctx context.Context, keks, old []keyring.KEK) {
	t.Helper()
	n := keyringtest.StartAlone(t, ctx, copyDir(t, d.dir), keks, old)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for i, c := range d.sealed {
		if got, err := n.Keyring().Decrypt(c, nil); err != nil || string(got) != "data" {
			t.Errorf("key %d: %q, %v", i, got, err)
		}
	}
}

// TestStolenDiskWithAnInlineKEKOpensAll is why docs/keks.md warns of it.
func TestStolenDiskWithAnInlineKEKOpensAll(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d := steal(t, ctx, keyring.InlineKEK())
	d.opensAll(t, ctx, []keyring.KEK{keyring.InlineKEK()}, nil)

	text := []byte(`{"key":"` + base64.StdEncoding.EncodeToString(d.secrets[0]) + `"}`)
	if err := os.WriteFile(filepath.Join(d.dir, "raft", "left behind"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if n := d.search(t, d.secrets...); n != 1 {
		t.Errorf("the search finds %d secrets where there is one", n)
	}
}

// secretsOf are the key bytes that a keyring has in memory: root keys, signing keys, and what its files wrap them
// under. read returns the content of a key file.
func secretsOf(k *keyring.Keyring, read func(name string) ([]byte, error)) (secrets [][]byte) {
	for _, b := range liveKeys(k) {
		secrets = append(secrets, bytes.Clone(b))
	}
	for _, id := range keyring.Store(k).Present().InMemory {
		b, err := read(nks.FileName(id))
		if err != nil {
			panic(err)
		}
		f, err := nks.DecodeFile(b)
		if err != nil {
			panic(err)
		}
		for _, w := range f.Wrapped {
			secrets = append(secrets, w.Ciphertext)
			if w.KEK == kek.InlineID {
				secrets = append(secrets, w.Ciphertext[:kek.Size])
			}
		}
	}
	return secrets
}
