package node

import (
	"context"
	"errors"
	"fmt"
	"io"

	"example.com/keyring"
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/gate"
	"github.com/hashicorp/raft"
)

// Restore makes the directory of a Node from a backup that a Node made: its keystore, under
// cfg's KEKs, and its raft, which has this server as its only member and all that the backup's
// snapshot has. Dir, KEKs, Snapshot, OpenSnapshot, Snapshots and Confirm of o are this function's own, and must be empty. Then start
// the Node with cfg as always, and the other servers with empty directories: they join it and get the keys, as servers
// do that have lost theirs.
//
// The cluster must be gone: two of it would both take writes, and nobody would notice. So Restore asks
// the servers that Peers and Join name and, once it has found the backup good, those that it names, at the
// addresses they had then. It refuses while one of them answers, unless o.Force is set. It asks nobody if cfg has no
// Addr, and nobody before it has checked cfg and o.
//
// cfg.Dir must have no raft log or snapshot: nothing of a cluster is overwritten. It writes nothing before it has
// read the backup up to the host's part of its snapshot, which then goes to the disk as it is read. If that is not good, it is deleted, and cfg.Dir is as it was. After an error or a crash
// later on, Start refuses cfg.Dir until Restore has been done again with the same backup.
func Restore(ctx context.Context, r io.Reader, cfg Config, o keyring.RestoreOptions) (keyring.Manifest, error) {
	m, err := gate.Await(ctx, func() (keyring.Manifest, error) { return restore(ctx, r, cfg.filled(), o) })
	if err != nil {
		return m, fmt.Errorf("restore node: %w", err)
	}
	return m, nil
}

func restore(ctx context.Context, r io.Reader, cfg Config, o keyring.RestoreOptions) (m keyring.Manifest, err error) {
	if o.Dir != "" || len(o.KEKs) > 0 || o.Snapshot != nil || o.OpenSnapshot != nil || o.Snapshots != nil || o.Confirm != nil {
		return m, errors.New("for a Node, Dir, KEKs, Snapshot, OpenSnapshot, Snapshots and Confirm of the options are not set: they are its own")
	}
	if err := cfg.check(); err != nil {
		return m, err
	}
	o.Dir, o.KEKs, o.Logger = cfg.keyring().Dir, cfg.KEKs, cfg.Logger
	if err := o.Check(); err != nil { // before the other servers are asked
		return m, err
	}
	conf := cfg.cluster()
	dir, err := cluster.BeginRestore(conf)
	if err != nil {
		return m, err
	}
	if !o.Force {
		if err := conf.OthersSilent(ctx, conf.Named()); err != nil {
			return m, errors.Join(err, dir.Cancel())
		}
	}
	o.OpenSnapshot = func(m keyring.Manifest) (io.Writer, error) {
		if cfg.App == nil && m.Host > 0 {
			return nil, fmt.Errorf("the host's part of the snapshot has %d bytes, and the configuration has no App that could read it", m.Host)
		}
		return dir.Create(m.Raft.Index)
	}
	// The servers that the backup names are asked when it is known to be one of this cluster: the backup says where this
	// process connects to.
	o.Confirm = func(ctx context.Context, m keyring.Manifest) error {
		others := map[string]raft.ServerID{}
		if !o.Force && !o.DataOnly { // which makes another cluster
			for _, s := range m.Raft.Configuration.Servers {
				others[string(s.Address)] = s.ID
			}
		}
		if err := conf.OthersSilent(ctx, others); err != nil {
			return err
		}
		return dir.Confirm()
	}
	m, err = keyring.Restore(ctx, r, o)
	if err != nil {
		return m, errors.Join(err, dir.Cancel())
	}
	return m, dir.Commit()
}
