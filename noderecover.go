package keyring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"example.com/keyring/internal/cluster"
	"github.com/hashicorp/raft"
)

// Recovered says what RecoverNode has made a cluster of.
type Recovered struct {
	// Index is the last entry of raft's log that is here, and Time when a leader made it, zero if
	// there is a snapshot alone. What the cluster has committed after it is lost.
	Index uint64
	Time  time.Time
	// Missing are keys whose material is not here, by ID, but for those that have sealed nothing. What was sealed under them stays sealed until
	// a key file of theirs turns up: put into the keystore directory it is taken, without a restart.
	Missing []MissingKey
}

// RecoverOptions says how RecoverNode goes about it.
type RecoverOptions struct {
	// Force does not ask whether other servers of the cluster answer.
	Force bool
}

// RecoverNode makes this server the only member of its cluster, with what is in cfg.Dir, for when a
// majority of the voters is gone for good. It is raft's recovery by peers.json, and says what is lost.
// Then start the Node with cfg, but a new App and Keys, which it has used up; and the other servers with
// empty directories: they join it and get the keys.
//
// The directory is that of the survivor. If there is none, it is made of what is left of the dead:
// raft/snapshots of any server, and the keystore of any server, with its KEKs as OldKEKs. Choose the
// survivor whose log is the longest, by Index, on copies: raft's log is folded into a snapshot. None of
// the other servers may ever run again with what it had: two of them would be a cluster beside this
// one, and nobody would notice.
//
// So it asks the servers of raft's configuration, and those that Peers and Join name, and refuses while one
// of them answers, unless Force is set in o, of which there is one at most. It asks nobody if cfg has no
// Addr.
//
// It refuses a directory that is in use, and one without raft's log and snapshots, of which it makes
// nothing: Start adopts the keys of a keystore that is alone. After an error, or a crash, it can be called again.
func RecoverNode(ctx context.Context, cfg NodeConfig, o ...RecoverOptions) (Recovered, error) {
	r, err := recoverNode(ctx, cfg.filled(), slices.ContainsFunc(o, func(o RecoverOptions) bool { return o.Force }))
	if err != nil {
		return Recovered{}, fmt.Errorf("recover: %w", err)
	}
	return r, nil
}

func recoverNode(ctx context.Context, cfg NodeConfig, force bool) (r Recovered, err error) {
	if err := cfg.check(); err != nil {
		return r, err
	}
	if there, err := cluster.HasRaft(cfg.raftDir()); err != nil || !there {
		return r, cmp.Or(err, errNothingToRecover(cfg.raftDir()))
	}
	d, err := cfg.openRaftDir()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if known, err := d.Known(); err != nil || !known {
		return r, cmp.Or(err, errNothingToRecover(cfg.raftDir()))
	}
	if err := d.CheckNewestSnapshot(); err != nil {
		return r, err
	}
	if !force {
		if err := othersSilent(ctx, d, cfg); err != nil {
			return r, err
		}
	}
	keys := cfg.keyring()
	keys.Dir, keys.FSM, keys.Logger = filepath.Join(cfg.Dir, "keystore"), cmp.Or(cfg.Keys, NewFSM()), cfg.Logger
	r.Missing, err = RecoverKeys(ctx, keys, func() error { return cfg.recoverRaft(d, keys.FSM, &r) })
	return r, err
}

// recoverRaft makes this server the only member, and says what the log here has.
func (c NodeConfig) recoverRaft(d *cluster.Dir, fsm *FSM, r *Recovered) (err error) {
	if r.Time, err = d.LastEntryTime(); err != nil {
		return err
	}
	if err := d.KeepTerm(); err != nil {
		return err
	}
	_, trans := raft.NewInmemTransport(c.address())
	if err := raft.RecoverCluster(c.raft(), c.mux(fsm), d.Log, d.Log, d.Snaps, trans, c.alone()); err != nil {
		return err
	}
	list, err := d.Snaps.List()
	if err != nil {
		return err
	}
	r.Index = list[0].Index // of the snapshot that RecoverCluster has made
	return nil
}

func errNothingToRecover(path string) error {
	return fmt.Errorf("%s has neither a log nor a snapshot: start the servers, and the keys that are there are adopted", path)
}

// othersSilent is an error if another server of the cluster answers.
func othersSilent(ctx context.Context, d *cluster.Dir, cfg NodeConfig) error {
	servers, err := d.Servers()
	if err != nil {
		return err
	}
	others := cfg.named()
	for _, s := range servers {
		others[string(s.Address)] = s.ID
	}
	return cfg.othersSilent(ctx, others)
}
