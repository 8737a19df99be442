package cluster

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/raft"
)

// Restore makes raft's directory from a snapshot: of a cluster that has this server as its only member. It ends with
// Commit or Cancel. What calls its other methods may be late: after the end they do nothing and return an error.
type Restore struct {
	cfg Config

	mu        sync.Mutex // guards below; held while the snapshot is written
	dir       *Dir       // nil until it is open
	created   []string   // what did not exist before, the deepest first
	sink      raft.SnapshotSink
	confirmed bool
	ended     bool
}

var errRestoreEnded = errors.New("the restore has ended")

// BeginRestore makes sure that raft's directory has no log and no snapshot. It creates nothing. A log that exists is opened:
// so no server runs on it.
func BeginRestore(cfg Config) (*Restore, error) {
	r := &Restore{cfg: cfg}
	there, err := HasRaft(cfg.Dir)
	if err != nil || !there {
		return r, err
	}
	if r.dir, err = OpenDir(cfg.Dir, cfg.Logger); err != nil {
		return nil, err
	}
	known, err := r.dir.Known()
	if err == nil && known {
		err = fmt.Errorf("%s has a raft log or snapshot already", cfg.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, r.dir.Close())
	}
	return r, nil
}

// Create creates the snapshot, up to the entry of that index. Its terms begin at one: no server is left that has seen the
// old ones. The mark comes before everything else.
func (r *Restore) Create(index uint64) (io.Writer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil, errRestoreEnded
	}
	path := r.cfg.Dir
	for _, name := range []string{"raft.db", "snapshots", durable.LockName, unfinished} {
		r.willCreate(filepath.Join(path, name))
	}
	for dir := path; r.willCreate(dir); {
		dir = filepath.Dir(dir)
	}
	err := markUnfinished(path)
	if err == nil && r.dir == nil {
		r.dir, err = OpenDir(path, r.cfg.Logger)
	}
	if err == nil {
		err = r.dir.own(r.cfg.ID, r.cfg.Cluster)
	}
	if err == nil {
		err = port.ForgetIntroduction(r.dir.Log)
	}
	if err != nil {
		return nil, err
	}
	torn, err := filepath.Glob(filepath.Join(path, "snapshots", "*.tmp")) // of a restore that a crash has ended
	for _, dir := range torn {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return nil, err
	}
	_, trans := raft.NewInmemTransport(r.cfg.address())
	sink, err := r.dir.Snaps.Create(raft.SnapshotVersionMax, index, 1, r.cfg.Alone(), 1, trans)
	if err != nil {
		return nil, err
	}
	r.sink = sink
	return snapshotWriter{r}, nil
}

// snapshotWriter writes the snapshot of a Restore.
type snapshotWriter struct{ restore *Restore }

// Write implements io.Writer.
func (w snapshotWriter) Write(b []byte) (int, error) {
	r := w.restore
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return 0, errRestoreEnded
	}
	return r.sink.Write(b)
}

// Confirm says that the backup is good, and that keys may be written from now on.
func (r *Restore) Confirm() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return errRestoreEnded
	}
	r.confirmed = true
	return nil
}

// willCreate records a path that does not exist, and reports whether it does not.
func (r *Restore) willCreate(path string) bool {
	_, err := os.Lstat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	r.created = append(r.created, path)
	return true
}

// Commit completes the snapshot, which is the last step: from then on the server can start.
func (r *Restore) Commit() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	if err := errors.Join(r.sink.Close(), r.dir.Close()); err != nil {
		return err
	}
	return unmark(r.cfg.Dir)
}

// Cancel deletes the snapshot and, if there is no key yet, everything that the Restore has created. Else the mark
// stays: Start refuses the directory until a restore has been done.
func (r *Restore) Cancel() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	var errs []error
	if r.sink != nil {
		errs = append(errs, r.sink.Cancel())
	}
	if r.dir != nil {
		errs = append(errs, r.dir.Close())
	}
	if !r.confirmed {
		for _, path := range r.created { // the mark after everything that it is for; what can't be removed is as after a crash
			os.Remove(path)
		}
	}
	return errors.Join(errs...)
}

// unfinished is a file in the raft directory that says that a restore has begun to write. It means nothing beside a
// raft log or snapshot: those come last.
const unfinished = "restore.unfinished"

func markUnfinished(path string) error {
	fsys, err := durable.OpenDir(path)
	if err != nil {
		return err
	}
	const text = "node.Restore has not finished here. Do it again with the same backup, or delete the server's directory.\n"
	d := durable.New(fsys)
	return errors.Join(d.Write(durable.Named{Name: unfinished, Data: []byte(text)})[0], d.Close())
}

// unmark removes the mark, if there is one, from a directory that is complete.
func unmark(path string) error {
	fsys, err := durable.OpenDir(path)
	if err != nil {
		return err
	}
	d := durable.New(fsys)
	return errors.Join(d.Remove(unfinished), d.Close())
}

// CheckRestored is an error if a restore into the directory has begun and not finished.
func (d *Dir) CheckRestored() error {
	if _, err := os.Lstat(filepath.Join(d.path, unfinished)); err == nil {
		return fmt.Errorf("%s: node.Restore has not finished: do it again with the same backup", d.path)
	}
	return nil
}
