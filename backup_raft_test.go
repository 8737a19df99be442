package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// startOn starts a raft on a snapshot store, with an empty log.
func startOn(t *testing.T, snaps raft.SnapshotStore, server raft.Server) (*raft.Raft, *keyring.FSM) {
	t.Helper()
	conf, store, fsm := raft.DefaultConfig(), raft.NewInmemStore(), keyring.NewFSM()
	conf.LocalID, conf.Logger = server.ID, hclog.NewNullLogger()
	_, trans := raft.NewInmemTransport(server.Address)
	r, err := raft.NewRaft(conf, keyring.Mux(fsm, keyringtest.NullFSM{}), store, store, snaps, trans)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Shutdown().Error() })
	return r, fsm
}

// TestRestoreIntoRaftsSnapshotStore: raft starts on it as a cluster of one, whose keys are those of the backup. After an error
// the store is empty.
func TestRestoreIntoRaftsSnapshotStore(t *testing.T) {
	t.Parallel()
	file, m, identity := keyringtest.SmallBackup(t)
	raftDir, dir := t.TempDir(), filepath.Join(t.TempDir(), "keystore")
	snaps, err := raft.NewFileSnapshotStoreWithLogger(raftDir, 2, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	server := raft.Server{ID: "r1", Address: "10.0.0.9:7900"}
	restore := func(change func(*keyring.RestoreOptions)) error {
		o := keyring.RestoreOptions{
			Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Digest: m.SHA256,
			Snapshots: snaps, Server: server,
		}
		change(&o)
		_, err := keyring.Restore(t.Context(), bytes.NewReader(file), o)
		return err
	}
	no := errors.New("no")
	for want, change := range map[string]func(*keyring.RestoreOptions){
		"no": func(o *keyring.RestoreOptions) {
			o.Confirm = func(context.Context, keyring.Manifest) error { return no }
		},
		"more than one of":               func(o *keyring.RestoreOptions) { o.Snapshot = &bytes.Buffer{} },
		"Server has no ID or no Address": func(o *keyring.RestoreOptions) { o.Server.Address = "" },
	} {
		if err := restore(change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if left := keyringtest.FilesIn(t, filepath.Join(raftDir, "snapshots")); len(left) > 0 {
			t.Errorf("%s: %v are left", want, left)
		}
	}
	asIs := func(*keyring.RestoreOptions) {}
	if err := restore(asIs); err != nil {
		t.Fatal(err)
	}
	if err := restore(asIs); err == nil || !strings.Contains(err.Error(), "Snapshots has a snapshot") {
		t.Errorf("again: %v", err)
	}
	r, fsm := startOn(t, snaps, server)
	if got := r.GetConfiguration().Configuration().Servers; len(got) != 1 || got[0] != server {
		t.Errorf("the cluster is %+v", got)
	}
	k, err := keyring.Open(t.Context(), keyring.Config{Dir: dir, ID: server.ID, Raft: r, FSM: fsm, KEKs: []keyring.KEK{keyring.InlineKEK()}})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(k.Keys()) < len(m.Keys) {
		t.Errorf("%d keys, of %d", len(k.Keys()), len(m.Keys))
	}
	if s, err := k.Status(t.Context()); err != nil || len(s.Missing) > 0 {
		t.Errorf("%v are missing, %v", s.Missing, err)
	}
}
