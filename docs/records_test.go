package docs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"example.com/keyring/records"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// mapNode runs a server alone whose FSM is a Map, and calls use when it has stored and opened a secret.
func mapNode(ctx context.Context, dir string, secret []byte, use func(n *node.Node, m *records.Map, record records.Record, parts [][]byte) error) error {
	keys := keyring.NewFSM()
	m := records.New(keys)
	n, err := node.Start(ctx, node.Config{
		Dir:  dir,
		KEKs: []keyring.KEK{keyring.InlineKEK()},
		App:  m, Keys: keys, Data: m,
	})
	if err != nil {
		return err
	}
	defer n.Close()
	m.Connect(n.Keyring(), n.Apply)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	write := records.Write{Name: "db/password", Parts: [][]byte{secret}, If: new(uint64(0))} // only if there is none
	if _, err := m.Put(ctx, write); err != nil {
		return err
	}
	record, parts, err := m.Open("db/password")
	if err != nil {
		return err
	}
	return use(n, m, record, parts)
}

// TestNodeWhoseFSMIsAMap: a full rotation moves its records, and then their key can be removed.
func TestNodeWhoseFSMIsAMap(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	err := mapNode(ctx, t.TempDir(), []byte("secret"), func(n *node.Node, m *records.Map, record records.Record, parts [][]byte) error {
		if record.Version == 0 || len(parts) != 1 || string(parts[0]) != "secret" {
			t.Errorf("%+v has %q", record, parts)
		}
		again := records.Write{Name: "db/password", Parts: [][]byte{nil}, If: new(uint64(0))}
		if _, err := m.Put(ctx, again); !errors.Is(err, records.ErrVersion) {
			t.Errorf("although there is one: %v", err)
		}
		old := n.Keyring().Keys()[0].ID
		if _, err := n.Rotate(ctx, keyring.RotateOptions{Full: true}); err != nil {
			return err
		}
		if err := n.Remove(ctx, old, keyring.RemoveOptions{Now: true}); err != nil {
			return err
		}
		if left := n.Keyring().Keys(); len(left) != 1 || left[0].ID == old {
			t.Errorf("%d keys are left", len(left))
		}
		_, parts, err := m.Open("db/password")
		if err != nil || string(parts[0]) != "secret" {
			t.Errorf("after the rotation: %q, %v", parts, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// clearLog leaves no plaintext in raft's log and snapshots, of which retained are kept.
func clearLog(r *raft.Raft, retained int) error {
	rc := r.ReloadableConfig()
	kept := rc.TrailingLogs
	rc.TrailingLogs = 0 // the next snapshot leaves no entry that it contains
	if err := r.ReloadConfig(rc); err != nil {
		return err
	}
	for range retained { // as many as the snapshot store keeps
		if err := r.Snapshot().Error(); err != nil {
			return err
		}
	}
	rc.TrailingLogs = kept
	return r.ReloadConfig(rc)
}

// oldCommands is the FSM of a host that had its data in the clear: a command is a name and a value.
type oldCommands struct{ *records.Map }

// Apply implements raft.FSM.
func (o oldCommands) Apply(l *raft.Log) any {
	if records.Is(l.Data) {
		return o.Map.Apply(l)
	}
	var c struct{ Name, Value string }
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return err
	}
	return o.SetPlain(records.Record{Name: c.Name, Version: l.Index, Parts: [][]byte{[]byte(c.Value)}})
}

// slowStore takes a millisecond for a snapshot, by which the names of raft's files differ.
type slowStore struct{ raft.SnapshotStore }

func (s slowStore) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	time.Sleep(time.Millisecond) // virtual
	return s.SnapshotStore.Create(v, index, term, c, ci, t)
}

// TestPlaintextsLeaveRaftsFiles: a value of before the keyring is in the log and in a snapshot, and after the steps of the page in
// neither.
func TestPlaintextsLeaveRaftsFiles(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		conf, keys := raft.DefaultConfig(), keyring.NewFSM()
		conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
		log, err := raftboltdb.NewBoltStore(filepath.Join(t.TempDir(), "log.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		files, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, conf.Logger)
		if err != nil {
			t.Fatal(err)
		}
		snapshots := slowStore{files}
		addr, trans := raft.NewInmemTransport("")
		if err := raft.BootstrapCluster(conf, log, log, snapshots, trans, raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: addr}}}); err != nil {
			t.Fatal(err)
		}
		m := records.New(keys)
		r, err := raft.NewRaft(conf, keyring.Mux(keys, oldCommands{m}), log, log, snapshots, trans)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { r.Shutdown().Error() }()
		for !(<-r.LeaderCh()) {
		}
		f := r.Apply([]byte(`{"Name": "smtp", "Value": "hunter2"}`), 0)
		if err := errors.Join(f.Error(), r.Snapshot().Error()); err != nil || f.Response() != nil {
			t.Fatal(err, f.Response())
		}
		k, err := keyring.Open(ctx, keyring.Config{
			Dir: t.TempDir(), ID: "s1", Raft: r, FSM: keys, KEKs: []keyring.KEK{keyring.InlineKEK()}, Data: m,
			Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		m.Connect(k, records.Through(r))
		awaitSealed(t, m)
		if inLog, inFiles := plaintexts(t, log, dir, "hunter2"); inLog == 0 || inFiles == 0 {
			t.Errorf("before: in %d entries and %d files", inLog, inFiles)
		}
		if err := clearLog(r, 2); err != nil {
			t.Fatal(err)
		}
		if _, parts, err := m.Open("smtp"); err != nil || string(parts[0]) != "hunter2" {
			t.Errorf("it opens %q, %v", parts, err)
		}
		if err := errors.Join(k.Close(), r.Shutdown().Error()); err != nil {
			t.Fatal(err)
		}
		if inLog, inFiles := plaintexts(t, log, dir, "hunter2"); inLog > 0 || inFiles > 0 {
			t.Errorf("after: in %d entries and %d files", inLog, inFiles)
		}
	})
}

// TestPlaintextsLeaveANodesFiles by more entries and snapshots, as the page says.
func TestPlaintextsLeaveANodesFiles(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		start := func(entries int) (*node.Node, *records.Map) {
			keys := keyring.NewFSM()
			m := records.New(keys)
			n, err := node.Start(t.Context(), node.Config{
				Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, App: oldCommands{m}, Keys: keys, Data: m,
				Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"}, SnapshotEntries: entries,
			})
			if err != nil {
				t.Fatal(err)
			}
			m.Connect(n.Keyring(), n.Apply)
			if err := n.Keyring().WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
			return n, m
		}
		inNode := func() (inLog, inFiles int) {
			log, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft", "raft.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			return plaintexts(t, log, filepath.Join(dir, "raft", "snapshots"), "hunter2")
		}
		n, m := start(0)
		if _, err := n.Apply(t.Context(), []byte(`{"Name": "smtp", "Value": "hunter2"}`)); err != nil {
			t.Fatal(err)
		}
		awaitSealed(t, m)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if inLog, _ := inNode(); inLog == 0 {
			t.Error("the plaintext was never in the log")
		}
		n, m = start(16)
		for range 2 {
			for range 21 {
				if _, err := m.Put(t.Context(), records.Write{Name: "other", Parts: [][]byte{nil}}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(5 * time.Minute) // virtual: raft looks every two minutes
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		if inLog, inFiles := inNode(); inLog > 0 || inFiles > 0 {
			t.Errorf("after: in %d entries and %d files", inLog, inFiles)
		}
	})
}

// awaitSealed waits until nothing of a Map is in the clear.
func awaitSealed(t *testing.T, m *records.Map) {
	t.Helper()
	for {
		changed := m.Changed()
		left, err := m.Count(t.Context(), keyring.KeyID{})
		if err != nil {
			t.Fatal(err)
		}
		if left == 0 {
			return
		}
		<-changed
	}
}

// plaintexts counts the entries of a log and the files of a directory that have it.
func plaintexts(t *testing.T, log raft.LogStore, dir, plaintext string) (inLog, inFiles int) {
	t.Helper()
	first, err := log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	for i := max(first, 1); i <= last; i++ {
		var l raft.Log
		if err := log.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(l.Data, []byte(plaintext)) {
			inLog++
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(plaintext)) {
			inFiles++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return inLog, inFiles
}
