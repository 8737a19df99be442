package keyring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"example.com/keyring/internal/cluster"
	"github.com/hashicorp/raft"
)

// raftDir is where raft keeps its log and snapshots.
func (c NodeConfig) raftDir() string { return filepath.Join(c.Dir, "raft") }

// openRaftDir opens it.
func (c NodeConfig) openRaftDir() (*cluster.Dir, error) {
	return cluster.OpenDir(c.raftDir(), c.Logger)
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
		if there, err := cluster.HasRaft(n.cfg.raftDir()); err != nil || !there {
			return cmp.Or(err, errNowhere)
		}
	}
	d, err := n.cfg.openRaftDir()
	if err != nil {
		return err
	}
	n.dir = d
	known, err := d.Known()
	if err != nil {
		return err
	}
	_, trans := raft.NewInmemTransport(n.cfg.address())
	var transport raft.Transport = trans
	if n.net != nil {
		transport = n.net.RaftTransport(d.Log, fsm.CheckSnapshot)
	}
	conf := n.cfg.raft()
	if !known {
		if _, err := os.Lstat(filepath.Join(n.cfg.raftDir(), unfinished)); err == nil {
			return fmt.Errorf("%s: RestoreNode has not finished: do it again with the same backup", n.cfg.raftDir())
		}
		founders, err := n.founders(ctx)
		if err != nil {
			return err
		}
		if len(founders.Servers) > 0 {
			err = d.Bootstrap(conf, transport, founders)
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
	var log raft.LogStore = d.Log
	if n.cfg.wrapLog != nil {
		log = n.cfg.wrapLog(log)
	}
	n.disk = cluster.NewDisk(log, d.Snaps, n.notify)
	if n.raft, err = raft.NewRaft(conf, n.cfg.mux(fsm), n.disk, d.Log, n.disk, transport); err != nil {
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
