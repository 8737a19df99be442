package keyring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// RestoreNode makes the directory of a Node from a backup that a Node made: its keystore, under
// cfg's KEKs, and its raft, which has this server as its only member and all that the backup's
// snapshot has. o.Dir and o.KEKs are cfg's own, and must be empty. Then start the Node with cfg as ever,
// and the other servers with empty directories: they join it and get the keys, as servers do that
// have lost theirs.
//
// cfg.Dir must have no raft log or snapshot: nothing of a cluster is overwritten. An interrupted
// RestoreNode is done again with the same backup.
func RestoreNode(ctx context.Context, r io.Reader, cfg NodeConfig, o RestoreOptions) (Manifest, error) {
	m, err := restoreNode(ctx, r, cfg.filled(), o)
	if err != nil {
		return m, fmt.Errorf("restore: %w", err)
	}
	return m, nil
}

func restoreNode(ctx context.Context, r io.Reader, cfg NodeConfig, o RestoreOptions) (m Manifest, err error) {
	if o.Dir != "" || len(o.KEKs) > 0 || o.Snapshot != nil {
		return m, errors.New("in RestoreNode Dir, KEKs and Snapshot are not set: they are the NodeConfig's")
	}
	if err := cfg.check(); err != nil {
		return m, err
	}
	d, err := cfg.openRaftDir() // so no server runs there
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, d.log.Close()) }()
	known, err := d.known()
	if err != nil {
		return m, err
	}
	if known {
		return m, fmt.Errorf("%s has a raft log or snapshot already", d.path)
	}
	var sink raft.SnapshotSink
	o.Dir, o.KEKs, o.Logger = filepath.Join(cfg.Dir, "keystore"), cfg.KEKs, cfg.Logger
	m, err = restore(ctx, r, o, func(m Manifest) (_ io.Writer, err error) {
		sink, err = cfg.begin(d.snaps, m.Raft.Index)
		return sink, err
	})
	switch {
	case sink == nil:
		return m, err
	case err != nil:
		return m, errors.Join(err, sink.Cancel())
	}
	return m, sink.Close() // from here on it is there, whole
}

// begin begins the snapshot of a cluster that has this server as its only member. Its terms begin
// anew: nobody is left who has seen the old ones.
func (c NodeConfig) begin(snaps *raft.FileSnapshotStore, index uint64) (raft.SnapshotSink, error) {
	_, trans := raft.NewInmemTransport(c.address())
	return snaps.Create(raft.SnapshotVersionMax, index, 1, c.alone(), 1, trans)
}
