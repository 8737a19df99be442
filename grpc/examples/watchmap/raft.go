package main

// The raft of this service: its directory, its log and its snapshots. It was there before the keyring.

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// config is a server, as its flags say.
type config struct {
	id      raft.ServerID
	dir     string
	addr    string        // where the other servers and users reach it
	initial []raft.Server // the cluster is bootstrapped with these; empty on a server that is to be added
	rate    int           // how many values a second are encrypted again, at most
	log     hclog.Logger
}

// path is that of a file of this server.
func (c config) path(name string) string { return filepath.Join(c.dir, name) }

// disk is what raft has on disk.
type disk struct {
	log       *raftboltdb.BoltStore
	snapshots *raft.FileSnapshotStore
	fresh     bool // raft has never run on it
}

// openDisk opens it, or creates it.
func openDisk(cfg config) (*disk, error) {
	dir := cfg.path("raft")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, cfg.log)
	if err != nil {
		return nil, err
	}
	log, err := raftboltdb.NewBoltStore(filepath.Join(dir, "log.db"))
	if err != nil {
		return nil, err
	}
	used, err := raft.HasExistingState(log, log, snapshots)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return &disk{log, snapshots, !used}, nil
}

// startRaft starts raft. A fresh server that is not to be added bootstraps its cluster.
func startRaft(cfg config, d *disk, fsm raft.FSM, trans raft.Transport) (*raft.Raft, error) {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger, conf.TrailingLogs = cfg.id, cfg.log, 64
	if d.fresh && len(cfg.initial) > 0 {
		if err := raft.BootstrapCluster(conf, d.log, d.log, d.snapshots, trans, raft.Configuration{Servers: cfg.initial}); err != nil {
			return nil, err
		}
	}
	return raft.NewRaft(conf, fsm, d.log, d.log, d.snapshots, trans)
}

// shutDown ends raft, and waits for it.
func shutDown(r *raft.Raft) { r.Shutdown().Error() }
