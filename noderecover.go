package keyring

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/raftwire"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
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

// MissingKey is a key whose material a server does not have.
type MissingKey struct {
	ID  KeyID
	Err error // why its file here does not open, or nil if there is none
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
	if there, err := cfg.hasRaft(); err != nil || !there {
		return r, cmp.Or(err, errNothingToRecover(filepath.Join(cfg.Dir, "raft")))
	}
	d, err := cfg.openRaftDir()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, d.log.Close()) }()
	if err := d.recoverable(); err != nil {
		return r, err
	}
	if !force {
		if err := d.othersSilent(ctx, cfg); err != nil {
			return r, err
		}
	}
	// The keystore comes first: if a KEK is away, nothing has changed.
	dir := filepath.Join(cfg.Dir, "keystore")
	fsys, err := durable.OpenDir(dir)
	if err != nil {
		return r, err
	}
	store, err := openKeystore(ctx, fsys, cfg.KEKs, cfg.OldKEKs, cfg.Logger)
	if err != nil {
		return r, fmt.Errorf("open keystore %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, store.close()) }()

	if ctx.Err() != nil { // what comes is not left half done
		return r, context.Cause(ctx)
	}
	if r.Time, err = d.lastEntry(); err != nil {
		return r, err
	}
	if err := d.keepTerm(); err != nil {
		return r, err
	}
	fsm := cmp.Or(cfg.Keys, NewFSM())
	_, trans := raft.NewInmemTransport(cfg.address())
	if err := raft.RecoverCluster(cfg.raft(), cfg.mux(fsm), d.log, d.log, d.snaps, trans, cfg.alone()); err != nil {
		return r, err
	}
	list, err := d.snaps.List()
	if err != nil {
		return r, err
	}
	r.Index = list[0].Index // of the snapshot that RecoverCluster has made
	for _, key := range fsm.ring.Load().Keys {
		if key.Sealed() && !store.has(key) {
			r.Missing = append(r.Missing, MissingKey{key.ID, store.faultOf(key.ID)})
		}
	}
	return r, nil
}

// recoverable says why there is nothing to recover. A newest snapshot that is damaged is for people to
// look at: raft would go on with an older one, and not say so.
func (d raftDir) recoverable() error {
	known, err := d.known()
	if err != nil {
		return err
	}
	if !known {
		return errNothingToRecover(d.path)
	}
	list, err := d.snaps.List()
	if err != nil || len(list) == 0 {
		return err
	}
	_, content, err := d.snaps.Open(list[0].ID)
	if err != nil {
		return fmt.Errorf("the newest snapshot, %s: %w; without it the older ones are used", list[0].ID, err)
	}
	return content.Close()
}

func errNothingToRecover(path string) error {
	return fmt.Errorf("%s has neither a log nor a snapshot: start the servers, and the keys that are there are adopted", path)
}

// othersSilent is an error if another server of the cluster answers.
func (d raftDir) othersSilent(ctx context.Context, cfg NodeConfig) error {
	servers, err := d.servers()
	if err != nil {
		return err
	}
	others := cfg.named()
	for _, s := range servers {
		others[string(s.Address)] = s.ID
	}
	return cfg.othersSilent(ctx, others)
}

// servers are those of the newest configuration that raft has on disk.
func (d raftDir) servers() (servers []raft.Server, err error) {
	list, err := d.snaps.List()
	if err != nil {
		return nil, err
	}
	folded := uint64(0)
	if len(list) > 0 {
		servers, folded = list[0].Configuration.Servers, list[0].Index
	}
	first, err := d.log.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := d.log.LastIndex()
	if err != nil {
		return nil, err
	}
	for i := last; i >= max(first, folded+1); i-- {
		var entry raft.Log
		if err := d.log.GetLog(i, &entry); err != nil {
			return nil, err
		}
		if entry.Type == raft.LogConfiguration {
			c, err := raftwire.DecodeConfiguration(entry.Data)
			if err != nil {
				return nil, fmt.Errorf("raft log, entry %d: %w", i, err)
			}
			return c.Servers, nil
		}
	}
	return servers, nil
}

// lastEntry is when a leader made the last entry of the log, or zero if there is none.
func (d raftDir) lastEntry() (time.Time, error) {
	last, err := d.log.LastIndex()
	if err != nil || last == 0 {
		return time.Time{}, err
	}
	var entry raft.Log
	err = d.log.GetLog(last, &entry)
	return entry.AppendedAt.UTC(), err
}

// keepTerm keeps raft's term from falling behind that of a snapshot which came without the log: a
// server that has the snapshot alone would take its own log for the newer one.
func (d raftDir) keepTerm() error {
	list, err := d.snaps.List()
	if err != nil || len(list) == 0 {
		return err
	}
	currentTerm := []byte("CurrentTerm") // where raft keeps it
	term, err := d.log.GetUint64(currentTerm)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if term >= list[0].Term {
		return nil
	}
	return d.log.SetUint64(currentTerm, list[0].Term)
}
