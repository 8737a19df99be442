package lead

// How the leader makes a backup: a snapshot of raft, the material of each key in it, and a note of it in the log once it is safe.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"filippo.io/age"
)

// ErrUnknownBackup says that a backup can't be noted: this server has not made it, or no longer knows what is in it.
var ErrUnknownBackup = errors.New("this server does not know the backup")

// maxWritten is how many backups wait to be confirmed. They are confirmed in any order, or never.
const maxWritten = 16

// Backups makes backups, and notes in raft those that are confirmed.
type Backups struct {
	server *local.Server

	mu      sync.Mutex // guards below
	written []written  // the last ones, the newest last
}

// written is a backup that was written.
type written struct {
	meta.Backup
	restores uint64 // of snapshots by then: another restore may bring keys that are not in it
}

// NewBackups has made none yet.
func NewBackups(s *local.Server) *Backups { return &Backups{server: s} }

// Write writes a backup of the cluster to w, encrypted to the recipients. It notes nothing: see Confirm.
func (b *Backups) Write(ctx context.Context, w io.Writer, to []age.Recipient) (backup.Manifest, error) {
	s := b.server
	if err := backup.CheckRecipients(to); err != nil {
		return backup.Manifest{}, fmt.Errorf("backup: %w", err)
	}
	if err := s.Leading(); err != nil {
		return backup.Manifest{}, err
	}
	if ctx.Err() != nil {
		return backup.Manifest{}, fmt.Errorf("backup: %w", context.Cause(ctx))
	}
	restores := s.FSM.Restores() // before the snapshot is made
	archive, err := archiveAll(ctx, s)
	if err != nil {
		return backup.Manifest{}, fmt.Errorf("backup: %w", err)
	}
	defer archive.Close()
	m, err := archive.Write(ctx, w, to...)
	if err != nil {
		return backup.Manifest{}, fmt.Errorf("backup: %w", err)
	}
	b.remember(written{meta.Backup{Index: archive.UpTo(), Time: m.Created, Digest: m.SHA256}, restores})
	s.Logger.Info("wrote a backup", "index", m.Raft.Index, "keys", len(m.Keys))
	return m, nil
}

func (b *Backups) remember(w written) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.written = append(b.written, w)
	b.written = slices.Delete(b.written, 0, max(0, len(b.written)-maxWritten))
}

func (b *Backups) find(digest meta.Digest) (written, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.written, func(w written) bool { return w.Digest == digest })
	if i < 0 {
		return written{}, false
	}
	return b.written[i], true
}

// Confirm notes in raft a backup that Write has written here, and that is safe where it is now. If that one or a newer one
// is noted, it does nothing.
func (b *Backups) Confirm(ctx context.Context, digest meta.Digest) error {
	s := b.server
	if err := s.Leading(); err != nil {
		return err
	}
	w, is := b.find(digest)
	switch {
	case !is:
		return fmt.Errorf("%w with SHA-256 %x: it knows only the last %d that it has made since its start; make another one", ErrUnknownBackup, digest, maxWritten)
	case w.restores != s.FSM.Restores():
		return fmt.Errorf("%w with SHA-256 %x any longer: raft has restored a snapshot since; make another one", ErrUnknownBackup, digest)
	case s.FSM.Ring().Backup.Index >= w.Index:
		return nil
	}
	if err := s.Propose(ctx, meta.Command{Backup: &w.Backup}); err != nil {
		return err
	}
	s.Logger.Info("confirmed a backup", "index", w.Index)
	return nil
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
				s.Logger.Warn("left a prepublished key out of the backup: this server lacks it", "key", id)
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
		return nil, errors.Join(fmt.Errorf("%w: there is no active key to sign it", fsm.ErrNotReady), a.Close())
	}
	return a, nil
}
