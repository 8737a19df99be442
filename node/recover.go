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

// Recovered describes the result of Recover.
type Recovered struct {
	// Index is the index of the last entry of raft's log that survived, and Time is when a leader made it;
	// Time is zero if only a snapshot survived. Everything that the cluster committed later is lost.
	Index uint64
	Time  time.Time
	// Missing are the keys, ordered by ID, whose material is not here; keys that have encrypted nothing are
	// left out. Data under them can't be decrypted until one of their key files is found. Put it into the
	// keystore directory: the server reads it without a restart.
	Missing []keyring.MissingKey
}

// RecoverOptions are the options of Recover.
type RecoverOptions struct {
	// Force skips the question whether other servers of the cluster answer.
	Force bool
}

// Recover makes this server the only member of its cluster, with the contents of cfg.Dir, when a majority of
// the voters is gone for good. It is raft's recovery by peers.json, and says what is lost. Then start the
// Node with cfg, but with a new App and new Keys, because Recover has used these. Start the other servers
// with empty directories: they join and get the keys.
//
// The directory is that of the survivor. If no server survived, combine the raft/snapshots of any server and
// the keystore of any server, with its KEKs as OldKEKs. Choose the survivor with the longest log, by Index.
// Run Recover on copies for that, because it turns raft's log into a snapshot. No other server may ever run
// again with its old directory: two of them would form a second cluster, and nobody would notice.
//
// Therefore Recover asks the servers of raft's configuration, of Peers and of Join, and fails if one of them
// answers, unless Force is set in o. At most one RecoverOptions may be given. Without cfg.Addr it asks
// nobody.
//
// It fails for a directory that is in use, for one whose raft log belongs to a server with another ID, and
// for one without raft's log and snapshots: Start adopts the keys of a directory with only a keystore. After
// an error or a crash, call it again.
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
