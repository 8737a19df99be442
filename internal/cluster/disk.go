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

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/mono"
	"github.com/hashicorp/raft"
)

// Disk is raft's log, its term and vote, and its snapshots. It remembers which writes fail, and which have not returned: raft
// only logs the former and knows nothing of the latter, and a server whose log can't be written looks like any other. While
// the term can't be written raft is parked: see SetUint64.
type Disk struct {
	raft.LogStore
	raft.SnapshotStore
	stable  raft.StableStore
	changed func()     // called when writes begin to fail or hang, and when they succeed or return again
	writes  gate.Calls // by what is written

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
	Err   error     // nil if the write has not returned
}

// String says so in a sentence.
func (f DiskFault) String() string {
	since := f.Since.UTC().Format(time.DateTime + " UTC")
	if f.Err == nil {
		return fmt.Sprintf("the disk hangs: raft's write of %s has not returned since %s", f.What, since)
	}
	return fmt.Sprintf("raft has been unable to write %s since %s: %v", f.What, since, f.Err)
}

// What is written.
const (
	writesLog      = "entries of its log"
	writesVote     = "its term and vote"
	writesSnapshot = "a snapshot"
)

// How long a write may take before it counts as one that hangs: longer than an election takes, and a snapshot is large.
const (
	writePatience    = 10 * time.Second
	snapshotPatience = time.Minute
)

// NewDisk returns a Disk that writes to log, stable, which is the same file, and snaps. It calls changed when writes
// begin to fail or to hang, and when they succeed or return again.
func NewDisk(log raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore, changed func()) *Disk {
	return &Disk{
		LogStore: log, stable: stable, SnapshotStore: snaps, changed: changed,
		ended: make(chan struct{}), turn: make(chan struct{}, 1), grown: make(chan struct{}, 1), faults: map[string]DiskFault{},
	}
}

// End ends the goroutines of raft that are parked. It is called once, when raft has been told to shut down.
func (d *Disk) End() { close(d.ended) }

// Parked is an error while raft is parked, or waits for a write of its log that hangs. What another server sends it then is
// refused: each request could park one more goroutine.
func (d *Disk) Parked() error {
	if d.parked.Load() {
		return errors.New("raft can't write its term, and waits for its disk")
	}
	slow := d.writes.Slow(mono.Now())
	for _, what := range []string{writesLog, writesVote} {
		if since, hangs := slow[what]; hangs {
			return errors.New(DiskFault{What: what, Since: since}.String())
		}
	}
	return nil
}

// Set implements raft.StableStore. A vote that was not written is not given: raft sees to that.
func (d *Disk) Set(key, value []byte) error {
	return d.write(writesVote, func() error { return d.stable.Set(key, value) })
}

// Get implements raft.StableStore.
func (d *Disk) Get(key []byte) ([]byte, error) { return d.stable.Get(key) }

// GetUint64 implements raft.StableStore.
func (d *Disk) GetUint64(key []byte) (uint64, error) { return d.stable.GetUint64(key) }

// SetUint64 implements raft.StableStore. Raft panics if its term is not written, and a process that ends has no keys to
// decrypt with. So the write is made again until it succeeds. Until then raft's goroutine does nothing else: it gives no
// vote, takes no entry and leads nobody. After End that goroutine ends: it must not go on in a term that is not on disk.
// A term that was overtaken meanwhile by a higher one is not written over that.
func (d *Disk) SetUint64(key []byte, value uint64) error {
	set := func() error { return d.stable.SetUint64(key, value) }
	if !bytes.Equal(key, currentTerm) {
		return d.write(writesVote, set)
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
	for d.write(writesVote, set) != nil {
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
	err := d.write(writesLog, func() error { return d.LogStore.StoreLog(l) })
	if err == nil {
		d.stored([]*raft.Log{l})
	}
	return err
}

// StoreLogs implements raft.LogStore.
func (d *Disk) StoreLogs(logs []*raft.Log) error {
	err := d.write(writesLog, func() error { return d.LogStore.StoreLogs(logs) })
	if err == nil {
		d.stored(logs)
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (d *Disk) DeleteRange(first, last uint64) (err error) {
	d.watch(writesLog, writePatience, func() { err = d.LogStore.DeleteRange(first, last) })
	return err
}

// Create implements raft.SnapshotStore.
func (d *Disk) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	var sink raft.SnapshotSink
	var err error
	d.watch(writesSnapshot, snapshotPatience, func() {
		sink, err = d.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	})
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
func (s *diskSink) Write(b []byte) (n int, err error) {
	s.disk.watch(writesSnapshot, snapshotPatience, func() { n, err = s.SnapshotSink.Write(b) })
	s.size += int64(n)
	if err != nil {
		s.disk.note(writesSnapshot, err)
	}
	return n, err
}

// Close implements io.Closer. It completes the snapshot: the first time, for raft closes once more what an FSM has closed.
func (s *diskSink) Close() (err error) {
	s.disk.watch(writesSnapshot, snapshotPatience, func() { err = s.SnapshotSink.Close() })
	s.disk.note(writesSnapshot, err)
	if err == nil && !s.closed {
		s.closed = true
		s.disk.snapshotMade(s.index, s.size, s.before)
	}
	return err
}

// watch does a write. What it writes is told of while it hangs.
func (d *Disk) watch(what string, patience time.Duration, do func()) {
	defer d.writes.Begin(what, patience, d.changed)()
	do()
}

// write does a write, and records how it ended.
func (d *Disk) write(what string, do func() error) (err error) {
	d.watch(what, writePatience, func() { err = do() })
	return d.note(what, err)
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

// Faults says what can't be written now: first the writes that have not returned. It waits for none of them.
func (d *Disk) Faults() (all []DiskFault) {
	slow := d.writes.Slow(mono.Now())
	for _, what := range slices.Sorted(maps.Keys(slow)) {
		all = append(all, DiskFault{What: what, Since: slow[what].UTC().Round(0)})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(d.faults)) {
		all = append(all, d.faults[what])
	}
	return all
}
