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

// Restore makes the directory of a Node from a backup that a Node made: the keystore under cfg's KEKs, and a
// raft with the backup's snapshot in which this server is the only member. Restore itself sets Dir, KEKs,
// Snapshot, OpenSnapshot, Snapshots and Confirm of o: leave them empty. Then start the Node with cfg as
// usual, and the other servers with empty directories: they join and get the keys.
//
// The cluster must be gone: otherwise two clusters would accept writes, and nobody would notice. So Restore
// asks the servers of Peers and Join and, once it has found the backup good, those that the backup names, at
// the addresses in the backup. It fails if one of them answers, unless o.Force is set. Without cfg.Addr it
// asks nobody. It checks cfg and o before it asks anybody.
//
// cfg.Dir must have no raft log and no snapshot: Restore overwrites nothing of a cluster. It writes nothing
// before it has read the backup up to the host's part of the snapshot. It writes that part to disk while it
// reads it, and deletes it if it is not good; cfg.Dir is then unchanged. After a later error or a crash,
// Start rejects cfg.Dir until Restore has succeeded with the same backup.
func Restore(ctx context.Context, r io.Reader, cfg Config, o keyring.RestoreOptions) (keyring.Manifest, error) {
	m, err := gate.Await(ctx, func() (keyring.Manifest, error) { return restore(ctx, r, cfg.filled(), o) })
	if err != nil {
		return m, fmt.Errorf("restore node: %w", err)
	}
	return m, nil
}

func restore(ctx context.Context, r io.Reader, cfg Config, o keyring.RestoreOptions) (m keyring.Manifest, err error) {
	if o.Dir != "" || len(o.KEKs) > 0 || o.Snapshot != nil || o.OpenSnapshot != nil || o.Snapshots != nil || o.Confirm != nil {
		return m, errors.New("the options Dir, KEKs, Snapshot, OpenSnapshot, Snapshots and Confirm must be empty: node.Restore sets them")
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
			return nil, fmt.Errorf("the host's part of the snapshot has %d bytes, but the configuration has no App to read it", m.Host)
		}
		return dir.Create(m.Raft.Index)
	}
	// The servers that the backup names are asked when it is known to be one of this cluster: the backup says
	// where this process connects to.
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
