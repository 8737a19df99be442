package docs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

func readmeBackup(ctx context.Context, n *node.Node, file io.Writer, keep func(io.Writer) error, recipients ...age.Recipient) error {
	m, err := n.Keyring().WriteBackup(ctx, file, recipients...)
	if err != nil {
		return err
	}
	if err := keep(file); err != nil { // sync it, close it, give it its name, sync the directory; or end the upload
		return err
	}
	log.Printf("backup of index %d, %d keys, SHA-256 %x", m.Raft.Index, len(m.Keys), m.SHA256)
	return n.Keyring().ConfirmBackup(ctx, m.SHA256)
}

func readmeSchedule(cfg keyring.Config, recipients []age.Recipient) keyring.Config {
	cfg.Backups = keyring.BackupSchedule{
		To:    recipients,
		Store: keyring.BackupDir("/mnt/backups"), // once a day, the last 7 are kept
	}
	return cfg
}

func readmeRestore(ctx context.Context, file io.Reader, cfg node.Config, identities []age.Identity, digest [32]byte, use func(*node.Node)) error {
	_, err := node.Restore(ctx, file, cfg, keyring.RestoreOptions{
		Identities: identities,
		Digest:     digest,
	})
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		return err
	}
	use(n)
	return n.Close()
}

func readmeRecoverNode(ctx context.Context, cfg node.Config, newApp func() (raft.FSM, *keyring.FSM), use func(*node.Node)) error {
	r, err := node.Recover(ctx, cfg)
	if err != nil {
		return err
	}
	log.Printf("recovered as of log index %d of %v, keys missing: %v", r.Index, r.Time, r.Missing)
	cfg.App, cfg.Keys = newApp() // it has used up the ones it was given
	n, err := node.Start(ctx, cfg)
	if err != nil {
		return err
	}
	use(n)
	return n.Close()
}

// TestReadmeRecoversASurvivor as it says: a node whose FSM has what was applied once, and not twice.
func TestReadmeRecoversASurvivor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log.SetOutput(io.Discard)
	cfg := node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}}
	var app *keyringtest.Records
	newApp := func() (raft.FSM, *keyring.FSM) {
		keys := keyring.NewFSM()
		app = &keyringtest.Records{Keys: keys, All: map[string][]byte{}}
		return app, keys
	}
	cfg.App, cfg.Keys = newApp()
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := n.Encrypt(ctx, []byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	put, err := json.Marshal([]keyringtest.RecordPut{{Ref: "a", New: sealed}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Apply(ctx, put); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.App, cfg.Keys = newApp()
	err = readmeRecoverNode(ctx, cfg, newApp, func(n *node.Node) {
		if err := n.Keyring().WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		if got, err := n.Decrypt(ctx, app.Copy()["a"], nil); err != nil || string(got) != "data" {
			t.Errorf("%q, %v", got, err)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// TestReadmeRestoresABackup as it says.
func TestReadmeRestoresABackup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log.SetOutput(io.Discard)
	identity := kektest.Identity(t)
	config := func() node.Config {
		return node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}}
	}
	n, err := node.Start(ctx, config())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := n.Encrypt(ctx, []byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	full := errors.New("the disk is full")
	if err := readmeSchedule(keyring.Config{}, []age.Recipient{identity.Recipient()}).Check(); strings.Contains(fmt.Sprint(err), "Backups") {
		t.Errorf("the schedule: %v", err)
	}
	if err := readmeBackup(ctx, n, &file, func(io.Writer) error { return full }, identity.Recipient()); !errors.Is(err, full) {
		t.Fatal(err)
	}
	if st, err := n.Keyring().Status(ctx); err != nil || len(st.NoBackup) != 1 {
		t.Errorf("after a backup that was not kept, no backup of %v, %v", st.NoBackup, err)
	}
	file.Reset()
	if err := readmeBackup(ctx, n, &file, func(io.Writer) error { return nil }, identity.Recipient()); err != nil {
		t.Fatal(err)
	}
	st, err := n.Keyring().Status(ctx)
	if err != nil || len(st.NoBackup) > 0 {
		t.Errorf("no backup of %v, %v", st.NoBackup, err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	err = readmeRestore(ctx, &file, config(), []age.Identity{identity}, st.LastBackup.SHA256, func(restored *node.Node) {
		if err := restored.Keyring().WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		if got, err := restored.Decrypt(ctx, sealed, nil); err != nil || string(got) != "data" {
			t.Errorf("%q, %v", got, err)
		}
	})
	if err != nil {
		t.Error(err)
	}
}
