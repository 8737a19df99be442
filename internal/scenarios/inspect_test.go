package scenarios_test

import (
	"bytes"
	"context"
	"errors"
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

// inspected is the directory of a server that has had all kinds of files.
type inspected struct {
	dir, keystore string
	kek           keyring.KEK // the keys are under it, and inline
	ids           []keyring.KeyID
	removed       string // the name that the file of ids[0] had
	other         keyring.KeyID
	nomads        []keystoretest.NomadKey
}

func newInspected(t *testing.T, ctx context.Context) *inspected {
	t.Helper()
	d := &inspected{dir: t.TempDir(), kek: kektest.File(t, kektest.CountingKey()), other: keyring.KeyID{1}}
	d.keystore = filepath.Join(d.dir, "keystore")
	n, err := node.Start(ctx, node.Config{
		Dir: d.dir, KEKs: []keyring.KEK{d.kek, keyring.InlineKEK()}, Data: keyring.NoData{}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		key, err := n.Rotate(ctx, keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		d.ids = append(d.ids, key.ID)
	}
	d.removed = d.name(0)
	if err := errors.Join(n.Remove(ctx, d.ids[0], keyring.RemoveOptions{}), n.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(d.keystore, d.removed)); err == nil { // it had no time to be set aside
		if err := os.Rename(filepath.Join(d.keystore, d.removed), filepath.Join(d.keystore, d.removed+".removed-1")); err != nil {
			t.Fatal(err)
		}
	}
	d.spoil(t)
	return d
}

func (d *inspected) name(i int) string { return d.ids[i].String() + ".nks.json" }

func (d *inspected) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.keystore, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (d *inspected) write(t *testing.T, name string, b []byte, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(d.keystore, name)
	if err := errors.Join(os.WriteFile(path, b, mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// spoil adds what a server would not write.
func (d *inspected) spoil(t *testing.T) {
	t.Helper()
	d.write(t, d.name(1), d.read(t, d.name(1))[:100], 0o600)
	d.write(t, d.name(2), d.read(t, d.name(2)), 0o644)
	d.write(t, d.other.String()+".nks.json", d.read(t, d.name(3)), 0o600)
	d.write(t, d.other.String()+".nks.json.malformed-1", []byte("x"), 0o600)
	d.write(t, ".tmp-000102030405060708090a0b0c0d0e0f", nil, 0o600)
	d.write(t, "notes.txt", nil, 0o644)
	d.nomads = []keystoretest.NomadKey{keystoretest.NewNomadKey(t, 7, "1.4"), keystoretest.NewNomadKey(t, 8, "1.9"), keystoretest.NewNomadKey(t, 9, "damaged")}
	for _, key := range d.nomads {
		for file, content := range key.Files(t) {
			d.write(t, file, content, 0o600)
		}
	}
}

// want is what Inspect says of each file. What follows a colon is the beginning of an error.
func (d *inspected) want() map[string]string {
	return map[string]string{
		d.name(1):                      "key: ",
		d.name(2):                      "key, opens: others may read it",
		d.name(3):                      "key, opens",
		d.removed + ".removed-1":       "removed key, opens",
		d.other.String() + ".nks.json": "key: corrupt: it is the file of key " + d.ids[3].String(),
		d.other.String() + ".nks.json.malformed-1":       "set aside: ",
		d.nomads[0].ID.String() + ".nks.json":            "Nomad's key",
		d.nomads[1].ID.String() + ".aead.local.nks.json": "Nomad's key",
		d.nomads[2].ID.String() + ".nks.json":            "Nomad's key: ",
		".tmp-000102030405060708090a0b0c0d0e0f":          "temporary",
		"notes.txt":                                      "foreign",
		"keystore.id":                                    "own",
		".lock":                                          "own",
	}
}

// TestInspectSaysWhatEachFileIs and changes none.
func TestInspectSaysWhatEachFileIs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, other := newInspected(t, ctx), kektest.File(t, bytes.Repeat([]byte{7}, 32))
	before := fmt.Sprint(os.ReadDir(d.keystore))

	reports, err := keyring.Inspect(ctx, d.keystore, other, d.kek)
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
		if good && (r.Algorithm != "EdDSA" || time.Since(r.Created) > time.Hour || !slices.Equal(r.Opens, []string{d.kek.ID()}) || len(r.KEKs) != 2) {
			t.Errorf("%+v", r)
		}
	}
	for file, want := range d.want() {
		if got := got[file]; got != want && !(strings.Contains(want, ":") && strings.HasPrefix(got, want)) {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if after := fmt.Sprint(os.ReadDir(d.keystore)); after != before {
		t.Errorf("the directory had %s, now %s", before, after)
	}

	reports, err = keyring.Inspect(ctx, d.keystore, other)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reports {
		if r.Name == d.name(3) && (r.Err == nil || len(r.Opens) > 0 || !slices.Contains(r.KEKs, d.kek.ID())) {
			t.Errorf("without its KEK: %+v", r)
		}
	}
	if _, err := keyring.Inspect(ctx, filepath.Join(d.dir, "nowhere")); err == nil {
		t.Error("a directory that is not there")
	}
}
