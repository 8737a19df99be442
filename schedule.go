package keyring

// Config.Backups: backups that the leader makes by itself, and where they are kept.

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

// BackupSchedule has the leader make backups by itself: what WriteBackup writes goes into Store, and is confirmed when it is
// safe there. The zero value makes none.
//
// A backup is due Every after the last one that is confirmed, by schedule or by hand, and at once when there is a key and no
// backup. So a new leader goes on where the old one stopped; what that one had begun is discarded, or left if it may count. After a
// failure the leader tries again within a minute, and later within an hour. A backup that is late by a quarter of Every, and
// what else goes wrong, is a ProblemSchedule. A leader whose clock differs from those of most servers makes none. The backup of a
// leader that lacks a prepublished key takes the place of none that has it: that one stays the last confirmed, and nothing is removed.
type BackupSchedule struct {
	// Every is the time from one backup to the next. Zero means 24 hours. It is at least a minute. If RotationPolicy.Lead is
	// not less, a key of a scheduled rotation is in a backup before it is in use.
	Every time.Duration
	// To are the recipients that a backup is encrypted to. At least one is required.
	To []age.Recipient
	// Store is where the backups are kept. Nil means that no backup is made by schedule.
	Store BackupStore
	// Keep is how many backups Store keeps. When one more is confirmed, the oldest are removed: only files that have the name
	// of a backup of this cluster by schedule, and never that new one. Zero means 7; negative removes none. A restored copy of the
	// cluster, as in a drill, takes these files for its own: it needs another Store.
	Keep int
	// Verify are identities with which each backup is read back from Store, as VerifyBackup does, before it is confirmed.
	// Who has them and the store can open all backups, also with keys that were removed since: a server that is to
	// have none leaves this empty, and VerifyBackup proves the files elsewhere.
	Verify []age.Identity
}

// BackupStore keeps the files of backups by schedule, each under a name of letters, digits, '-' and '.'. All servers should have the same
// one: else the backups lie where the leader of the day has put them, and each store keeps as many.
//
// The leader makes one call at a time, and its context ends when it no longer leads, at Close, and when the store has done
// nothing for 10 minutes. A call that does not return is a ProblemHost, and no backup is made until it has.
type BackupStore interface {
	// Put stores what r yields until io.EOF under a new name. All of it is safe under that name when Put returns nil. After an
	// error, r's too, there is to be nothing; if that can't be told, Remove is called.
	Put(ctx context.Context, name string, r io.Reader) error
	// Open returns what Put has stored. It is called if Verify is set.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// List returns the names of the files that are there, in any order. There may be others than backups.
	List(ctx context.Context) ([]string, error)
	// Remove removes a file. If there is none it is no error.
	Remove(ctx context.Context, name string) error
}

const (
	defaultBackupEvery = 24 * time.Hour
	defaultBackupKeep  = 7
)

// Format implements fmt.Formatter: an identity prints itself, with its secret.
func (s BackupSchedule) Format(f fmt.State, _ rune) {
	if s.Store == nil {
		io.WriteString(f, "no backups by schedule")
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

// BackupDir returns a BackupStore of files in a directory, with mode 0600. A file is synced, and then renamed to its name, and the
// directory is synced, before Put returns. The directory has to be there, for one that is not may be on a file system that is not
// mounted, and keeps its mode. Several servers may share it over a network file system, and other files may be in it.
//
// A crash leaves a temporary file of the name .NAME.tmp at most. The next backup of the cluster removes it; one that another
// process is writing is locked, and stays.
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
