package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/cluster"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// sized is an FSM whose snapshots have so many bytes.
type sized int

func (sized) Apply(*raft.Log) any                   { return nil }
func (s sized) Snapshot() (raft.FSMSnapshot, error) { return s, nil }
func (sized) Restore(r io.ReadCloser) error         { return r.Close() }
func (sized) Release()                              {}
func (s sized) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(make([]byte, s)); err != nil {
		return err
	}
	return sink.Close()
}

// counted counts the snapshots of an FSM.
type counted struct {
	sized
	made *int
}

func (c counted) Snapshot() (raft.FSMSnapshot, error) { *c.made++; return c.sized, nil }

// kept is a raft alone whose log is kept short.
type kept struct {
	raft  *raft.Raft
	store *raft.InmemStore
	snaps *raft.InmemSnapshotStore
	log   *bytes.Buffer // lines at Warn and above, to be read after close
	close func()
}

func newKept(t *testing.T, fsm raft.FSM, store *raft.InmemStore, snaps *raft.InmemSnapshotStore, l cluster.LogLimits) kept {
	d := cluster.NewDisk(store, store, snaps, func() {})
	must(t, d.Measure(l))
	_, trans := raft.NewInmemTransport("s1")
	var lines bytes.Buffer
	conf, logger := raft.DefaultConfig(), hclog.New(&hclog.LoggerOptions{Output: &lines, Level: hclog.Warn})
	conf.LocalID, conf.Logger = "s1", logger
	if last, _ := store.LastIndex(); last == 0 {
		must(t, raft.BootstrapCluster(conf, store, store, snaps, trans, raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: "s1"}}}))
	}
	r, err := raft.NewRaft(conf, fsm, d, d, d, trans)
	must(t, err)
	d.Attach(r)
	ctx, end := context.WithCancel(t.Context())
	var loop sync.WaitGroup
	loop.Go(func() { d.KeepLogShort(ctx, logger) })
	return kept{r, store, snaps, &lines, func() {
		end()
		must(t, r.Shutdown().Error())
		loop.Wait()
	}}
}

// write applies entries of size bytes each, one after the other.
func (k kept) write(t *testing.T, entries, size int) {
	for k.raft.State() != raft.Leader {
		time.Sleep(time.Second)
	}
	for range entries {
		must(t, k.raft.Apply(make([]byte, size), 0).Error())
		time.Sleep(2 * time.Second) // the snapshot that it has caused is made, if not when it was stored, then once it was applied
	}
}

// bytes are those of the log.
func (k kept) bytes(t *testing.T) (n int) {
	first, err := k.store.FirstIndex()
	must(t, err)
	last, err := k.store.LastIndex()
	must(t, err)
	for i := first; i <= last; i++ {
		var l raft.Log
		must(t, k.store.GetLog(i, &l))
		n += len(l.Data)
	}
	return n
}

// TestLogIsBoundedInBytes by the limit, or by the size of a snapshot that is larger: then no more is written for snapshots than
// for the log.
func TestLogIsBoundedInBytes(t *testing.T) {
	for _, tt := range []struct {
		name     string
		snapshot sized
		entry    int
		atMost   int
		atLeast  int // what is kept for servers that were down for a while
	}{
		{"small state", 10, 64 << 10, 1<<20 + 1<<19 + 64<<10, 1<<19 - 64<<10},
		{"large state", 3 << 20, 64 << 10, 6<<20 + 128<<10, 3<<20 - 64<<10},
		{"large entries", 10, 2 << 20, 4 << 20, 2 << 20},
		{"small entries", 10, 100, 1<<20 + 1<<19 + 100, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			made := 0
			k := newKept(t, counted{tt.snapshot, &made}, raft.NewInmemStore(), raft.NewInmemSnapshotStore(), cluster.LogLimits{Bytes: 1 << 20})
			defer k.close()
			entries := 200
			if tt.entry > 1<<20 {
				entries = 20
			}
			for i := range entries {
				k.write(t, 1, tt.entry)
				if n, least := k.bytes(t), min(tt.atLeast, (i+1)*tt.entry); n < least || n > tt.atMost {
					t.Fatalf("%s: the log has %d bytes after %d entries, want %d to %d", tt.name, n, i+1, least, tt.atMost)
				}
			}
			if most := entries * (tt.entry + 64) / max(1<<20, int(tt.snapshot)); made > most+1 {
				t.Errorf("%s: %d snapshots, want at most %d", tt.name, made, most+1)
			}
		})
	}
}

// TestSnapshotThatIsClosedTwiceCountsOnce: raft closes the sink of an FSM that has closed it, and meanwhile entries are stored
// that the snapshot does not have.
func TestSnapshotThatIsClosedTwiceCountsOnce(t *testing.T) {
	store := raft.NewInmemStore()
	d := cluster.NewDisk(store, store, raft.NewInmemSnapshotStore(), func() {})
	must(t, d.Measure(cluster.LogLimits{Bytes: 1 << 20}))
	written := uint64(0)
	write := func() {
		for range 4 {
			written++
			must(t, d.StoreLog(&raft.Log{Index: written, Data: make([]byte, 1<<18)}))
		}
	}
	write()
	_, trans := raft.NewInmemTransport("s1")
	sink, err := d.Create(1, written, 1, raft.Configuration{}, 1, trans)
	must(t, err)
	write()
	must(t, errors.Join(sink.Close(), sink.Close()))
	if !d.Due() {
		t.Error("a MiB of entries that are in no snapshot is not counted")
	}
}

// TestLongLogOfAnOlderBuildIsShortened when the server starts.
func TestLongLogOfAnOlderBuildIsShortened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, snaps := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
		k := newKept(t, sized(10), store, snaps, cluster.LogLimits{Bytes: 1 << 40})
		k.write(t, 100, 64<<10)
		k.close()
		k = newKept(t, sized(10), store, snaps, cluster.LogLimits{Bytes: 1 << 20})
		k.write(t, 1, 10)
		time.Sleep(time.Minute) // the first attempt may have come before there was anything to snapshot
		if n := k.bytes(t); n > 1<<19 {
			t.Errorf("the log has %d bytes", n)
		}
		k.close()
	})
}

// TestLongLogWithoutALeaderIsNotLoggedForEver: nothing of it is applied, so there is nothing to snapshot.
func TestLongLogWithoutALeaderIsNotLoggedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := raft.NewInmemStore()
		both := raft.Configuration{Servers: []raft.Server{{ID: "s1", Address: "s1"}, {ID: "s2", Address: "s2"}}}
		must(t, store.StoreLogs([]*raft.Log{
			{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(both)},
			{Index: 2, Term: 1, Type: raft.LogCommand, Data: make([]byte, 2<<20)},
		}))
		must(t, store.SetUint64([]byte("CurrentTerm"), 1))
		k := newKept(t, sized(10), store, raft.NewInmemSnapshotStore(), cluster.LogLimits{Bytes: 1 << 20})
		time.Sleep(10 * time.Minute)
		k.close()
		if n := strings.Count(k.log.String(), "snapshot"); n > 0 {
			t.Errorf("the log has %d lines about snapshots", n)
		}
	})
}
