package keyring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// raftDir is what raft keeps on disk, in Dir/raft. The caller closes log.
type raftDir struct {
	path  string
	log   *raftboltdb.BoltStore
	snaps *raft.FileSnapshotStore
}

// hasRaft reports whether there may be a log or a snapshot, and makes nothing.
func (c NodeConfig) hasRaft() (bool, error) {
	path := filepath.Join(c.Dir, "raft")
	_, err := os.Stat(filepath.Join(path, "raft.db"))
	if err == nil {
		return true, nil
	}
	var snaps []os.DirEntry
	if errors.Is(err, fs.ErrNotExist) {
		snaps, err = os.ReadDir(filepath.Join(path, "snapshots"))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("raft directory: %w", err)
	}
	return len(snaps) > 0, nil
}

// close closes the log, if it is open.
func (d raftDir) close() error {
	if d.log == nil {
		return nil
	}
	return d.log.Close()
}

func (c NodeConfig) openRaftDir() (d raftDir, err error) {
	d.path = filepath.Join(c.Dir, "raft")
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return d, fmt.Errorf("raft directory: %w", err)
	}
	if d.snaps, err = raft.NewFileSnapshotStoreWithLogger(d.path, 2, c.Logger.Named("raft")); err != nil {
		return d, fmt.Errorf("raft snapshots: %w", err)
	}
	log := filepath.Join(d.path, "raft.db")
	d.log, err = raftboltdb.New(raftboltdb.Options{Path: log, BoltOptions: &bbolt.Options{Timeout: time.Second}})
	if err != nil {
		return d, fmt.Errorf("raft log %s, which one process at a time can use: does its server run? %w", log, err)
	}
	return d, nil
}

// known reports whether raft has told the server of a cluster: it has an entry or a snapshot. A crash
// may have left it a term alone, from before its first entry. Such a server has never voted, and begins
// anew.
func (d raftDir) known() (bool, error) {
	last, err := d.log.LastIndex()
	if err != nil {
		return false, fmt.Errorf("raft log %s: %w", d.path, err)
	}
	snaps, err := d.snaps.List()
	if err != nil {
		return false, fmt.Errorf("raft snapshots in %s: %w", d.path, err)
	}
	return last > 0 || len(snaps) > 0, nil
}

// found makes the first entry. raft makes none where it finds a term.
func (d raftDir) found(conf *raft.Config, trans raft.Transport, founders raft.Configuration) error {
	if term, err := d.log.GetUint64([]byte("CurrentTerm")); err == nil && term > 0 {
		if err := d.log.SetUint64([]byte("CurrentTerm"), 0); err != nil {
			return err
		}
	}
	return raft.BootstrapCluster(conf, d.log, d.log, d.snaps, trans, founders)
}

// address is what raft calls this server. One that is alone has none, and its ID will do.
func (c NodeConfig) address() raft.ServerAddress {
	return cmp.Or(raft.ServerAddress(c.Addr), raft.ServerAddress(c.ID))
}

// alone is the configuration of a cluster that has this server as its only member.
func (c NodeConfig) alone() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{ID: c.ID, Address: c.address()}}}
}

// mux is what raft applies the log to.
func (c NodeConfig) mux(fsm *FSM) raft.FSM {
	if c.App == nil {
		return fsm
	}
	return Mux(fsm, c.App)
}

// soon is a timeout of raft's for a server alone.
const soon = 20 * time.Millisecond

func (c NodeConfig) raft() *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = c.ID
	conf.Logger = c.Logger.Named("raft")
	conf.ShutdownOnRemove = false // what shuts it down is Close alone
	if c.Addr == "" {             // it need not wait for anybody's vote
		conf.HeartbeatTimeout, conf.ElectionTimeout = soon, soon
		conf.LeaderLeaseTimeout, conf.CommitTimeout = soon, soon
	}
	return conf
}

// startRaft opens what raft keeps on disk and starts it. A server that has nothing there
// first learns from the others whether there is a cluster already: it must not come back as
// the voter that it may have been.
func (n *Node) startRaft(ctx context.Context, fsm *FSM) error {
	if n.net != nil && len(n.cfg.Peers)+len(n.cfg.Join) == 0 { // before there is a log that was not there
		if there, err := n.cfg.hasRaft(); err != nil || !there {
			return cmp.Or(err, errNowhere)
		}
	}
	d, err := n.cfg.openRaftDir()
	if err != nil {
		return err
	}
	n.store = d.log
	known, err := d.known()
	if err != nil {
		return err
	}
	_, trans := raft.NewInmemTransport(n.cfg.address())
	var transport raft.Transport = trans
	if n.net != nil {
		transport = n.net.raftTransport()
	}
	conf := n.cfg.raft()
	if !known {
		if _, err := os.Lstat(filepath.Join(d.path, unfinished)); err == nil {
			return fmt.Errorf("%s: RestoreNode has not finished: do it again with the same backup", d.path)
		}
		founders, err := n.founders(ctx)
		if err != nil {
			return err
		}
		if len(founders.Servers) > 0 {
			err = d.found(conf, transport, founders)
		} else {
			err = n.net.askToJoin(ctx)
		}
		if err != nil {
			return fmt.Errorf("found or join the cluster: %w", err)
		}
	}
	if n.net != nil {
		n.net.fresh.Store(false)
	}
	n.disk = &raftDisk{LogStore: d.log, SnapshotStore: d.snaps, changed: fsm.changed.notify}
	if n.cfg.wrapLog != nil {
		n.disk.LogStore = n.cfg.wrapLog(d.log)
	}
	if n.raft, err = raft.NewRaft(conf, n.cfg.mux(fsm), n.disk, d.log, n.disk, transport); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	return nil
}

var errNowhere = errors.New("node configuration: Peers and Join are empty, and there is no raft log or snapshot: nothing to found or join")

// founders returns the configuration to found the cluster with: none if it exists already.
func (n *Node) founders(ctx context.Context) (raft.Configuration, error) {
	if n.net == nil {
		return n.cfg.alone(), nil
	}
	if len(n.cfg.Peers)+len(n.cfg.Join) == 0 {
		return raft.Configuration{}, errNowhere
	}
	founding, err := n.net.founding(ctx)
	if err != nil || !founding {
		return raft.Configuration{}, err
	}
	return n.cfg.founders(), nil
}

// founders is the configuration that Peers names.
func (c NodeConfig) founders() (conf raft.Configuration) {
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		conf.Servers = append(conf.Servers, raft.Server{ID: id, Address: raft.ServerAddress(c.Peers[id])})
	}
	return conf
}
