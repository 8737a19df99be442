package keyring_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// TestBackupRestoresACluster on new machines: nothing but the file and the age identity is left.
func TestBackupRestoresACluster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	b := keyringtest.BackUp(ctx, t, 3)
	old := b.Leader().Keyring().Keys()
	b.Nodes.Close()
	clear(b.Nodes.Nodes)

	for id := range b.Dirs {
		b.Dirs[id] = t.TempDir()
	}
	first := b.Config("s2")
	b.Configure(&first)
	first.Peers = nil // it has a raft then, and needs nobody
	m, err := node.Restore(ctx, bytes.NewReader(b.File), first, keyring.RestoreOptions{
		Identities: []age.Identity{b.Identity}, Digest: b.Manifest.SHA256,
	})
	if err != nil {
		t.Fatal(err)
	}
	if m.SHA256 != b.Manifest.SHA256 || len(m.Keys) != len(old) || m.Cluster != b.Manifest.Cluster {
		t.Errorf("%+v, want %+v", m, b.Manifest)
	}
	if b.Nodes.Nodes["s2"], err = node.Start(ctx, first); err != nil {
		t.Fatal(err)
	}
	for _, id := range []raft.ServerID{"s1", "s3"} {
		cfg := b.Config(id)
		b.Configure(&cfg)
		cfg.Peers = b.Addrs
		if err := b.Nodes.Nodes["s2"].AddServer(ctx, id, cfg.Addr); err != nil {
			t.Fatal(err)
		}
		if b.Nodes.Nodes[id], err = node.Start(ctx, cfg); err != nil {
			t.Fatal(err)
		}
	}
	b.Ready(ctx)
	b.Put(ctx, "after", "the restore")
	for id, n := range b.Nodes.Nodes {
		for _, key := range old {
			keyringtest.AwaitHolders(n.Keyring(), key.ID, 3)
		}
		b.AwaitRecord(ctx, id, "after")
		all := b.Apps[id].Copy()
		for ref, text := range b.Texts {
			if got, err := n.Keyring().Decrypt(all[ref], []byte(ref)); err != nil || string(got) != text {
				t.Errorf("%s: %s: %q, %v", id, ref, got, err)
			}
		}
	}
	if _, err := b.Leader().Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Error(err)
	}
	wantRefusedOver(ctx, t, b, first)
}

// wantRefusedOver restores over a server that runs, and over its raft.
func wantRefusedOver(ctx context.Context, t *testing.T, b *keyringtest.BackedUp, first node.Config) {
	t.Helper()
	refused := func(why string) {
		t.Helper()
		_, err := node.Restore(ctx, bytes.NewReader(b.File), first, keyring.RestoreOptions{Identities: []age.Identity{b.Identity}, Unauthenticated: true})
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("restored over a cluster: %v, want %q", err, why)
		}
	}
	refused("does its server run?")
	if err := b.Nodes.Nodes["s2"].Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(first.Dir, "keystore")); err != nil {
		t.Fatal(err)
	}
	refused("a raft log or snapshot already")
}

// TestStatusTellsWhichKeysHaveABackup, on every server.
func TestStatusTellsWhichKeysHaveABackup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		var out bytes.Buffer
		expect := func(made keyring.Manifest, without ...keyring.KeyID) {
			t.Helper()
			keyringtest.AwaitRing(t, c)
			for _, s := range c.Servers {
				st, err := s.Keyring.Status(t.Context())
				if err != nil || st.LastBackup != (keyring.LastBackup{Index: made.Raft.Index, Time: made.Created, SHA256: made.SHA256}) {
					t.Errorf("%s: %+v, %v; want %+v", s.ID, st.LastBackup, err, made)
				}
				if !slices.Equal(st.NoBackup, without) {
					t.Errorf("%s: no backup of %v, want %v", s.ID, st.NoBackup, without)
				}
				problem := slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemBackup })
				if want := made.Format != "" && len(without) > 0; problem != want { // a fresh cluster that has none yet has no problem
					t.Errorf("%s: no backup of %v is a problem: %t", s.ID, without, problem)
				}
			}
		}
		first := leader.Keyring.Keys()[0].ID
		expect(keyring.Manifest{}, first)
		made, err := leader.Keyring.Backup(t.Context(), &out, kektest.Identity(t).Recipient())
		if err != nil {
			t.Fatal(err)
		}
		expect(made)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		expect(made, key.ID)
		if made, err = leader.Keyring.Backup(t.Context(), &out, kektest.Identity(t).Recipient()); err != nil {
			t.Fatal(err)
		}
		expect(made)
	})
}

// TestBackupOpensWithAgeAndTar: by hand, it is a keystore directory for InlineKEK and a snapshot.
func TestBackupOpensWithAgeAndTar(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b := keyringtest.BackUp(ctx, t, 1)
	plain, err := age.Decrypt(bytes.NewReader(b.File), b.Identity)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	archive := tar.NewReader(plain)
	var names []string
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		path := filepath.Join(dir, h.Name)
		content, err := io.ReadAll(archive)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.Manifest.Keys); len(names) != n+3 || names[0] != "manifest.json" || names[n+1] != "snapshot" || names[n+2] != "signature" {
		t.Errorf("%v", names)
	}
	// The directory is one that a keyring adopts.
	h := idleHost(t)
	k, err := keyring.Open(ctx, h.InDir(filepath.Join(dir, "keystore")))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if n := len(liveKeys(k)); n != 2*len(b.Manifest.Keys) {
		t.Errorf("%d keys are in memory of %d", n/2, len(b.Manifest.Keys))
	}
}

// TestBackupIsRefused where it could not be restored from.
func TestBackupIsRefused(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, nil)
	c.Ready(ctx)
	leader := c.Nodes[c.Nodes["s1"].Leader()]
	recipient := kektest.Identity(t).Recipient()
	var out bytes.Buffer
	for id, n := range c.Nodes {
		if _, err := n.Keyring().Backup(ctx, &out, recipient); n != leader && !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("%s: %v", id, err)
		}
	}
	out.Reset()
	if _, err := leader.Keyring().Backup(ctx, &out); err == nil {
		t.Error("a backup for nobody")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := leader.Keyring().Backup(ended, &out, recipient); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if out.Len() > 0 {
		t.Errorf("%d bytes are written", out.Len())
	}
}
