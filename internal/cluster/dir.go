package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/raftwire"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// Dir is an open directory in which raft keeps its log and its snapshots. One process at a time can have it open.
type Dir struct {
	Log   *raftboltdb.BoltStore
	Snaps raft.SnapshotStore
	path  string
}

// HasRaft reports whether there may be a log or a snapshot in a directory. It creates nothing.
func HasRaft(path string) (bool, error) {
	_, err := os.Stat(filepath.Join(path, "raft.db"))
	if err == nil {
		return true, nil
	}
	var snaps []os.DirEntry
	if errors.Is(err, fs.ErrNotExist) {
		snaps, err = os.ReadDir(filepath.Join(path, snapshotDir))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("raft directory: %w", err)
	}
	return len(snaps) > 0, nil
}

// OpenDir opens raft's directory, and creates what is missing. Whatever modes it finds, only this user can read what is
// in it. The caller closes it.
func OpenDir(path string, logger hclog.Logger) (*Dir, error) {
	if err := durable.MakePrivate(path); err != nil {
		return nil, fmt.Errorf("raft directory: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(path, 2, logger.Named("raft"))
	if err != nil {
		return nil, fmt.Errorf("raft snapshots: %w", err)
	}
	if err := makePrivate(path); err != nil {
		return nil, fmt.Errorf("raft directory: %w", err)
	}
	file := filepath.Join(path, "raft.db")
	log, err := raftboltdb.New(raftboltdb.Options{Path: file, BoltOptions: &bbolt.Options{Timeout: time.Second}})
	if err != nil {
		return nil, fmt.Errorf("raft log %s, which one process at a time can use: does its server run? %w", file, err)
	}
	return &Dir{Log: log, Snaps: privateSnaps{snaps, filepath.Join(path, snapshotDir)}, path: path}, nil
}

// Close closes the log.
func (d *Dir) Close() error { return d.Log.Close() }

// Known reports whether the server belongs to a cluster already: raft has an entry or a snapshot. A crash may have
// left it a term alone, from before its first entry. Such a server has never voted, and starts as for the first
// time.
func (d *Dir) Known() (bool, error) {
	last, err := d.Log.LastIndex()
	if err != nil {
		return false, fmt.Errorf("raft log %s: %w", d.path, err)
	}
	snaps, err := d.Snaps.List()
	if err != nil {
		return false, fmt.Errorf("raft snapshots in %s: %w", d.path, err)
	}
	return last > 0 || len(snaps) > 0, nil
}

// currentTerm is where raft keeps its term in the log's store.
var currentTerm = []byte("CurrentTerm")

// Bootstrap writes the first entry, with the initial servers. Raft writes none where it finds a term.
func (d *Dir) Bootstrap(conf *raft.Config, trans raft.Transport, initial raft.Configuration) error {
	if term, err := d.Log.GetUint64(currentTerm); err == nil && term > 0 {
		if err := d.Log.SetUint64(currentTerm, 0); err != nil {
			return err
		}
	}
	return raft.BootstrapCluster(conf, d.Log, d.Log, d.Snaps, trans, initial)
}

// CheckNewestSnapshot is an error if the newest snapshot is damaged. Raft would go on with an older one, and not
// say so: that is for people to decide.
func (d *Dir) CheckNewestSnapshot() error {
	list, err := d.Snaps.List()
	if err != nil || len(list) == 0 {
		return err
	}
	_, content, err := d.Snaps.Open(list[0].ID)
	if err != nil {
		return fmt.Errorf("the newest snapshot, %s: %w; without it the older ones are used", list[0].ID, err)
	}
	return content.Close()
}

// Servers returns the servers of the newest configuration that raft has on disk.
func (d *Dir) Servers() (servers []raft.Server, err error) {
	list, err := d.Snaps.List()
	if err != nil {
		return nil, err
	}
	folded := uint64(0)
	if len(list) > 0 {
		servers, folded = list[0].Configuration.Servers, list[0].Index
	}
	first, err := d.Log.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := d.Log.LastIndex()
	if err != nil {
		return nil, err
	}
	for i := last; i >= max(first, folded+1); i-- {
		var entry raft.Log
		if err := d.Log.GetLog(i, &entry); err != nil {
			return nil, err
		}
		if entry.Type == raft.LogConfiguration {
			c, err := raftwire.DecodeConfiguration(entry.Data)
			if err != nil {
				return nil, fmt.Errorf("raft log, entry %d: %w", i, err)
			}
			return c.Servers, nil
		}
	}
	return servers, nil
}

// LastEntryTime returns when a leader made the last entry of the log, or zero if there is none.
func (d *Dir) LastEntryTime() (time.Time, error) {
	last, err := d.Log.LastIndex()
	if err != nil || last == 0 {
		return time.Time{}, err
	}
	var entry raft.Log
	err = d.Log.GetLog(last, &entry)
	return entry.AppendedAt.UTC(), err
}

// KeepTerm raises raft's term to that of the newest snapshot, if that came without the log: a server that has the
// snapshot alone would take its own log for the newer one.
func (d *Dir) KeepTerm() error {
	list, err := d.Snaps.List()
	if err != nil || len(list) == 0 {
		return err
	}
	term, err := d.Log.GetUint64(currentTerm)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if term >= list[0].Term {
		return nil
	}
	return d.Log.SetUint64(currentTerm, list[0].Term)
}
