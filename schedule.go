package keyring

// Config.Backups: the backups that the leader makes by itself, and their store.

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"filippo.io/age"
)

// BackupSchedule lets the leader make backups by itself: it writes the output of WriteBackup to Store, and
// confirms the backup when it is safe there. The zero value makes none.
//
// A backup is due Every after the last confirmed backup, scheduled or by hand; and at once if there is a key
// and no backup. So a new leader continues the schedule. It deletes the unfinished backup of the previous
// leader, unless that may be confirmed already. After a failure the leader retries within a minute, later
// within an hour. A ProblemSchedule reports failures, and a backup that is late by a quarter of Every. A
// leader makes no backup while its clock differs from the clocks of most servers. If a leader lacks a
// prepublished key that the last confirmed backup has, its backup does not replace that one: the older one
// stays the last confirmed, and nothing is removed.
type BackupSchedule struct {
	// Every is the time between two backups. Zero means 24 hours. It is at least a minute. If
	// RotationPolicy.Lead is not shorter, the key of a scheduled rotation is in a backup before it is used.
	Every time.Duration
	// To are the recipients of each backup. At least one is required.
	To []age.Recipient
	// Store keeps the backups. Nil means that there are no scheduled backups.
	Store BackupStore
	// Keep is how many backups Store keeps. When a new one is confirmed, the oldest are removed: only files
	// that have the name of a scheduled backup of this cluster, and never the new one. Zero means 7; negative
	// removes none. A restored copy of the cluster, as in a drill, uses the same names: give it another
	// Store.
	Keep int
	// Verify are identities with which each backup is read back from Store and verified, as by VerifyBackup,
	// before it is confirmed. Anyone who has them and the store can decrypt all backups, including keys that
	// were removed since. If no server should have them, leave Verify empty, and run VerifyBackup elsewhere.
	Verify []age.Identity
}

// BackupStore keeps scheduled backups as files with names of letters, digits, '-' and '.'. Give all servers
// the same store. Otherwise each backup is in the store of the server that led at the time, and each store
// keeps Keep of them.
//
// The leader makes one call at a time. Its context ends when the server no longer leads, at Close, and when
// the store has done nothing for 10 minutes. A call that does not return is a ProblemHost, and no backup is
// made until it has returned.
type BackupStore interface {
	// Put stores what r yields until io.EOF under a new name. When Put returns nil, all of it is safe under
	// that name. After an error, including one of r, no file may remain; if Put can't make sure of that,
	// Remove is called.
	Put(ctx context.Context, name string, r io.Reader) error
	// Open opens a file for reading. It is called if Verify is set.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// List returns the names of all files, in any order. Files that are no backups may be among them.
	List(ctx context.Context) ([]string, error)
	// Remove deletes a file. A missing file is no error.
	Remove(ctx context.Context, name string) error
}

const (
	defaultBackupEvery = 24 * time.Hour
	defaultBackupKeep  = 7
)

// Format implements fmt.Formatter, because an identity would print its secret.
func (s BackupSchedule) Format(f fmt.State, _ rune) {
	if s.Store == nil {
		io.WriteString(f, "no scheduled backups")
		return
	}
	fmt.Fprintf(f, "a backup every %v to %d recipients, %d kept, verified with %d identities", s.Every, len(s.To), s.Keep, len(s.Verify))
}

// fill fills in what zero means.
func (s *BackupSchedule) fill(w *wrongs) {
	if s.Store == nil {
		w.unless(s.Every == 0 && s.Keep == 0 && len(s.To)+len(s.Verify) == 0, "Backups.Store is nil, and other fields of Backups are set")
		return
	}
	w.duration("Backups.Every", s.Every, longest)
	w.unless(s.Every <= shortest || s.Every >= time.Minute, "Backups.Every %v is less than a minute", s.Every)
	if err := backup.CheckRecipients(s.To); err != nil {
		*w = append(*w, fmt.Errorf("Backups.To: %w", err))
	}
	w.unless(!slices.Contains(s.To, nil), "Backups.To has a recipient that is nil")
	w.unless(!slices.Contains(s.Verify, nil), "Backups.Verify has an identity that is nil")
	s.Every = cmp.Or(s.Every, defaultBackupEvery)
	s.Keep = cmp.Or(s.Keep, defaultBackupKeep)
}

// newSchedule returns what makes backups by schedule, or nil.
func newSchedule(s *server, b *lead.Backups, c *local.Clocks) *lead.Schedule {
	conf := s.cfg.Backups
	if conf.Store == nil {
		return nil
	}
	failed := func(n float64) { s.cfg.Metrics.AddCounter("keyring.backup.failures", n, nil) }
	failed(0) // so that it is there before the first
	return lead.NewSchedule(s.Server, b, lead.ScheduleConfig{
		Every: conf.Every, To: conf.To, Store: conf.Store, Keep: conf.Keep, Verify: conf.Verify, Clocks: c, Failed: func() { failed(1) },
	})
}

// BackupDir returns a BackupStore of files in a directory, with mode 0600. Put syncs a file, renames it to
// its name and syncs the directory before it returns. The directory must exist, because a missing one may be
// on a file system that is not mounted; its mode is not changed. Several servers may share it over a network
// file system, and it may contain other files.
//
// After a crash, at most one temporary file named .NAME.tmp is left. The next backup of the cluster deletes
// it, unless another process is writing it and has it locked.
func BackupDir(path string) BackupStore { return backupDir{path} }

type backupDir struct{ path string }

// do opens the directory for one call: it may be mounted later, or at another time.
func (d backupDir) do(ctx context.Context, call func(*durable.Shared) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	dir, err := durable.OpenShared(d.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return call(dir)
}

// Put implements BackupStore.
func (d backupDir) Put(ctx context.Context, name string, r io.Reader) error {
	return d.do(ctx, func(dir *durable.Shared) error {
		of, _, _ := backup.ParseName(name)
		_ = dir.Sweep(func(name string) bool { // what it can't remove, a later one does
			cluster, _, is := backup.ParseName(name)
			return is && cluster == of
		})
		return dir.Put(name, r)
	})
}

// Open implements BackupStore.
func (d backupDir) Open(ctx context.Context, name string) (r io.ReadCloser, err error) {
	err = d.do(ctx, func(dir *durable.Shared) error {
		r, err = dir.Open(name) // it outlives the directory
		return err
	})
	return r, err
}

// List implements BackupStore.
func (d backupDir) List(ctx context.Context) (names []string, err error) {
	err = d.do(ctx, func(dir *durable.Shared) error {
		names, err = dir.List()
		return err
	})
	return names, err
}

// Remove implements BackupStore.
func (d backupDir) Remove(ctx context.Context, name string) error {
	return d.do(ctx, func(dir *durable.Shared) error { return dir.Remove(name) })
}
