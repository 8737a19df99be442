package keyring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/gate"
	"github.com/hashicorp/raft"
)

// RestoreNode makes the directory of a Node from a backup that a Node made: its keystore, under
// cfg's KEKs, and its raft, which has this server as its only member and all that the backup's
// snapshot has. o.Dir and o.KEKs are cfg's own, and must be empty. Then start the Node with cfg as ever,
// and the other servers with empty directories: they join it and get the keys, as servers do that
// have lost theirs.
//
// The cluster must be gone: two of it would both take writes, and nobody would notice. So RestoreNode asks
// the servers that Peers and Join name and, once it has found the backup good, those that it names, at the
// addresses they had then. It refuses while one of them answers, unless o.Force is set. It asks nobody if cfg has no Addr.
//
// cfg.Dir must have no raft log or snapshot: nothing of a cluster is overwritten. It writes nothing before it
// has checked cfg and o, and has read the backup up to the host's part of its snapshot, which then goes to
// the disk as it is read. If that is not good, it is deleted, and cfg.Dir is as it was. After an error or a crash
// later on, Start refuses cfg.Dir until RestoreNode has been done again with the same backup.
func RestoreNode(ctx context.Context, r io.Reader, cfg NodeConfig, o RestoreOptions) (Manifest, error) {
	m, err := gate.Await(ctx, func() (Manifest, error) { return restoreNode(ctx, r, cfg.filled(), o) })
	if err != nil {
		return m, fmt.Errorf("restore: %w", err)
	}
	return m, nil
}

func restoreNode(ctx context.Context, r io.Reader, cfg NodeConfig, o RestoreOptions) (m Manifest, err error) {
	if o.Dir != "" || len(o.KEKs) > 0 || o.Snapshot != nil || o.OpenSnapshot != nil || o.Confirm != nil {
		return m, errors.New("in RestoreNode Dir, KEKs, Snapshot, OpenSnapshot and Confirm are not set: they are the Node's")
	}
	if err := cfg.check(); err != nil {
		return m, err
	}
	o.Dir, o.KEKs, o.Logger = filepath.Join(cfg.Dir, "keystore"), cfg.KEKs, cfg.Logger
	if err := o.check(ctx); err != nil {
		return m, err
	}
	n := &nodeRestore{cfg: cfg, o: o}
	if err := n.look(ctx); err != nil {
		return m, errors.Join(err, n.close())
	}
	o.OpenSnapshot, o.Confirm = n.begin, n.good
	m, err = restore(ctx, r, o)
	return m, n.end(err)
}

// nodeRestore is the raft directory of a RestoreNode.
type nodeRestore struct {
	cfg  NodeConfig
	o    RestoreOptions
	d    *cluster.Dir // nil until it is open
	made []string     // what was not there before, the deepest first
	sink raft.SnapshotSink
	keep bool // keys may have been written
}

// look makes sure that nothing is in the way, and makes nothing. A log that is there is opened: so no server
// runs on it.
func (n *nodeRestore) look(ctx context.Context) error {
	there, err := cluster.HasRaft(n.cfg.raftDir())
	if err != nil {
		return err
	}
	if there {
		if n.d, err = n.cfg.openRaftDir(); err != nil {
			return err
		}
		known, err := n.d.Known()
		if err != nil {
			return err
		}
		if known {
			return fmt.Errorf("%s has a raft log or snapshot already", n.cfg.raftDir())
		}
	}
	if n.o.Force {
		return nil
	}
	return n.cfg.othersSilent(ctx, n.cfg.named())
}

// begin begins the snapshot of a cluster that has this server as its only member. Its terms begin
// anew: nobody is left who has seen the old ones. The mark comes before all else.
func (n *nodeRestore) begin(m Manifest) (_ io.Writer, err error) {
	if n.cfg.App == nil && m.Host > 0 {
		return nil, fmt.Errorf("the host's part of the snapshot has %d bytes, and the configuration has no App that could read it", m.Host)
	}
	path := n.cfg.raftDir()
	for _, name := range []string{"raft.db", "snapshots", durable.LockName, unfinished} {
		n.notice(filepath.Join(path, name))
	}
	for dir := path; n.notice(dir); {
		dir = filepath.Dir(dir)
	}
	if err := markUnfinished(path); err != nil {
		return nil, err
	}
	if n.d == nil {
		if n.d, err = n.cfg.openRaftDir(); err != nil {
			return nil, err
		}
	}
	torn, err := filepath.Glob(filepath.Join(path, "snapshots", "*.tmp")) // of a restore that a crash has ended
	for _, dir := range torn {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		return nil, err
	}
	_, trans := raft.NewInmemTransport(n.cfg.address())
	n.sink, err = n.d.Snaps.Create(raft.SnapshotVersionMax, m.Raft.Index, 1, n.cfg.alone(), 1, trans)
	return n.sink, err
}

// close closes the raft directory, if it is open.
func (n *nodeRestore) close() error {
	if n.d == nil {
		return nil
	}
	return n.d.Close()
}

// notice notes what is not there, and reports whether it did.
func (n *nodeRestore) notice(path string) bool {
	_, err := os.Lstat(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	n.made = append(n.made, path)
	return true
}

// good asks the servers that the backup names, now that it is known to be one of this cluster: it says
// whom this process connects to.
func (n *nodeRestore) good(ctx context.Context, m Manifest) error {
	if !n.o.Force && !n.o.DataOnly { // which is another cluster
		others := map[string]raft.ServerID{}
		for _, s := range m.Raft.Configuration.Servers {
			others[string(s.Address)] = s.ID
		}
		if err := n.cfg.othersSilent(ctx, others); err != nil {
			return err
		}
	}
	n.keep = true
	return nil
}

// end makes the snapshot whole, which is the last step: from then on the server can start. If the restore has
// failed, it deletes the snapshot and, if there is no key yet, all that was made here.
func (n *nodeRestore) end(err error) error {
	if err == nil {
		err = n.sink.Close()
	} else if n.sink != nil {
		err = errors.Join(err, n.sink.Cancel())
	}
	if err = errors.Join(err, n.close()); err == nil {
		return unmark(n.cfg.raftDir())
	}
	if !n.keep {
		for _, path := range n.made { // the mark after all that it is for; what can't be removed is as after a crash
			os.Remove(path)
		}
	}
	return err
}

// unfinished is a file in the raft directory that says that a RestoreNode has begun to write. It means
// nothing beside a raft log or snapshot: those come last.
const unfinished = "restore.unfinished"

func markUnfinished(path string) error {
	fsys, err := durable.OpenDir(path)
	if err != nil {
		return err
	}
	const text = "RestoreNode has not finished here. Do it again with the same backup, or delete the server's directory.\n"
	d := durable.New(fsys)
	return errors.Join(d.Write(durable.Named{Name: unfinished, Data: []byte(text)})[0], d.Close())
}

// unmark removes the mark, where there is one, from a directory that is whole.
func unmark(path string) error {
	fsys, err := durable.OpenDir(path)
	if err != nil {
		return err
	}
	d := durable.New(fsys)
	return errors.Join(d.Remove(unfinished), d.Close())
}
