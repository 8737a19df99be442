package docs_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/node"
)

// startOnNomads starts a server on a keystore of Nomad's, and closes it when use returns.
func startOnNomads(ctx context.Context, dir string, kek keyring.KEK, use func(*node.Node) error) error {
	n, err := node.Start(ctx, node.Config{
		Dir:     dir, // Nomad's files are in its directory keystore
		KEKs:    []keyring.KEK{kek},
		OldKEKs: []keyring.KEK{keyring.InlineKEK()},
	})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	return use(n)
}

func openNomads(n *node.Node, id keyring.KeyID, data []byte) ([]byte, error) {
	plaintext, err := n.Keyring().OpenNomad(id, data)
	return plaintext, err
}

// TestNomadSnippet: a server that starts on Nomad's files decrypts what Nomad has encrypted; after Rewrap also without
// InlineKEK and without these files.
func TestNomadSnippet(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir, key, kek := t.TempDir(), keystoretest.NewNomadKey(t, 1, "1.4"), kektest.File(t, kektest.CountingKey())
	files := filepath.Join(dir, "keystore")
	if err := os.Mkdir(files, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range key.Files(t) {
		if err := os.WriteFile(filepath.Join(files, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opens := func(n *node.Node) error {
		got, err := openNomads(n, keyring.KeyID(key.ID), key.Seal("data"))
		if err == nil && string(got) != "data" {
			err = errors.New("it decrypts to something else")
		}
		return err
	}
	err := startOnNomads(ctx, dir, kek, func(n *node.Node) error {
		for held := false; !held; { // what was adopted is written beside Nomad's file
			changed := n.Keyring().Changed()
			for _, k := range n.Keyring().Keys() {
				held = held || k.ID == keyring.KeyID(key.ID) && len(k.Holders) == 1
			}
			if !held {
				select {
				case <-changed:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return errors.Join(opens(n), n.Keyring().Rewrap(ctx))
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range key.Files(t) {
		if err := os.Remove(filepath.Join(files, name)); err != nil {
			t.Fatal(err)
		}
	}
	n, err := node.Start(ctx, node.Config{Dir: dir, KEKs: []keyring.KEK{kek}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := errors.Join(n.Keyring().WaitReady(ctx), opens(n)); err != nil {
		t.Error(err)
	}
}
