package keyring_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/node"
)

// TestInspectSaysWhatEachFileIs in the directory of a server that has had all kinds, and changes none.
func TestInspectSaysWhatEachFileIs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	keystore := filepath.Join(dir, "keystore")
	kek, other := kektest.File(t, kektest.CountingKey()), kektest.File(t, bytes.Repeat([]byte{7}, 32))
	n, err := node.Start(ctx, node.Config{
		Dir: dir, KEKs: []keyring.KEK{kek, keyring.InlineKEK()}, Data: keyring.NoData{}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var ids []keyring.KeyID
	for range 4 {
		key, err := n.Rotate(ctx, keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, key.ID)
	}
	removed := ids[0].String() + ".nks.json"
	if err := n.Remove(ctx, ids[0], keyring.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return ids[i].String() + ".nks.json" }
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(keystore, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(name string, b []byte, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(keystore, name)
		if err := os.WriteFile(path, b, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(keystore, removed)); err == nil { // it had no time to be set aside
		if err := os.Rename(filepath.Join(keystore, removed), filepath.Join(keystore, removed+".removed-1")); err != nil {
			t.Fatal(err)
		}
	}
	stranger := keyring.KeyID{1}
	write(name(1), read(name(1))[:100], 0o600)
	write(name(2), read(name(2)), 0o644)
	write(stranger.String()+".nks.json", read(name(3)), 0o600)
	write(stranger.String()+".nks.json.malformed-1", []byte("x"), 0o600)
	write(".tmp-000102030405060708090a0b0c0d0e0f", nil, 0o600)
	write("notes.txt", nil, 0o644)
	nomads := []keystoretest.NomadKey{keystoretest.NewNomadKey(t, 7, "1.4"), keystoretest.NewNomadKey(t, 8, "1.9"), keystoretest.NewNomadKey(t, 9, "damaged")}
	for _, key := range nomads {
		for file, content := range key.Files(t) {
			write(file, content, 0o600)
		}
	}
	before := fmt.Sprint(os.ReadDir(keystore))

	reports, err := keyring.Inspect(ctx, keystore, other, kek)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range reports {
		got[r.Name] = string(r.Kind)
		if len(r.Opens) > 0 {
			got[r.Name] += ", opens"
		}
		if r.Err != nil {
			got[r.Name] += ": " + r.Err.Error()
		}
		good := r.Kind == keyring.FileKey && r.Err == nil
		if good && (r.Algorithm != "EdDSA" || time.Since(r.Created) > time.Hour || !slices.Equal(r.Opens, []string{kek.ID()}) || len(r.KEKs) != 2) {
			t.Errorf("%+v", r)
		}
	}
	for file, want := range map[string]string{ // what follows a colon is the beginning of an error
		name(1):                         "key: ",
		name(2):                         "key, opens: others may read it",
		name(3):                         "key, opens",
		removed + ".removed-1":          "removed key, opens",
		stranger.String() + ".nks.json": "key: corrupt: it is the file of key " + ids[3].String(),
		stranger.String() + ".nks.json.malformed-1":    "set aside: ",
		nomads[0].ID.String() + ".nks.json":            "Nomad's key",
		nomads[1].ID.String() + ".aead.local.nks.json": "Nomad's key",
		nomads[2].ID.String() + ".nks.json":            "Nomad's key: ",
		".tmp-000102030405060708090a0b0c0d0e0f":        "temporary",
		"notes.txt":                                    "foreign",
		"keystore.id":                                  "own",
		".lock":                                        "own",
	} {
		if got := got[file]; got != want && !(strings.Contains(want, ":") && strings.HasPrefix(got, want)) {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if after := fmt.Sprint(os.ReadDir(keystore)); after != before {
		t.Errorf("the directory had %s, now %s", before, after)
	}

	reports, err = keyring.Inspect(ctx, keystore, other)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		if r.Name == name(3) && (r.Err == nil || len(r.Opens) > 0 || !slices.Contains(r.KEKs, kek.ID())) {
			t.Errorf("without its KEK: %+v", r)
		}
	}
	if _, err := keyring.Inspect(ctx, filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a directory that is not there")
	}
}
