package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Disk is raft's log, its term and vote, and its snapshots. It remembers which writes fail: raft only logs that, and a
// follower whose log can't be written looks like any other. While the term can't be written raft is parked: see
// SetUint64.
type Disk struct {
	raft.LogStore
	raft.SnapshotStore
	stable  raft.StableStore
	changed func() // called when writes begin to fail, and when they succeed again

	ended   chan struct{} // closed by End
	turn    chan struct{} // taken by who writes the term
	highest uint64        // term that was written; with turn
	parked  atomic.Bool   // raft waits until its term can be written

	grown   chan struct{}             // has one when entries were stored
	running atomic.Pointer[raft.Raft] // set by Attach
	limits  LogLimits                 // set by Measure

	mu       sync.Mutex // guards below
	faults   map[string]DiskFault
	since    int64  // bytes of the entries since the last snapshot
	snapshot int64  // size of that
	folded   uint64 // index of the last entry that it has
}

// DiskFault is what of raft's can't be written, and since when.
type DiskFault struct {
	What  string
	Since time.Time // UTC
	Err   error
}

// String says so in a sentence.
func (f DiskFault) String() string {
	return fmt.Sprintf("raft has been unable to write %s since %s: %v", f.What, f.Since.UTC().Format(time.DateTime+" UTC"), f.Err)
}

// What is written.
const (
	writesLog      = "entries of its log"
	writesVote     = "its term and vote"
	writesSnapshot = "a snapshot"
)

// NewDisk returns a Disk that writes to log, stable, which is the same file, and snaps. It calls changed when writes
// begin to fail, and when they succeed again.
func NewDisk(log raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore, changed func()) *Disk {
	return &Disk{
		LogStore: log, stable: stable, SnapshotStore: snaps, changed: changed,
		ended: make(chan struct{}), turn: make(chan struct{}, 1), grown: make(chan struct{}, 1), faults: map[string]DiskFault{},
	}
}

// End ends the goroutines of raft that are parked. It is called once, when raft has been told to shut down.
func (d *Disk) End() { close(d.ended) }

// Parked is an error while raft is parked. What another server sends it then is refused: each request could park one more
// goroutine.
func (d *Disk) Parked() error {
	if d.parked.Load() {
		return errors.New("raft can't write its term, and waits for its disk")
	}
	return nil
}

// Set implements raft.StableStore. A vote that was not written is not given: raft sees to that.
func (d *Disk) Set(key, value []byte) error { return d.note(writesVote, d.stable.Set(key, value)) }

// Get implements raft.StableStore.
func (d *Disk) Get(key []byte) ([]byte, error) { return d.stable.Get(key) }

// GetUint64 implements raft.StableStore.
func (d *Disk) GetUint64(key []byte) (uint64, error) { return d.stable.GetUint64(key) }

// SetUint64 implements raft.StableStore. Raft panics if its term is not written, and a process that ends has no keys to
// decrypt with. So the write is made again until it succeeds. Until then raft's goroutine does nothing else: it gives no
// vote, takes no entry and leads nobody. After End that goroutine ends: it must not go on in a term that is not on disk.
// A term that was overtaken meanwhile by a higher one is not written over that.
func (d *Disk) SetUint64(key []byte, value uint64) error {
	if !bytes.Equal(key, currentTerm) {
		return d.note(writesVote, d.stable.SetUint64(key, value))
	}
	select {
	case d.turn <- struct{}{}:
	case <-d.ended:
		runtime.Goexit()
	}
	defer func() { <-d.turn }()
	if value < d.highest {
		return nil
	}
	for d.note(writesVote, d.stable.SetUint64(key, value)) != nil {
		d.parked.Store(true)
		select {
		case <-time.After(writeAgain):
		case <-d.ended:
			runtime.Goexit()
		}
	}
	d.parked.Store(false)
	d.highest = value
	return nil
}

// writeAgain is how long Disk waits before it writes a term again.
const writeAgain = time.Second

// StoreLog implements raft.LogStore.
func (d *Disk) StoreLog(l *raft.Log) error {
	err := d.note(writesLog, d.LogStore.StoreLog(l))
	if err == nil {
		d.stored([]*raft.Log{l})
	}
	return err
}

// StoreLogs implements raft.LogStore.
func (d *Disk) StoreLogs(logs []*raft.Log) error {
	err := d.note(writesLog, d.LogStore.StoreLogs(logs))
	if err == nil {
		d.stored(logs)
	}
	return err
}

// Create implements raft.SnapshotStore.
func (d *Disk) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := d.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, d.note(writesSnapshot, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return &diskSink{SnapshotSink: sink, disk: d, index: index, before: d.since}, nil
}

// diskSink is one snapshot that is being written.
type diskSink struct {
	raft.SnapshotSink
	disk   *Disk
	index  uint64
	before int64 // Disk.since when it was begun
	size   int64
	closed bool
}

// Write implements io.Writer.
func (s *diskSink) Write(b []byte) (int, error) {
	n, err := s.SnapshotSink.Write(b)
	s.size += int64(n)
	if err != nil {
		s.disk.note(writesSnapshot, err)
	}
	return n, err
}

// Close implements io.Closer. It completes the snapshot: the first time, for raft closes once more what an FSM has closed.
func (s *diskSink) Close() error {
	err := s.disk.note(writesSnapshot, s.SnapshotSink.Close())
	if err == nil && !s.closed {
		s.closed = true
		s.disk.snapshotMade(s.index, s.size, s.before)
	}
	return err
}

// note records how a write ended, and returns its error.
func (d *Disk) note(what string, err error) error {
	d.mu.Lock()
	f, failing := d.faults[what]
	before := len(d.faults)
	switch {
	case err != nil && !failing:
		d.faults[what] = DiskFault{what, time.Now().UTC().Round(0), err}
	case err != nil:
		d.faults[what] = DiskFault{what, f.Since, err}
	case what == writesSnapshot:
		delete(d.faults, what)
	default: // the log, the term and the vote are one file
		delete(d.faults, writesLog)
		delete(d.faults, writesVote)
	}
	changed := len(d.faults) != before
	d.mu.Unlock()
	if changed {
		d.changed()
	}
	return err
}

// Faults says what can't be written now.
func (d *Disk) Faults() (all []DiskFault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(d.faults)) {
		all = append(all, d.faults[what])
	}
	return all
}
