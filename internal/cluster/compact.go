package cluster

// How raft's log is kept short: by entries, which raft sees to, and by bytes.

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Defaults of LogLimits.
const (
	DefaultSnapshotEntries = 8192
	DefaultSnapshotBytes   = 32 << 20
)

// entryOverhead is about what an entry takes besides its data.
const entryOverhead = 64

// snapshotAgain is how long after a snapshot that has failed the next one is tried. snapshotSoon is that while nothing is
// applied that a snapshot does not have: what was stored is applied a moment later, or, without a leader, not at all.
const (
	snapshotAgain = 10 * time.Second
	snapshotSoon  = time.Second
)

// LogLimits say when raft makes a snapshot and drops what the log has before it.
type LogLimits struct {
	// Entries since the last snapshot. Raft looks every two minutes. Zero means 8192.
	Entries uint64
	// Bytes of entries since the last snapshot, or as many as that has, if it has more: a large state is not written
	// more often than the log. Zero means 32 MiB.
	Bytes int64
}

func (l LogLimits) filled() LogLimits {
	return LogLimits{cmp.Or(l.Entries, DefaultSnapshotEntries), cmp.Or(l.Bytes, DefaultSnapshotBytes)}
}

// most is how many entries are kept behind the last one, for servers that were down for a while.
func (l LogLimits) most() uint64 { return l.Entries + l.Entries/4 }

// bytesKept is how many bytes of entries are kept behind the last one, where a snapshot has so many: a server that lacks
// more is better sent the snapshot.
func (l LogLimits) bytesKept(snapshot int64) int64 { return max(l.Bytes/2, snapshot) }

func sizeOf(l *raft.Log) int64 { return int64(len(l.Data)+len(l.Extensions)) + entryOverhead }

// trailing is how many of the last entries of a log have no more than so many bytes together: at least one, at most most.
func trailing(log raft.LogStore, bytes int64, most uint64) (entries uint64) {
	first, err := log.FirstIndex()
	if err != nil {
		return most
	}
	last, err := log.LastIndex()
	if err != nil {
		return most
	}
	for i := last; i >= first && i > 0 && entries < most; i-- {
		var l raft.Log
		if log.GetLog(i, &l) != nil {
			break
		}
		if bytes -= sizeOf(&l); bytes < 0 {
			break
		}
		entries++
	}
	return max(entries, 1)
}

// Measure sets the limits, and reads how much of the log is newer than the newest snapshot. It is called before raft runs,
// if at all.
func (d *Disk) Measure(l LogLimits) error {
	l = l.filled()
	d.limits = l
	list, err := d.List()
	if err != nil {
		return err
	}
	if len(list) > 0 {
		d.folded, d.snapshot = list[0].Index, list[0].Size
	}
	first, err := d.FirstIndex()
	if err != nil {
		return err
	}
	last, err := d.LastIndex()
	if err != nil {
		return err
	}
	for i := max(first, d.folded+1); i <= last && d.since < l.Bytes; i++ { // more is too much anyway
		var e raft.Log
		if err := d.GetLog(i, &e); err != nil {
			return err
		}
		d.since += sizeOf(&e)
	}
	return nil
}

// stored notes entries that are in the log now.
func (d *Disk) stored(logs []*raft.Log) {
	d.mu.Lock()
	for _, l := range logs {
		d.since += sizeOf(l)
	}
	d.mu.Unlock()
	select {
	case d.grown <- struct{}{}:
	default:
	}
}

// snapshotMade notes a snapshot of so many bytes, which has what was in the log when it was begun, up to an index. Raft then
// drops entries: it is told how many it is to keep.
func (d *Disk) snapshotMade(index uint64, size, before int64) {
	d.mu.Lock()
	d.folded, d.snapshot, d.since = index, size, max(d.since-before, 0)
	d.mu.Unlock()
	if r := d.running.Load(); r != nil {
		rc := r.ReloadableConfig()
		rc.TrailingLogs = trailing(d.LogStore, d.limits.bytesKept(size), d.limits.most())
		_ = r.ReloadConfig(rc) // all else is as raft has taken it before
	}
}

// due reports whether the log is too long.
func (d *Disk) due() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.since >= max(d.limits.Bytes, d.snapshot)
}

// hasNews reports whether something is applied that the last snapshot does not have.
func (d *Disk) hasNews() bool {
	applied := d.running.Load().AppliedIndex()
	d.mu.Lock()
	defer d.mu.Unlock()
	return applied > d.folded
}

// Attach tells the Disk its raft.
func (d *Disk) Attach(r *raft.Raft) { d.running.Store(r) }

// KeepLogShort has raft make a snapshot each time its log has too many bytes, until ctx ends. It is called after Measure and
// Attach.
func (d *Disk) KeepLogShort(ctx context.Context, logger hclog.Logger) {
	var again <-chan time.Time
	for {
		if again == nil && d.due() {
			err := raft.ErrNothingNewToSnapshot // what raft would log as an error each time
			if d.hasNews() {
				err = d.running.Load().Snapshot().Error()
			}
			switch {
			case errors.Is(err, raft.ErrNothingNewToSnapshot):
				again = time.After(snapshotSoon)
			case err != nil:
				logger.Warn("could not make a snapshot, although raft's log is long", "error", err)
				again = time.After(snapshotAgain)
			}
		}
		select {
		case <-d.grown:
		case <-again:
			again = nil
		case <-ctx.Done():
			return
		}
	}
}
