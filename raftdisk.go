package keyring

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// raftDisk is the disk of a Node's raft. It remembers which writes fail: raft only logs that, and a
// follower whose log can't be written looks like any other.
type raftDisk struct {
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

// StoreLog implements raft.LogStore.
func (d *raftDisk) StoreLog(l *raft.Log) error { return d.note(writesLog, d.LogStore.StoreLog(l)) }

// StoreLogs implements raft.LogStore.
func (d *raftDisk) StoreLogs(logs []*raft.Log) error {
	return d.note(writesLog, d.LogStore.StoreLogs(logs))
}

// Create implements raft.SnapshotStore.
func (d *raftDisk) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := d.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, d.note(writesSnapshot, err)
	}
	return &diskSink{sink, d}, nil
}

// diskSink is one snapshot that is being written.
type diskSink struct {
	raft.SnapshotSink
	disk *raftDisk
}

// Write implements io.Writer.
func (s *diskSink) Write(b []byte) (int, error) {
	n, err := s.SnapshotSink.Write(b)
	if err != nil {
		s.disk.note(writesSnapshot, err)
	}
	return n, err
}

// Close implements io.Closer. With it the snapshot is whole.
func (s *diskSink) Close() error { return s.disk.note(writesSnapshot, s.SnapshotSink.Close()) }

// note takes in how a write ended, and returns its error.
func (d *raftDisk) note(what string, err error) error {
	d.mu.Lock()
	f, failing := d.faults[what]
	switch {
	case err != nil && !failing:
		d.faults = set(d.faults, what, diskFault{time.Now().UTC().Round(0), err})
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

// describe adds what can't be written.
func (d *raftDisk) describe(st *Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(d.faults)) {
		f := d.faults[what]
		st.Problems = append(st.Problems, Problem{Kind: ProblemRaftDisk, Detail: fmt.Sprintf(
			"raft has been unable to write %s since %s: %v", what, f.since.Format(time.DateTime), f.err)})
	}
}
