package node_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"filippo.io/age"
)

// TestNodeBacksUpByTheSchedule: a Node restores from the file that another has left.
func TestNodeBacksUpByTheSchedule(t *testing.T) {
	t.Parallel()
	dir, identity := t.TempDir(), kektest.Identity(t)
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		cfg.Backups = keyring.BackupSchedule{To: []age.Recipient{identity.Recipient()}, Store: keyring.BackupDir(dir), Verify: []age.Identity{identity}}
	})
	c.Ready(t.Context())
	k := c.Nodes[leaderOf(t.Context(), t, c)].Keyring()
	var st keyring.Status
	for st.LastBackup.Index == 0 {
		changed := k.Changed()
		var err error
		if st, err = k.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st.LastBackup.Index == 0 {
			<-changed
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "keyring-*.age"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	f, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cfg := node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}}
	if _, err := node.Restore(t.Context(), f, cfg, keyring.RestoreOptions{
		Identities: []age.Identity{identity}, Digest: st.LastBackup.SHA256, DataOnly: true, Force: true,
	}); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer keyringtest.CloseNode(t, n)
	if restored, err := n.Keyring().Status(t.Context()); err != nil || restored.LastBackup.Time.After(time.Now()) || len(restored.Keys) < 1 {
		t.Errorf("restored: %v, %v", restored, err)
	}
}
