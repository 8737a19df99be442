package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring"
)

// TestBackupsOfServe: the leader makes one by itself, for the recipients of serve -to, and the command verify takes it.
func TestBackupsOfServe(t *testing.T) {
	dir, backups, identity := filepath.Join(t.TempDir(), "cluster"), t.TempDir(), newIdentity(t)
	if out, err := runCommand(t, client{}, "init", "-port", "0", "-servers", "1", dir); err != nil {
		t.Fatal(out, err)
	}
	s := startServers(t, dir, options{backups: backups, to: identity.Recipient().String()}, nil, "s1")["s1"]
	await(t, s.node.Keyring(), func(st keyring.Status) bool { return !st.LastBackup.Time.IsZero() })
	files, err := filepath.Glob(filepath.Join(backups, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the directory has %v, %v", files, err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(identity.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, client{}, "verify", "-identity", key, files[0]); err != nil || !strings.Contains(out, "1 keys") {
		t.Errorf("%s, %v", out, err)
	}
	for _, o := range []options{{backups: backups}, {backups: backups, to: "nobody"}} {
		if _, _, err := newServer(dir, "s1", o); err == nil {
			t.Errorf("backups for %q are taken", o.to)
		}
	}
}

// await waits for a status of a keyring.
func await(t *testing.T, k *keyring.Keyring, wanted func(keyring.Status) bool) {
	t.Helper()
	for {
		changed := k.Changed()
		if st, err := k.Status(t.Context()); err != nil {
			t.Fatal(err)
		} else if wanted(st) {
			return
		}
		<-changed
	}
}
