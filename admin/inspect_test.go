package admin

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/node"
)

// wantRow wants a file's row in a table, and what its cells begin with.
func wantRow(t *testing.T, table, file string, want ...string) {
	t.Helper()
	for line := range strings.Lines(table) {
		got := strings.Fields(line)
		if got[0] == file && strings.HasPrefix(strings.Join(got[1:], " "), strings.Join(want, " ")) {
			return
		}
	}
	t.Errorf("no row of %s with %q:\n%s", file, want, table)
}

// Inspect says which KEK opens a key and what is wrong, beside a server that runs and without one.
func TestInspectSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	keystore, kek := filepath.Join(dir, "s1", "keystore"), filepath.Join(dir, "s1.kek")
	if err := os.WriteFile(kek, []byte(strings.Repeat("\x01\x02", 16)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := alone(t, func(_ *Config, conf *node.Config) {
		own, err := keyring.FileKEK(kek)
		if err != nil {
			t.Fatal(err)
		}
		conf.Dir, conf.KEKs, conf.Tokens.Algorithm = filepath.Join(dir, "s1"), []keyring.KEK{own}, "ES256"
	})
	other := filepath.Join(dir, "other.kek")
	if err := os.WriteFile(other, []byte(strings.Repeat("\x07", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	key := s.node.Keyring().Keys()[0].ID.String() + ".nks.json"
	inspect := func(args ...string) (string, error) {
		return runCommand(t, "http://nowhere.invalid", append([]string{"inspect"}, args...)...)
	}

	out, err := inspect("-kek", other+","+kek, keystore)
	if err != nil {
		t.Errorf("beside its server: %v", err)
	}
	wantRow(t, out, "FILE", "KIND", "ALGORITHM", "KEKS", "PROBLEM")
	wantRow(t, out, key, "key", "ES256", "file2:")
	wantRow(t, out, "keystore.id", "own", "-", "-", "-")
	if strings.Count(out, "* ") != 1 {
		t.Errorf("not one KEK opens:\n%s", out)
	}
	if err := s.node.Close(); err != nil {
		t.Fatal(err)
	}
	if offline, err := inspect("-kek", kek, keystore); err != nil || offline != out {
		t.Errorf("without its server: %v\n%s", err, offline)
	}

	for _, without := range [][]string{{keystore}, {"-kek", other, keystore}} {
		out, err := inspect(without...)
		if !errors.As(err, new(finding)) || strings.Contains(out, "*") || !strings.Contains(out, "none of the given KEKs") {
			t.Errorf("%q: %v\n%s", without, err, out)
		}
		wantRow(t, out, key, "key", "ES256", "file") // which KEK there has to be
	}
	if err := os.WriteFile(filepath.Join(keystore, key), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = inspect("-kek", kek, keystore)
	if !errors.As(err, new(finding)) || !strings.HasPrefix(err.Error(), "1 of ") {
		t.Errorf("a file that is empty: %v", err)
	}
	wantRow(t, out, key, "key", "-", "-", "")
	for _, away := range [][]string{{filepath.Join(dir, "none")}, {"-kek", filepath.Join(dir, "none"), keystore}} {
		if out, err := inspect(away...); err == nil || errors.As(err, new(finding)) {
			t.Errorf("%q: %v\n%s", away, err, out)
		}
	}
}

// A key that is wrapped inline opens without any KEK in the arguments.
func TestInspectOpensInlineKeys(t *testing.T) {
	var keystore string
	s := alone(t, func(_ *Config, conf *node.Config) { keystore = filepath.Join(conf.Dir, "keystore") })
	out, err := runCommand(t, s.url, "inspect", keystore)
	if err != nil {
		t.Error(err)
	}
	wantRow(t, out, s.node.Keyring().Keys()[0].ID.String()+".nks.json", "key", "EdDSA", "inline*", "-")
}

// A directory that is not the keystore has no bad file. One with keys that wait for their end is one.
func TestInspectWantsAKeystore(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, "", "inspect", dir); !errors.As(err, new(finding)) || !strings.Contains(err.Error(), "no key file in "+dir) {
		t.Errorf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, keyring.KeyID{1}.String()+".nks.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, "", "inspect", dir); !errors.As(err, new(finding)) || !strings.HasPrefix(err.Error(), "1 of 2") {
		t.Errorf("%v\n%s", err, out)
	}
}
