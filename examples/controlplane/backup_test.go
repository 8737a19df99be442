package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring"
	"filippo.io/age"
)

// A backup by the command line, checked, and restored to a server that then starts from it.
func TestBackupVerifyRestore(t *testing.T) {
	_, c := alone(t, nil)
	if status, body := c.do(t, "PUT", "/v1/secrets/db/password", "", `{"value":"hunter2"}`); status != 200 {
		t.Fatal(status, body)
	}
	dir := t.TempDir()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key, file, cluster := filepath.Join(dir, "key"), filepath.Join(dir, "backup"), filepath.Join(dir, "cluster")
	if err := os.WriteFile(key, []byte(identity.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"-server", c.base}, args...), nil, &out, &out)
		return out.String(), err
	}
	sum, err := command("backup", "-to", identity.Recipient().String(), file)
	if err != nil {
		t.Fatal(err)
	}
	sum, _, _ = strings.Cut(sum, " ")
	if out, err := command("verify", "-identity", key, file); err != nil || !strings.Contains(out, sum) || !strings.Contains(out, "1 keys") {
		t.Errorf("verify: %s, %v", out, err)
	}
	if out, err := command("backup", "-to", identity.Recipient().String(), file+".part"); err != nil {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := command("init", "-port", "0", cluster); err != nil {
		t.Fatal(out, err)
	}
	for _, bad := range [][]string{
		{"backup", "-to", "nobody", filepath.Join(dir, "none")},
		{"verify", "-identity", key, key},
		{"verify", "-identity", file, file},
		{"restore", "-identity", key, "-sha256", strings.Repeat("1", 64), cluster, "s1", file},
	} {
		if out, err := command(bad...); err == nil {
			t.Errorf("%v: %s", bad, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); !os.IsNotExist(err) {
		t.Errorf("a file of a backup that failed: %v", err)
	}

	if out, err := command("restore", "-identity", key, "-sha256", sum, cluster, "s1", file); err != nil || !strings.Contains(out, sum) {
		t.Fatal(out, err)
	}
	s, conf, err := newServer(cluster, "s1", options{})
	if err != nil {
		t.Fatal(err)
	}
	if s.node, err = keyring.Start(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	defer s.node.Close()
	close(s.started)
	if err := s.node.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, ok := s.store.state.Load().byPath.Get([]byte("db/password"))
	if !ok {
		t.Fatal("the secret is not there")
	}
	if got, err := s.node.Decrypt(t.Context(), n.Ciphertext, []byte("db/password")); err != nil || string(got) != "hunter2" {
		t.Errorf("%q, %v", got, err)
	}
	if out, err := command("restore", "-identity", key, cluster, "s1", file); err == nil {
		t.Errorf("restored over it: %s", out)
	}
}

// JSON carries text alone: what is not would come back as something else.
func TestPutRefusesWhatIsNoText(t *testing.T) {
	_, c := alone(t, nil)
	var out bytes.Buffer
	err := run(t.Context(), []string{"-server", c.base, "put", "a"}, strings.NewReader("a\xffb"), &out, &out)
	if err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("%v, %s", err, &out)
	}
}
