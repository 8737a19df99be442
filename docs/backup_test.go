package docs_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// unpack does what docs/backup.md does with age and tar.
func unpack(t *testing.T, file []byte, identity age.Identity) (dir string) {
	t.Helper()
	plain, err := age.Decrypt(bytes.NewReader(file), identity)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for archive := tar.NewReader(plain); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		content, err := io.ReadAll(archive)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeyComesBackOutOfABackup as docs/recovery.md says: its file is under InlineKEK, until Rewrap.
func TestKeyComesBackOutOfABackup(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	identity := kektest.Identity(t)
	cfg := node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{kektest.File(t, kektest.CountingKey())}}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := n.Encrypt(ctx, []byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	id := n.Keyring().Keys()[0].ID
	if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	_, err = n.Keyring().Backup(ctx, &file, identity.Recipient())
	if err := errors.Join(err, n.Close()); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join("keystore", id.String()+".nks.json")
	if err := os.Remove(filepath.Join(cfg.Dir, name)); err != nil {
		t.Fatal(err)
	}
	opens := func(change func(*keyring.Keyring) error) bool {
		t.Helper()
		n, err := node.Start(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		err = n.Keyring().WaitReady(ctx)
		if err == nil {
			err = change(n.Keyring())
		}
		if err != nil {
			t.Error(err)
		}
		got, err := n.Keyring().Decrypt(sealed, nil)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		return err == nil && string(got) == "data"
	}
	asIs := func(*keyring.Keyring) error { return nil }
	if opens(asIs) {
		t.Error("the data opens without the key")
	}
	unpacked, err := os.ReadFile(filepath.Join(unpack(t, file.Bytes(), identity), name))
	if err := errors.Join(err, os.WriteFile(filepath.Join(cfg.Dir, name), unpacked, 0o600)); err != nil {
		t.Fatal(err)
	}
	if opens(asIs) {
		t.Error("the data opens without InlineKEK")
	}
	cfg.OldKEKs = []keyring.KEK{keyring.InlineKEK()}
	if !opens(func(k *keyring.Keyring) error { return k.Rewrap(ctx) }) {
		t.Error("the data does not open with the file of the backup")
	}
	cfg.OldKEKs = nil
	if !opens(asIs) {
		t.Error("the data does not open after Rewrap")
	}
}

func docsRestoreRaft(ctx context.Context, file io.Reader, dir string, keks []keyring.KEK, identities []age.Identity, digest [32]byte,
	snaps raft.SnapshotStore, conf *raft.Config, transport raft.Transport) (err error) {
	_, err = keyring.Restore(ctx, file, keyring.RestoreOptions{
		Dir:        dir,
		KEKs:       keks,
		Identities: identities,
		Digest:     digest,
		Snapshots:  snaps, // raft starts on them, with an empty log, as a cluster of this server alone
		Server:     raft.Server{ID: conf.LocalID, Address: transport.LocalAddr()},
	})
	return err
}

func docsRecoverRaft(ctx context.Context, cfg keyring.Config, conf *raft.Config, logs raft.LogStore, stable raft.StableStore,
	snaps raft.SnapshotStore, transport raft.Transport, app raft.FSM) ([]keyring.MissingKey, error) {
	missing, err := keyring.RecoverKeys(ctx, cfg, func() error {
		return raft.RecoverCluster(conf, keyring.Mux(cfg.FSM, app), logs, stable, snaps, transport, raft.Configuration{
			Servers: []raft.Server{{Suffrage: raft.Voter, ID: conf.LocalID, Address: transport.LocalAddr()}},
		})
	})
	return missing, err
}

// TestOwnRaftIsRestoredAndRecovered by the two calls of docs/recovery.md.
func TestOwnRaftIsRestoredAndRecovered(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log.SetOutput(io.Discard)
	file, m, identity := keyringtest.SmallBackup(t)
	snaps, err := raft.NewFileSnapshotStoreWithLogger(t.TempDir(), 2, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	store, err := raftboltdb.NewBoltStore(filepath.Join(t.TempDir(), "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	_, transport := raft.NewInmemTransport("10.0.0.9:7900")
	cfg := keyring.Config{Dir: filepath.Join(t.TempDir(), "keystore"), ID: conf.LocalID, KEKs: []keyring.KEK{keyring.InlineKEK()}}
	err = docsRestoreRaft(ctx, bytes.NewReader(file), cfg.Dir, cfg.KEKs, []age.Identity{identity}, m.SHA256, snaps, conf, transport)
	if err != nil {
		t.Fatal(err)
	}
	hostFSM := func() raft.FSM { // with the FSM of the host that made the backup
		cfg.FSM = keyring.NewFSM()
		return keyring.Mux(cfg.FSM, keyringtest.NullFSM{})
	}
	start := func() {
		t.Helper()
		r, err := raft.NewRaft(conf, hostFSM(), store, store, snaps, transport)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Raft = r
		k, err := keyring.Open(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.WaitReady(ctx); err != nil {
			t.Error(err)
		}
		if n := len(k.Keys()); n != len(m.Keys) {
			t.Errorf("%d keys, want %d", n, len(m.Keys))
		}
		st, err := k.Status(ctx)
		if err != nil || slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemKeystore }) {
			t.Errorf("problems %v, %v", st.Problems, err)
		}
		if err := errors.Join(k.Close(), r.Shutdown().Error()); err != nil {
			t.Error(err)
		}
	}
	start()
	lost := filepath.Join(cfg.Dir, m.Keys[0].ID.String()+".nks.json")
	kept, err := os.ReadFile(lost)
	if err := errors.Join(err, os.Remove(lost)); err != nil {
		t.Fatal(err)
	}
	recoverRaft := func() []keyring.MissingKey {
		t.Helper()
		cfg.FSM = keyring.NewFSM()
		missing, err := docsRecoverRaft(ctx, cfg, conf, store, store, snaps, transport, keyringtest.NullFSM{})
		if err != nil {
			t.Fatal(err)
		}
		return missing
	}
	if missing := recoverRaft(); len(missing) != 1 || missing[0].ID != m.Keys[0].ID {
		t.Errorf("missing are %v, want %v", missing, m.Keys[0].ID)
	}
	if err := os.WriteFile(lost, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	if missing := recoverRaft(); len(missing) > 0 {
		t.Errorf("missing are %v", missing)
	}
	start()
}
