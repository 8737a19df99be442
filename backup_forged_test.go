package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// TestVerifyBackupProvesWhatAStartNeeds: nothing in these is damaged, and a server would not start from them, or go wrong after it has.
func TestVerifyBackupProvesWhatAStartNeeds(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	_, foreign, _ := keyringtest.SmallBackup(t)
	var other *meta.Ring
	backuptest.Forge(t, file, identity, func(f *backuptest.Forgery) { other = f.Ring })
	lie := func(change func(*raft.SnapshotMeta)) func(*backuptest.Forgery) {
		return func(f *backuptest.Forgery) {
			f.Manifest.Raft.Configuration = f.Manifest.Raft.Configuration.Clone()
			change(&f.Manifest.Raft)
		}
	}
	servers := func(s ...raft.Server) func(*backuptest.Forgery) {
		return lie(func(r *raft.SnapshotMeta) { r.Configuration.Servers = s })
	}
	last := other.LastIndex()
	for name, c := range map[string]struct {
		change func(*backuptest.Forgery)
		good   bool
	}{
		"nothing":             {func(*backuptest.Forgery) {}, true},
		"no index":            {lie(func(r *raft.SnapshotMeta) { r.Index, r.ConfigurationIndex = 0, 0 }), false},
		"the last index":      {lie(func(r *raft.SnapshotMeta) { r.Index = math.MaxUint64 }), false},
		"the index of a key":  {lie(func(r *raft.SnapshotMeta) { r.Index = last }), true},
		"an index before":     {lie(func(r *raft.SnapshotMeta) { r.Index = last - 1 }), false},
		"no term":             {lie(func(r *raft.SnapshotMeta) { r.Term = 0 }), false},
		"the last term":       {lie(func(r *raft.SnapshotMeta) { r.Term = math.MaxUint64 }), false},
		"a version":           {lie(func(r *raft.SnapshotMeta) { r.Version = 2 }), false},
		"a version below":     {lie(func(r *raft.SnapshotMeta) { r.Version = -1 }), false},
		"a later server list": {lie(func(r *raft.SnapshotMeta) { r.ConfigurationIndex = r.Index + 1 }), false},
		"no servers":          {servers(), false},
		"no voter":            {servers(raft.Server{ID: "a", Address: "a", Suffrage: raft.Nonvoter}), false},
		"a server twice":      {servers(raft.Server{ID: "a", Address: "a"}, raft.Server{ID: "a", Address: "b"}), false},
		"an address twice":    {servers(raft.Server{ID: "a", Address: "a"}, raft.Server{ID: "b", Address: "a"}), false},
		"no ID":               {servers(raft.Server{Address: "a"}), false},
		"no address":          {servers(raft.Server{ID: "a"}), false},
		"no suffrage":         {servers(raft.Server{ID: "a", Address: "a"}, raft.Server{ID: "b", Address: "b", Suffrage: 9}), false},
		"a size below":        {lie(func(r *raft.SnapshotMeta) { r.Size = -1 }), false},
		"a backup to come": {func(f *backuptest.Forgery) {
			f.Ring.Backup = meta.Backup{Index: m.Raft.Index + 1, Time: m.Created, Digest: meta.Digest{1}}
		}, false},
		"a key to come": {func(f *backuptest.Forgery) { f.Ring.Keys[0].ModifyIndex = m.Raft.Index + 1 }, false},
		"a removal to come": {func(f *backuptest.Forgery) {
			f.Ring.Removed = []meta.Tombstone{{ID: meta.KeyID{1}, Removed: m.Created, Index: m.Raft.Index + 1}}
		}, false},
		"another's public key":    {func(f *backuptest.Forgery) { f.Ring.Keys[0].Public = f.Ring.Keys[1].Public }, false},
		"a public key of nobody":  {func(f *backuptest.Forgery) { f.Ring.Keys[0].Public = []byte{1} }, false},
		"another algorithm":       {func(f *backuptest.Forgery) { f.Ring.Keys[0].Algorithm = "ES256" }, false},
		"another cluster's name":  {func(f *backuptest.Forgery) { f.Manifest.Cluster = foreign.Cluster }, false},
		"two clusters of its own": {func(f *backuptest.Forgery) { f.Ring.Cluster = meta.ClusterID{1} }, false},
	} {
		forged := backuptest.Forge(t, file, identity, c.change)
		if _, err := keyring.VerifyBackup(bytes.NewReader(forged), identity); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		wantRestore(t, name, forged, identity, c.good)
	}
}

// wantRestore restores a backup. Where that is refused nothing is left, else the Node goes on.
func wantRestore(t *testing.T, name string, file []byte, identity *age.X25519Identity, good bool) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "node")
	cfg := node.Config{Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"}}
	_, err := node.Restore(t.Context(), bytes.NewReader(file), cfg, keyring.RestoreOptions{
		Identities: []age.Identity{identity}, Unauthenticated: true,
	})
	if (err == nil) != good {
		t.Errorf("%s: restore: %v", name, err)
	}
	if _, err := os.Lstat(dir); !good && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: it has left %v", name, keyringtest.FilesIn(t, dir))
	}
	if good {
		keyringtest.CheckGoesOn(t, name, cfg)
	}
}

// TestRestoreWritesNothingOfADamagedBackup: whatever is wrong with it, no key is written.
func TestRestoreWritesNothingOfADamagedBackup(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	other, _, otherIdentity := keyringtest.SmallBackup(t)
	foreign := backuptest.TakeApart(t, other, otherIdentity)
	for name, change := range map[string]func([]backuptest.Part) []backuptest.Part{
		"no signature":        func(p []backuptest.Part) []backuptest.Part { return p[:len(p)-1] },
		"another's signature": func(p []backuptest.Part) []backuptest.Part { p[4] = foreign[4]; return p },
		"another's snapshot":  func(p []backuptest.Part) []backuptest.Part { p[3] = foreign[3]; return p },
		"another's keys": func(p []backuptest.Part) []backuptest.Part {
			p[1].Content, p[2].Content = foreign[1].Content, foreign[2].Content
			return p
		},
		"keys out of order": func(p []backuptest.Part) []backuptest.Part { p[1], p[2] = p[2], p[1]; return p },
		"no keys":           func(p []backuptest.Part) []backuptest.Part { return append(p[:1], p[3:]...) },
		"a file more":       func(p []backuptest.Part) []backuptest.Part { return append(p, p[4]) },
		"nothing":           func([]backuptest.Part) []backuptest.Part { return nil },
	} {
		b := backuptest.Assemble(t, change(backuptest.TakeApart(t, file, identity)), identity.Recipient())
		dir := filepath.Join(t.TempDir(), "keystore")
		_, err := keyring.Restore(t.Context(), bytes.NewReader(b), keyring.RestoreOptions{
			Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Unauthenticated: true,
		})
		if !errors.Is(err, keyring.ErrCorrupt) || len(keyringtest.FilesIn(t, dir)) > 0 {
			t.Errorf("%s: %v, and %v", name, err, keyringtest.FilesIn(t, dir))
		}
	}
	less := backuptest.Forge(t, file, identity, func(f *backuptest.Forgery) { f.Manifest.Keys[0].State = meta.StateDeprecated })
	if got, err := keyring.VerifyBackup(bytes.NewReader(less), identity); !errors.Is(err, keyring.ErrKeyMissing) || !slices.Equal(got.Missing, []keyring.KeyID{m.Keys[0].ID}) {
		t.Errorf("missing %v, %v; want %v", got.Missing, err, m.Keys[0].ID)
	}
}

// TestRestoreEndsWithItsContext wherever it reads, and has written nothing then.
func TestRestoreEndsWithItsContext(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	for reads := 1; reads < len(file)/100; reads += 7 {
		ctx, cancel := context.WithCancel(t.Context())
		dir := filepath.Join(t.TempDir(), "keystore")
		r := &backuptest.EndsAfter{Reader: bytes.NewReader(file), Left: reads, End: cancel}
		_, err := keyring.Restore(ctx, r, keyring.RestoreOptions{
			Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Digest: m.SHA256,
		})
		if _, none := os.Lstat(dir); !errors.Is(err, context.Canceled) || r.Left < 0 || none == nil {
			t.Errorf("after %d reads: %v, and %d more; %v", reads, err, -r.Left, none)
		}
	}
}
