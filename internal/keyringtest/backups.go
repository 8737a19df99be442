package keyringtest

// Backups, and what is restored from them.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// SmallBackup is a backup of one server with two keys, of a few kilobytes.
func SmallBackup(t testing.TB) ([]byte, keyring.Manifest, *age.X25519Identity) {
	t.Helper()
	file, _, identity := backuptest.Small(t)
	m, err := keyring.VerifyBackup(bytes.NewReader(file), identity)
	if err != nil {
		t.Fatal(err)
	}
	return file, m, identity
}

// KeyFilesIn names the key files in a directory.
func KeyFilesIn(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.nks.json"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// FilesIn names all files below a directory, but for lock files.
func FilesIn(t testing.TB, dir string) (names []string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != ".lock" {
			names = append(names, path[len(dir):])
		}
		return nil
	})
	return names
}

// CheckGoesOn wants a node that was restored to rotate, to be backed up, and to start again from a snapshot
// of its own.
func CheckGoesOn(t testing.TB, what string, cfg node.Config) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		n, err := node.Start(ctx, cfg)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, rotated := n.Rotate(ctx, keyring.RotateOptions{})
		_, backedUp := n.Keyring().Backup(ctx, io.Discard, kektest.Identity(t).Recipient())
		if err := errors.Join(rotated, backedUp, n.Close()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// BackedUp is a cluster of Nodes with records under several keys, and a backup of it.
type BackedUp struct {
	*Nodes
	Apps     map[raft.ServerID]*Records
	Identity *age.X25519Identity
	File     []byte
	Manifest keyring.Manifest
	Texts    map[string]string
}

// BackUp makes a cluster of n Nodes, fills it, and backs it up.
func BackUp(ctx context.Context, t testing.TB, n int) *BackedUp {
	t.Helper()
	b := &BackedUp{Identity: kektest.Identity(t), Texts: map[string]string{}, Apps: map[raft.ServerID]*Records{}}
	b.Nodes = StartNodes(t, n, b.Configure)
	b.Ready(ctx)
	leader := b.Leader()
	for i := range 30 {
		if i%10 == 5 {
			if _, err := leader.Rotate(ctx, keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		b.Put(ctx, fmt.Sprintf("record/%d", i), fmt.Sprintf("secret %d", i))
	}
	var out bytes.Buffer
	var err error
	if b.Manifest, err = leader.Keyring().Backup(ctx, &out, b.Identity.Recipient()); err != nil {
		t.Fatal(err)
	}
	b.File = out.Bytes()
	return b
}

// Configure completes the configuration of a server that keeps records.
func (b *BackedUp) Configure(cfg *node.Config) {
	cfg.Keys = keyring.NewFSM()
	b.Apps[cfg.ID] = &Records{Keys: cfg.Keys, All: map[string][]byte{}}
	cfg.App = b.Apps[cfg.ID]
}

// Leader is the node that leads, as one of them knows.
func (b *BackedUp) Leader() *node.Node {
	for _, n := range b.Nodes.Nodes {
		return b.Nodes.Nodes[n.Leader()]
	}
	return nil
}

// Put stores a record through the leader.
func (b *BackedUp) Put(ctx context.Context, ref, text string) {
	b.TB.Helper()
	err := b.Leader().Keyring().EncryptTo(ctx, []byte(text), []byte(ref), func(ctx context.Context, c []byte) error {
		return PutThrough(ctx, b.Leader(), RecordPut{Ref: ref, New: c})
	})
	if err != nil {
		b.TB.Fatal(err)
	}
	b.Texts[ref] = text
}

// AwaitRecord waits until a server has applied a record.
func (b *BackedUp) AwaitRecord(ctx context.Context, id raft.ServerID, ref string) {
	b.TB.Helper()
	for b.Apps[id].Copy()[ref] == nil {
		if ctx.Err() != nil {
			b.TB.Fatalf("%s never gets %s", id, ref)
		}
		b.Put(ctx, "more", "so that it learns of what has committed")
		delete(b.Texts, "more") // nobody waits for that one
	}
}

// CloseNode closes a node.
func CloseNode(t testing.TB, n *node.Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}
