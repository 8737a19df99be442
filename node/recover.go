package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/cluster"
)

// Recovered says what Recover has made a cluster of.
type Recovered struct {
	// Index is the last entry of raft's log that is here, and Time when a leader made it, zero if
	// there is a snapshot alone. What the cluster has committed after it is lost.
	Index uint64
	Time  time.Time
	// Missing are keys whose material is not here, by ID, but for those that have sealed nothing. What was sealed under
	// them stays sealed until a key file of theirs turns up: put into the keystore directory it is taken, without a
	// restart.
	Missing []keyring.MissingKey
}

// RecoverOptions says how Recover goes about it.
type RecoverOptions struct {
	// Force does not ask whether other servers of the cluster answer.
	Force bool
}

// Recover makes this server the only member of its cluster, with what is in cfg.Dir, for when a
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
// It refuses a directory that is in use, one whose raft log is of a server of another ID, and one without raft's log and
// snapshots, of which it makes nothing: Start adopts the keys of a keystore that is alone. After an error, or a crash, it can be called again.
func Recover(ctx context.Context, cfg Config, o ...RecoverOptions) (Recovered, error) {
	r, err := recoverNode(ctx, cfg.filled(), o)
	if err != nil {
		return Recovered{}, fmt.Errorf("recover: %w", err)
	}
	return r, nil
}

func recoverNode(ctx context.Context, cfg Config, o []RecoverOptions) (r Recovered, err error) {
	if err := cfg.check(); err != nil {
		return r, err
	}
	recovery, err := cluster.OpenRecovery(cfg.cluster())
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, recovery.Close()) }()
	if !slices.ContainsFunc(o, func(o RecoverOptions) bool { return o.Force }) {
		if err := recovery.OthersSilent(ctx); err != nil {
			return r, err
		}
	}
	keys := cfg.keyring()
	keys.Logger = cfg.Logger
	r.Missing, err = keyring.RecoverKeys(ctx, keys, func() (err error) {
		r.Index, r.Time, err = recovery.Run()
		return err
	})
	return r, err
}
