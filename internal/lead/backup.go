package lead

// How the leader makes a backup: a snapshot of raft, the material of each key in it, and a note of it in the log.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"filippo.io/age"
)

// Backup writes a backup of the cluster to w, encrypted to the recipients, and notes it in raft. If that alone fails, the
// manifest comes with the error.
func Backup(ctx context.Context, s *local.Server, w io.Writer, to []age.Recipient) (backup.Manifest, error) {
	if err := backup.CheckRecipients(to); err != nil {
		return backup.Manifest{}, fmt.Errorf("backup: %w", err)
	}
	if err := s.Leading(); err != nil {
		return backup.Manifest{}, err
	}
	if ctx.Err() != nil {
		return backup.Manifest{}, fmt.Errorf("backup: %w", context.Cause(ctx))
	}
	archive, err := archiveAll(ctx, s)
	if err != nil {
		return backup.Manifest{}, fmt.Errorf("backup: %w", err)
	}
	defer archive.Close()
	m, err := archive.Write(ctx, w, to...)
	if err != nil {
		return backup.Manifest{}, fmt.Errorf("backup: %w", err)
	}
	made := meta.Backup{Index: archive.UpTo(), Time: m.Created, Digest: m.SHA256}
	if err := s.Propose(ctx, meta.Command{Backup: &made}); err != nil {
		return m, fmt.Errorf("backup: it is complete, but not noted: %w", err)
	}
	s.Logger.Info("backup made", "index", m.Raft.Index, "keys", len(m.Keys))
	return m, nil
}

// archiveAll has raft make a snapshot, and copies the material of each of its keys: so no key is gone by the time it is
// written. If a key of the snapshot has been removed already, a newer snapshot does not have it.
func archiveAll(ctx context.Context, s *local.Server) (*backup.Archive, error) {
	material := func(id meta.KeyID) (backup.Material, bool) {
		k, ok := s.Store.Copy(id)
		return backup.Material(k), ok
	}
	for {
		a, err := archiveSnapshot(s)
		if err != nil {
			return nil, err
		}
		missing, leftOut := a.AddAll(material)
		if len(missing) == 0 {
			for _, id := range leftOut {
				s.Logger.Warn("a prepublished key that is not here is left out of the backup", "key", id)
			}
			return a, nil
		}
		a.Close()
		if !slices.ContainsFunc(missing, s.WasRemoved) {
			var names []string
			for _, id := range missing {
				names = append(names, id.String())
			}
			return nil, fmt.Errorf("%w: %s", local.ErrKeyMissing, strings.Join(names, ", "))
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// archiveSnapshot returns an archive of a new snapshot, without keys.
func archiveSnapshot(s *local.Server) (*backup.Archive, error) {
	// Raft makes no snapshot right after a change of its configuration. An entry helps.
	if err := s.Raft.Barrier(fsm.ProposeTimeout).Error(); err != nil {
		return nil, s.FSM.Outcome(s.Raft, err)
	}
	f := s.Raft.Snapshot()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("make a snapshot: %w", err)
	}
	m, body, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("open the snapshot: %w", err)
	}
	a, err := backup.New(*m, body, s.FSM.Build(), s.Now())
	if err != nil {
		return nil, err
	}
	if a.Ring.Active() == nil {
		return nil, errors.Join(fmt.Errorf("%w: there is no active key, which would sign it", fsm.ErrNotReady), a.Close())
	}
	return a, nil
}
