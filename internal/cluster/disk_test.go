package cluster_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring/internal/cluster"
	"github.com/hashicorp/raft"
)

// TestDiskOfRaftIsAProblemAsLongAsItFails, for the log and for snapshots.
func TestDiskOfRaftIsAProblemAsLongAsItFails(t *testing.T) {
	failing := errors.New("no space left on device")
	log := &fickleLog{InmemStore: raft.NewInmemStore()}
	path := t.TempDir()
	snaps, err := raft.NewFileSnapshotStore(path, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	changes := 0
	d := cluster.NewDisk(log, snaps, func() { changes++ })
	expect := func(what string, want string, wantChanges int) {
		t.Helper()
		if got := strings.Join(d.Faults(), "\n"); !strings.Contains(got, want) || want == "" && got != "" || changes != wantChanges {
			t.Errorf("%s: %d changes, %q, want %d, %q", what, changes, got, wantChanges, want)
		}
	}
	entry := []*raft.Log{{Index: 1}}
	log.err = failing
	for range 2 {
		if err := d.StoreLogs(entry); err != failing {
			t.Error(err)
		}
		expect("log", "entries of its log since", 1)
	}
	log.err = nil
	if err := d.StoreLog(entry[0]); err != nil {
		t.Error(err)
	}
	expect("log again", "", 2)

	_, trans := raft.NewInmemTransport("s1")
	create := func() (raft.SnapshotSink, error) { return d.Create(1, 1, 1, raft.Configuration{}, 1, trans) }
	sink, err := create()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(path, "snapshots")); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err == nil {
		t.Error("a snapshot without a directory is whole")
	}
	expect("snapshot", "a snapshot since", 3)
}

// fickleLog is a log that takes nothing while err is set.
type fickleLog struct {
	*raft.InmemStore
	err error
}

func (l *fickleLog) StoreLogs(logs []*raft.Log) error {
	if l.err != nil {
		return l.err
	}
	return l.InmemStore.StoreLogs(logs)
}

func (l *fickleLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }
