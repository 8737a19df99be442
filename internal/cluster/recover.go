package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/port"
	"github.com/hashicorp/raft"
)

// Recovery makes a server the only member of its cluster, with what raft has on disk.
type Recovery struct {
	cfg Config
	dir *Dir
}

// OpenRecovery opens raft's directory. It refuses one in which there is nothing to recover, and creates nothing there. It
// refuses another server's.
// The caller closes the Recovery.
func OpenRecovery(cfg Config) (*Recovery, error) {
	nothing := fmt.Errorf("%s has neither a log nor a snapshot: start the servers, which adopt the keys that are there", cfg.Dir)
	if there, err := HasRaft(cfg.Dir); err != nil || !there {
		return nil, cmp.Or(err, nothing)
	}
	dir, err := OpenDir(cfg.Dir, cfg.Logger)
	if err != nil {
		return nil, err
	}
	known, err := dir.Known()
	if err == nil && !known {
		err = nothing
	}
	if err == nil {
		err = dir.checkOwner(cfg.ID, fmt.Sprintf("recover it under that ID, or give %s a directory in which raft has only the snapshots", cfg.ID))
	}
	if err == nil {
		err = dir.CheckNewestSnapshot()
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return &Recovery{cfg, dir}, nil
}

// OthersSilent is an error if another server of the cluster answers.
func (r *Recovery) OthersSilent(ctx context.Context) error {
	servers, err := r.dir.Servers()
	if err != nil {
		return err
	}
	others := r.cfg.Named()
	for _, s := range servers {
		others[string(s.Address)] = s.ID
	}
	return r.cfg.OthersSilent(ctx, others)
}

// Run folds raft's log into a snapshot with this server as the only member, and has cfg.FSM apply all of it. It returns the
// index of the last entry, and when a leader made that: zero if there is a snapshot alone.
func (r *Recovery) Run() (index uint64, made time.Time, err error) {
	if made, err = r.dir.LastEntryTime(); err != nil {
		return 0, made, err
	}
	if err := r.dir.own(r.cfg.ID, r.cfg.Cluster); err != nil {
		return 0, made, err
	}
	if err := port.ForgetIntroduction(r.dir.Log); err != nil {
		return 0, made, err
	}
	if err := r.dir.KeepTerm(); err != nil {
		return 0, made, err
	}
	_, trans := raft.NewInmemTransport(r.cfg.address())
	if err := raft.RecoverCluster(r.cfg.raft(), r.cfg.FSM, r.dir.Log, r.dir.Log, r.dir.Snaps, trans, r.cfg.Alone()); err != nil {
		return 0, made, err
	}
	list, err := r.dir.Snaps.List()
	if err != nil {
		return 0, made, err
	}
	return list[0].Index, made, nil // of the snapshot that RecoverCluster has made
}

// Close closes raft's directory.
func (r *Recovery) Close() error { return r.dir.Close() }
