package cluster_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring/internal/cluster"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// empty is an FSM whose snapshots are empty.
type empty struct{ nothing }

func (empty) Snapshot() (raft.FSMSnapshot, error)  { return empty{}, nil }
func (empty) Persist(sink raft.SnapshotSink) error { return sink.Close() }
func (empty) Release()                             {}

// alone is a server alone, on a directory.
func alone(id raft.ServerID, dir string) cluster.Config {
	return cluster.Config{
		ID: id, Dir: dir, FSM: empty{}, Logger: hclog.NewNullLogger(), DiskChanged: func() {},
		Section: func(r io.Reader) (io.Reader, error) { return r, nil },
	}
}

// startOnce starts a server and closes it.
func startOnce(t *testing.T, id raft.ServerID, dir string) error {
	t.Helper()
	s, err := cluster.Start(t.Context(), alone(id, dir))
	if err != nil {
		return err
	}
	return s.Close()
}

// wantOwner is an error if a refusal does not name the server that the directory is of, and the one that may not have it.
func wantOwner(t *testing.T, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "this directory is s1's raft") || !strings.Contains(err.Error(), "give s3 a") {
		t.Errorf("the directory of s1, copied to s3: %v", err)
	}
}

// copied returns a copy of a directory.
func copied(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "raft")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestACopiedDirectoryIsRefused under another ID: it has the vote and the log of the server that it is of.
func TestACopiedDirectoryIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	if err := startOnce(t, "s1", dir); err != nil {
		t.Fatal(err)
	}
	copied := copied(t, dir)
	wantOwner(t, startOnce(t, "s3", copied))
	_, err := cluster.OpenRecovery(alone("s3", copied))
	wantOwner(t, err)
	wantOwner(t, startOnce(t, "s3", copied)) // what was refused has changed nothing
	if err := startOnce(t, "s1", copied); err != nil {
		t.Errorf("a directory that was moved: %v", err)
	}
}

// TestADirectoryOfAnOlderBuildIsTakenByTheServerThatStartsThere, and is that server's from then on.
func TestADirectoryOfAnOlderBuildIsTakenByTheServerThatStartsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	if err := startOnce(t, "s1", dir); err != nil {
		t.Fatal(err)
	}
	cluster.Disown(t, dir)
	if err := startOnce(t, "s1", dir); err != nil {
		t.Fatal(err)
	}
	wantOwner(t, startOnce(t, "s3", copied(t, dir)))
}

// TestADirectoryWithoutALogIsNobodys: the server that began there has entered no cluster.
func TestADirectoryWithoutALogIsNobodys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	cluster.OwnEmpty(t, dir, "s3")
	if err := startOnce(t, "s1", dir); err != nil {
		t.Fatal(err)
	}
	wantOwner(t, startOnce(t, "s3", dir))
}

// TestWhatIsRestoredOrRecoveredBelongsToTheServer that does it.
func TestWhatIsRestoredOrRecoveredBelongsToTheServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	cluster.OwnEmpty(t, dir, "s3")
	restore, err := cluster.BeginRestore(alone("s1", dir))
	if err != nil {
		t.Fatal(err)
	}
	w, err := restore.Create(5)
	if err == nil {
		_, err = io.WriteString(w, "x")
	}
	if err == nil {
		err = restore.Confirm()
	}
	if err == nil {
		err = restore.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	wantOwner(t, startOnce(t, "s3", copied(t, dir)))

	cluster.Disown(t, dir)
	recovery, err := cluster.OpenRecovery(alone("s1", dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := recovery.Run(); err != nil {
		t.Error(err)
	}
	if err := recovery.Close(); err != nil {
		t.Fatal(err)
	}
	wantOwner(t, startOnce(t, "s3", copied(t, dir)))
}
