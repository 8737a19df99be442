package cluster_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/cluster"
	"github.com/hashicorp/go-hclog"
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
	d := cluster.NewDisk(log, log, snaps, func() { changes++ })
	expect := func(what string, want string, wantChanges int) {
		t.Helper()
		if got := fmt.Sprint(d.Faults()); !strings.Contains(got, want) || want == "" && got != "[]" || changes != wantChanges {
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
	log.err = failing
	if err := d.Set([]byte("LastVoteCand"), []byte("s2")); err != failing {
		t.Errorf("a vote that is not written: %v", err)
	}
	expect("vote", "its term and vote since", 3)
	log.err = nil
	if err := d.StoreLog(entry[0]); err != nil { // it is the same file, and there may be no vote for years
		t.Error(err)
	}
	expect("the file again", "", 4)

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
	expect("snapshot", "a snapshot since", 5)
}

// parked is a raft of two voters, of which the test plays the other one, on a disk that fails.
type parked struct {
	raft  *raft.Raft
	disk  *cluster.Disk
	store *fickleLog
	other *raft.InmemTransport
}

func newParked(t *testing.T) parked {
	p := parked{store: &fickleLog{InmemStore: raft.NewInmemStore()}}
	p.disk = cluster.NewDisk(p.store, p.store, raft.NewInmemSnapshotStore(), func() {})
	_, own := raft.NewInmemTransportWithTimeout("s1", time.Second)
	_, p.other = raft.NewInmemTransportWithTimeout("s2", time.Second)
	p.other.Connect("s1", own)
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "s1", hclog.NewNullLogger()
	conf.ElectionTimeout, conf.HeartbeatTimeout = time.Hour, time.Hour // the test alone begins something
	servers := raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: "s1"}, {ID: "s2", Address: "s2"}}}
	must(t, raft.BootstrapCluster(conf, p.store, p.store, raft.NewInmemSnapshotStore(), own, servers))
	r, err := raft.NewRaft(conf, &raft.MockFSM{}, p.disk, p.disk, p.disk, own)
	must(t, err)
	p.raft = r
	return p
}

// vote asks for a vote in a term, as a leader does that hands over: it is not refused because of the one before.
func (p parked) vote(term uint64) (raft.RequestVoteResponse, error) {
	q := &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("s2"), Addr: []byte("s2")}, Term: term, LastLogIndex: 9, LastLogTerm: 9, LeadershipTransfer: true}
	var a raft.RequestVoteResponse
	return a, p.other.RequestVote("s1", "s1", q, &a)
}

func (p parked) close(t *testing.T) {
	ended := p.raft.Shutdown()
	p.disk.End()
	must(t, ended.Error())
}

// TestRaftIsParkedWhileItsTermCanNotBeWritten: it does not panic, and gives no vote; when the disk takes it, it goes on.
func TestRaftIsParkedWhileItsTermCanNotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParked(t)
		p.store.fail(errors.New("input/output error"))
		began := time.Now()
		if a, err := p.vote(10); err == nil {
			t.Errorf("an answer without a disk: %+v", a)
		}
		time.Sleep(time.Hour)
		if p.disk.Parked() == nil || p.raft.CurrentTerm() != 1 {
			t.Errorf("parked: %v, in term %d", p.disk.Parked(), p.raft.CurrentTerm())
		}
		if f := p.disk.Faults(); len(f) != 1 || !f[0].Since.Equal(began) || !strings.Contains(f[0].String(), "its term and vote since") {
			t.Errorf("the disk has %v, want one since %v", f, began)
		}
		p.store.fail(nil)
		time.Sleep(2 * time.Second)
		if p.disk.Parked() != nil || len(p.disk.Faults()) != 0 || p.raft.CurrentTerm() != 10 {
			t.Errorf("healed: %v, %v, in term %d", p.disk.Parked(), p.disk.Faults(), p.raft.CurrentTerm())
		}
		if a, err := p.vote(11); err != nil || !a.Granted {
			t.Errorf("a vote, on a disk that works again: %+v, %v", a, err)
		}
		p.close(t)
	})
}

// TestParkedRaftEnds when it is shut down, and writes nothing more.
func TestParkedRaftEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParked(t)
		p.store.fail(errors.New("input/output error"))
		p.vote(10)
		p.close(t)
		p.store.fail(nil)
		time.Sleep(time.Hour)
		if term, err := p.store.GetUint64([]byte("CurrentTerm")); err != nil || term != 1 {
			t.Errorf("term %d was written after the end, %v", term, err)
		}
	})
}

// TestWriteOfATermNeverReturnsAfterTheEnd, neither the one under way nor one that waits for it: who called would go on in a term
// that is not on disk.
func TestWriteOfATermNeverReturnsAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fickleLog{InmemStore: raft.NewInmemStore()}
		store.fail(errors.New("input/output error"))
		d := cluster.NewDisk(store, store, raft.NewInmemSnapshotStore(), func() {})
		var writers sync.WaitGroup
		for term := range uint64(2) {
			writers.Go(func() {
				err := d.SetUint64([]byte("CurrentTerm"), term+2)
				t.Errorf("it returns: %v", err)
			})
		}
		synctest.Wait()
		d.End()
		writers.Wait()
	})
}

// TestVoteThatIsNotWrittenIsNotGiven.
func TestVoteThatIsNotWrittenIsNotGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newParked(t)
		for _, key := range []string{"LastVoteTerm", "LastVoteCand"} {
			p.store.failAt(key)
			if a, err := p.vote(p.raft.CurrentTerm() + 1); err != nil || a.Granted {
				t.Errorf("%s is not written: %+v, %v", key, a, err)
			}
		}
		p.store.failAt("")
		if a, err := p.vote(p.raft.CurrentTerm() + 1); err != nil || !a.Granted {
			t.Errorf("afterwards: %+v, %v", a, err)
		}
		p.close(t)
	})
}

// TestNoTermIsWrittenOverAHigherOne by a request that has waited longer.
func TestNoTermIsWrittenOverAHigherOne(t *testing.T) {
	store := &fickleLog{InmemStore: raft.NewInmemStore()}
	d := cluster.NewDisk(store, store, raft.NewInmemSnapshotStore(), func() {})
	for _, term := range []uint64{3, 7, 5} {
		must(t, d.SetUint64([]byte("CurrentTerm"), term))
	}
	if term, err := store.GetUint64([]byte("CurrentTerm")); err != nil || term != 7 {
		t.Errorf("term %d, %v", term, err)
	}
}

// fickleLog is a store that takes nothing while err is set, and never the value of the key at.
type fickleLog struct {
	*raft.InmemStore
	mu  sync.Mutex
	err error
	at  string
}

func (l *fickleLog) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *fickleLog) failAt(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = key
}

func (l *fickleLog) failure(key string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && key == l.at && key != "" {
		return errors.New("no space left on device")
	}
	return l.err
}

func (l *fickleLog) Set(key, value []byte) error {
	if err := l.failure(string(key)); err != nil {
		return err
	}
	return l.InmemStore.Set(key, value)
}

func (l *fickleLog) SetUint64(key []byte, value uint64) error {
	if err := l.failure(string(key)); err != nil {
		return err
	}
	return l.InmemStore.SetUint64(key, value)
}

func (l *fickleLog) StoreLogs(logs []*raft.Log) error {
	if err := l.failure(""); err != nil {
		return err
	}
	return l.InmemStore.StoreLogs(logs)
}

func (l *fickleLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
