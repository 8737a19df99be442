package cluster

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Disk is raft's log and snapshots. It remembers which writes fail: raft only logs that, and a follower whose
// log can't be written looks like any other.
type Disk struct {
	raft.LogStore
	raft.SnapshotStore
	changed func() // called when writes begin to fail, and when they succeed again

	mu     sync.Mutex // guards below
	faults map[string]diskFault
}

// diskFault is a write that failed, and since when such writes have.
type diskFault struct {
	since time.Time
	err   error
}

// What is written.
const (
	writesLog      = "entries of its log"
	writesSnapshot = "a snapshot"
)

// NewDisk returns a Disk that writes to log and snaps. It calls changed when writes begin to fail, and when they
// succeed again.
func NewDisk(log raft.LogStore, snaps raft.SnapshotStore, changed func()) *Disk {
	return &Disk{LogStore: log, SnapshotStore: snaps, changed: changed, faults: map[string]diskFault{}}
}

// StoreLog implements raft.LogStore.
func (d *Disk) StoreLog(l *raft.Log) error { return d.note(writesLog, d.LogStore.StoreLog(l)) }

// StoreLogs implements raft.LogStore.
func (d *Disk) StoreLogs(logs []*raft.Log) error {
	return d.note(writesLog, d.LogStore.StoreLogs(logs))
}

// Create implements raft.SnapshotStore.
func (d *Disk) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := d.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, d.note(writesSnapshot, err)
	}
	return &diskSink{sink, d}, nil
}

// diskSink is one snapshot that is being written.
type diskSink struct {
	raft.SnapshotSink
	disk *Disk
}

// Write implements io.Writer.
func (s *diskSink) Write(b []byte) (int, error) {
	n, err := s.SnapshotSink.Write(b)
	if err != nil {
		s.disk.note(writesSnapshot, err)
	}
	return n, err
}

// Close implements io.Closer. It completes the snapshot.
func (s *diskSink) Close() error { return s.disk.note(writesSnapshot, s.SnapshotSink.Close()) }

// note records how a write ended, and returns its error.
func (d *Disk) note(what string, err error) error {
	d.mu.Lock()
	f, failing := d.faults[what]
	switch {
	case err != nil && !failing:
		d.faults[what] = diskFault{time.Now().UTC().Round(0), err}
	case err != nil:
		d.faults[what] = diskFault{f.since, err}
	case failing:
		delete(d.faults, what)
	}
	d.mu.Unlock()
	if failing != (err != nil) {
		d.changed()
	}
	return err
}

// Faults says which writes fail now, and since when.
func (d *Disk) Faults() (details []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(d.faults)) {
		f := d.faults[what]
		details = append(details, fmt.Sprintf("raft has been unable to write %s since %s: %v", what, f.since.Format(time.DateTime), f.err))
	}
	return details
}
