package keyring_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
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
	wrapping := []byte("a key of 32 bytes, in a file....")
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
		secrets = append(secrets, keyring.Secrets(n.Keyring(), func(name string) ([]byte, error) {
			return os.ReadFile(filepath.Join(c.Dirs[id], "keystore", name))
		})...)
		if err := keyring.SnapshotRaft(n); err != nil {
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
	var inKeyFiles, searched int
	for id, dir := range c.Dirs {
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
	if n := keyringtest.Leaks(logs.Bytes(), secrets); n > 0 {
		t.Errorf("%d secrets in the logs", n)
	}
	if inKeyFiles == 0 || searched < 3*(7+3) || len(logs.Bytes()) < 1000 {
		t.Errorf("the search has found nothing where it had to: %d in key files, %d files, %d bytes of logs",
			inKeyFiles, searched, len(logs.Bytes()))
	}
}
