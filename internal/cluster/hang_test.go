package cluster_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/cluster"
	"github.com/hashicorp/raft"
)

// hangingDisk is a disk of raft's on which no write returns before thaw is closed.
type hangingDisk struct {
	*raft.InmemStore
	*raft.InmemSnapshotStore
	thaw chan struct{}
}

func (d hangingDisk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

func (d hangingDisk) StoreLogs(logs []*raft.Log) error {
	<-d.thaw
	return d.InmemStore.StoreLogs(logs)
}

func (d hangingDisk) DeleteRange(first, last uint64) error {
	<-d.thaw
	return d.InmemStore.DeleteRange(first, last)
}

func (d hangingDisk) Set(key, value []byte) error {
	<-d.thaw
	return d.InmemStore.Set(key, value)
}

func (d hangingDisk) SetUint64(key []byte, value uint64) error {
	<-d.thaw
	return d.InmemStore.SetUint64(key, value)
}

func (d hangingDisk) Create(v raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	<-d.thaw
	return d.InmemSnapshotStore.Create(v, index, term, conf, confIndex, trans)
}

// TestWriteOfRaftsThatHangsIsAProblemUntilItReturns: it is told of by who asks meanwhile, the change is told, and nothing more is
// taken from the other servers.
func TestWriteOfRaftsThatHangsIsAProblemUntilItReturns(t *testing.T) {
	snapshot := func(d *cluster.Disk) error {
		_, trans := raft.NewInmemTransport("s1")
		_, err := d.Create(1, 1, 1, raft.Configuration{}, 1, trans)
		return err
	}
	for what, c := range map[string]struct {
		write    func(*cluster.Disk) error
		wrote    string
		patience time.Duration
		takes    bool // what other servers send, all the same
	}{
		"an entry":         {func(d *cluster.Disk) error { return d.StoreLog(&raft.Log{Index: 1}) }, "entries of its log", 10 * time.Second, false},
		"entries":          {func(d *cluster.Disk) error { return d.StoreLogs([]*raft.Log{{Index: 1}}) }, "entries of its log", 10 * time.Second, false},
		"entries dropped":  {func(d *cluster.Disk) error { return d.DeleteRange(1, 2) }, "entries of its log", 10 * time.Second, false},
		"a term":           {func(d *cluster.Disk) error { return d.SetUint64([]byte("CurrentTerm"), 2) }, "its term and vote", 10 * time.Second, false},
		"the vote's term":  {func(d *cluster.Disk) error { return d.SetUint64([]byte("LastVoteTerm"), 2) }, "its term and vote", 10 * time.Second, false},
		"the vote":         {func(d *cluster.Disk) error { return d.Set([]byte("LastVoteCand"), []byte("s2")) }, "its term and vote", 10 * time.Second, false},
		"a snapshot begun": {snapshot, "a snapshot", time.Minute, true},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := hangingDisk{raft.NewInmemStore(), raft.NewInmemSnapshotStore(), make(chan struct{})}
				var changes atomic.Int32
				d := cluster.NewDisk(disk, disk, disk, func() { changes.Add(1) })
				began := time.Now()
				wrote := make(chan error, 1)
				go func() { wrote <- c.write(d) }()
				look := func(when, want string, wantChanges int32) {
					t.Helper()
					synctest.Wait()
					if got := fmt.Sprint(d.Faults()); !strings.Contains(got, want) || want == "" && got != "[]" || changes.Load() != wantChanges {
						t.Errorf("%s: %d changes, %s, want %d, %q", when, changes.Load(), got, wantChanges, want)
					}
					if takes := want == "" || c.takes; (d.Parked() == nil) != takes {
						t.Errorf("%s: it takes in nothing: %v, want %v", when, d.Parked(), !takes)
					}
				}
				time.Sleep(c.patience - time.Second)
				look("for a while", "", 0)
				time.Sleep(time.Second)
				look("for too long", c.wrote+" has not returned since "+began.UTC().Format(time.DateTime)+" UTC", 1)
				time.Sleep(time.Hour)
				look("an hour later", c.wrote+" has not returned since", 1)
				close(disk.thaw)
				if err := <-wrote; err != nil {
					t.Error(err)
				}
				look("when it has returned", "", 2)
			})
		})
	}
}
