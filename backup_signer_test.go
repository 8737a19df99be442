package keyring_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/node"
	"filippo.io/age"
)

// TestBackupSignerHasOneText: it is what an operator notes.
func TestBackupSignerHasOneText(t *testing.T) {
	const signer = "e3f0404f45bc76e28ce1a027b683c20ff627e83d10ff2acfb8fb5139efd811f8"
	var read keyring.BackupSigner
	if err := read.UnmarshalText([]byte(signer)); err != nil || read.String() != signer {
		t.Errorf("%v, %v", read, err)
	}
	for _, bad := range []string{"", signer[1:], signer + "00", strings.Repeat("g", 64)} {
		if err := read.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is a signer", bad)
		}
	}
}

// TestBackupIsSignedWithWhatStatusShows, on each server, and with another key after each rotation.
func TestBackupIsSignedWithWhatStatusShows(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	leader := c.Nodes[c.Nodes["s1"].Leader()]
	identity := kektest.Identity(t)
	var before keyring.BackupSigner
	for range 2 {
		var file bytes.Buffer
		made, err := leader.Keyring().Backup(ctx, &file, identity.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		if made.Signer == before || made.Signer == (keyring.BackupSigner{}) {
			t.Errorf("signed by %s, and before by %s", made.Signer, before)
		}
		before = made.Signer
		if m, err := keyring.VerifyBackup(bytes.NewReader(file.Bytes()), identity); err != nil || m.Signer != made.Signer {
			t.Errorf("signed by %s, made by %s: %v", m.Signer, made.Signer, err)
		}
		keyringtest.AwaitHolders(leader.Keyring(), leader.Keyring().Keys()[0].ID, 3)
		for id, n := range c.Nodes {
			c.Await(ctx, n, "one that knows the signer", func(st keyring.Status) bool { return st.BackupSigner == made.Signer })
			if st, err := n.Status(ctx); err != nil || st.BackupSigner != made.Signer || !strings.Contains(st.String(), made.Signer.String()) {
				t.Errorf("%s: %v, %v", id, st, err)
			}
		}
		if _, err := leader.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRestoreTakesNoForgedBackup: everybody who knows the recipients can write one, but not sign it.
func TestRestoreTakesNoForgedBackup(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	other, foreign, otherIdentity := keyringtest.SmallBackup(t)
	unsigned := backuptest.Forge(t, file, identity, func(*backuptest.Forgery) {})
	identities := []age.Identity{identity, otherIdentity}
	for name, c := range map[string]struct {
		file []byte
		o    keyring.RestoreOptions
		good bool
	}{
		"its digest":                             {file, keyring.RestoreOptions{Digest: m.SHA256}, true},
		"its signer":                             {file, keyring.RestoreOptions{Signer: m.Signer}, true},
		"its cluster":                            {file, keyring.RestoreOptions{Signer: m.Signer, Cluster: m.Cluster}, true},
		"not asked":                              {file, keyring.RestoreOptions{Unauthenticated: true}, true},
		"nothing":                                {file, keyring.RestoreOptions{}, false},
		"a cluster alone":                        {file, keyring.RestoreOptions{Cluster: m.Cluster}, false},
		"another digest":                         {file, keyring.RestoreOptions{Digest: foreign.SHA256}, false},
		"another signer":                         {file, keyring.RestoreOptions{Signer: foreign.Signer}, false},
		"another signer, not asked":              {file, keyring.RestoreOptions{Signer: foreign.Signer, Unauthenticated: true}, false},
		"its digest and another signer":          {file, keyring.RestoreOptions{Digest: m.SHA256, Signer: foreign.Signer}, false},
		"another cluster":                        {file, keyring.RestoreOptions{Signer: m.Signer, Cluster: foreign.Cluster}, false},
		"another cluster's file":                 {other, keyring.RestoreOptions{Signer: m.Signer}, false},
		"another cluster's file, by the cluster": {other, keyring.RestoreOptions{Unauthenticated: true, Cluster: m.Cluster}, false},
		"one that is not signed":                 {unsigned, keyring.RestoreOptions{Signer: m.Signer}, false},
		"one that is not signed, unseen":         {unsigned, keyring.RestoreOptions{Unauthenticated: true}, true},
	} {
		var snapshot bytes.Buffer
		dir := filepath.Join(t.TempDir(), "keystore")
		c.o.Dir, c.o.KEKs, c.o.Identities, c.o.Snapshot = dir, []keyring.KEK{keyring.InlineKEK()}, identities, &snapshot
		if _, err := keyring.Restore(t.Context(), bytes.NewReader(c.file), c.o); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(keyringtest.FilesIn(t, dir)); (n > 0) != c.good {
			t.Errorf("%s: %d files", name, n)
		}
		if c.o.Digest == ([32]byte{}) && !c.good && snapshot.Len() > 0 { // else that is known at the end
			t.Errorf("%s: %d bytes of its snapshot are handed on", name, snapshot.Len())
		}
		_, err := keyring.VerifyBackupContext(t.Context(), bytes.NewReader(c.file), keyring.VerifyOptions{
			Identities: identities, Digest: c.o.Digest, Signer: c.o.Signer, Cluster: c.o.Cluster,
		})
		asked := c.o.Digest != ([32]byte{}) || c.o.Signer != (keyring.BackupSigner{})
		if asked && (err == nil) != c.good {
			t.Errorf("%s: verify: %v", name, err)
		}
	}
}

// TestDataOnlyRestoreIsAnotherCluster: a drill opens all that the cluster of the backup has sealed. Neither of
// the two takes tokens of the other.
func TestDataOnlyRestoreIsAnotherCluster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := keyringtest.BackUp(ctx, t, 1)
	production := b.Leader()
	join, err := production.JoinToken("s9", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{"aud": "me"}
	signed, err := production.Sign(ctx, claims)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := production.Rotate(ctx, keyring.RotateOptions{Publish: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err) // one that has sealed nothing
	}
	var file bytes.Buffer
	m, err := production.Keyring().Backup(ctx, &file, b.Identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	app := &keyringtest.Records{Keys: keyring.NewFSM(), All: map[string][]byte{}}
	cfg := node.Config{
		Dir: filepath.Join(t.TempDir(), "drill"), KEKs: []keyring.KEK{keyring.InlineKEK()}, App: app, Keys: app.Keys,
		Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	}
	_, err = node.Restore(ctx, bytes.NewReader(file.Bytes()), cfg, keyring.RestoreOptions{
		Identities: []age.Identity{b.Identity}, Signer: m.Signer, Cluster: m.Cluster, DataOnly: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	drill, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer drill.Close()
	if err := drill.Keyring().WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for ref, text := range b.Texts {
		if got, err := drill.Decrypt(ctx, app.Copy()[ref], []byte(ref)); err != nil || string(got) != text {
			t.Errorf("%s: %q, %v", ref, got, err)
		}
	}
	active := keyring.Ring(app.Keys).Active()
	if active == nil || keyring.Ring(b.Apps["s1"].Keys).Key(active.ID) != nil {
		t.Errorf("the drill seals with %v", active)
	}
	if n := len(drill.Keyring().Keys()); n != len(m.Keys) { // one less and one more
		t.Errorf("it has %d keys, and the backup %d", n, len(m.Keys))
	}
	if keyring.Ring(app.Keys).Cluster == keyring.Ring(b.Apps["s1"].Keys).Cluster {
		t.Error("it is the same cluster")
	}
	drilled, err := drill.Sign(ctx, claims)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"the drill a token of production's": drill.Keyring().Verify(signed, keyringtest.ForMe),
		"production one of the drill's":     production.Keyring().Verify(drilled, keyringtest.ForMe),
	} {
		if !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if keyring.JoinRefusal(drill, join, "s9") == "" {
		t.Error("the drill takes a join token of production's")
	}
	drillsJoin, err := drill.JoinToken("s9", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if keyring.JoinRefusal(production, drillsJoin, "s9") == "" {
		t.Error("production takes a join token of the drill's")
	}
	if err := drill.Close(); err != nil {
		t.Fatal(err)
	}
	app.All = map[string][]byte{}
	keyringtest.CheckGoesOn(t, "the drill", cfg)
}

// TestDataOnlySnapshotIsWhatItsManifestSays, for a host that hands it to its own raft.
func TestDataOnlySnapshotIsWhatItsManifestSays(t *testing.T) {
	file, m, identity := keyringtest.SmallBackup(t)
	var snapshot bytes.Buffer
	got, err := keyring.Restore(t.Context(), bytes.NewReader(file), keyring.RestoreOptions{
		Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity},
		Digest: m.SHA256, DataOnly: true, Snapshot: &snapshot,
	})
	if err != nil || got.Raft.Size != int64(snapshot.Len()) || got.Raft.Size == m.Raft.Size || got.SHA256 != m.SHA256 {
		t.Errorf("%d bytes, not %d (and were %d), %v", snapshot.Len(), got.Raft.Size, m.Raft.Size, err)
	}
	fsm := keyring.NewFSM()
	if err := fsm.Restore(nopCloser{&snapshot}); err != nil {
		t.Fatal(err)
	}
	for _, k := range keyring.Ring(fsm).Keys {
		if !k.DataOnly || k.State != meta.StateInactive {
			t.Errorf("%+v", k)
		}
	}
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

// TestGoldenBackupOfFormat2 opens, and is signed as it was.
func TestGoldenBackupOfFormat2(t *testing.T) {
	var want struct {
		BackupKey, Cluster, Host string
		Keys                     int
		Sealed                   []byte
		Signer                   keyring.BackupSigner
	}
	if err := json.Unmarshal(readFile(t, "testdata/v2/backup.json"), &want); err != nil {
		t.Fatal(err)
	}
	file, identity := readFile(t, "testdata/v2/backup.age"), parseIdentity(t, want.BackupKey)
	m, err := keyring.VerifyBackup(bytes.NewReader(file), identity)
	if err != nil || m.Format != "keyring backup 2" || m.Cluster != want.Cluster || m.Signer != want.Signer || len(m.Keys) != want.Keys {
		t.Errorf("%+v, %v", m, err)
	}
	host := &keyringtest.App{}
	cfg := node.Config{Dir: filepath.Join(t.TempDir(), "node"), KEKs: []keyring.KEK{keyring.InlineKEK()}, App: host}
	_, err = node.Restore(t.Context(), bytes.NewReader(file), cfg, keyring.RestoreOptions{
		Identities: []age.Identity{identity}, Signer: want.Signer, Cluster: want.Cluster,
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if got, err := n.Keyring().Decrypt(want.Sealed, []byte("aad")); err != nil || string(got) != "what was sealed" || host.Text() != want.Host {
		t.Errorf("%q, %q, %v", got, host.Text(), err)
	}
}
