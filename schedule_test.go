package keyring_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"filippo.io/age"
)

// filesIn are the files in a directory, by name.
func filesIn(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// TestBackupDirKeepsBackups: as many as are to be kept, each for its owner alone, and nothing else goes but what a crash of this cluster has
// left.
func TestBackupDirKeepsBackups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, identity := t.TempDir(), kektest.Identity(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: time.Minute, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every = -1
			cfg.Backups = keyring.BackupSchedule{
				Every: time.Hour, To: []age.Recipient{identity.Recipient()}, Store: keyring.BackupDir(dir), Keep: 3, Verify: []age.Identity{identity},
			}
		}})
		keyringtest.Ready(t, c)
		time.Sleep(30 * time.Minute)
		var first string
		for first = range filesIn(t, dir) {
		}
		torn, others := "."+first+".tmp", "."+strings.Replace(first, "keyring-", "keyring-0", 1)+".tmp"
		for _, name := range []string{torn, others, "notes.txt"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Hour)
		files := filesIn(t, dir)
		if len(files) != 5 || files[first] != nil || files[torn] != nil || files[others] == nil || files["notes.txt"] == nil {
			t.Errorf("the directory has %d files", len(files))
		}
		delete(files, others)
		delete(files, "notes.txt")
		st, noted := keyringtest.StatusOf(t, c.Leader()), false
		for name, file := range files {
			m, err := keyring.VerifyBackup(bytes.NewReader(file), identity)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			noted = noted || m.SHA256 == st.LastBackup.SHA256
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
		if !noted || len(st.NoBackup) > 0 {
			t.Errorf("the last backup %+v is not there, or lacks %v", st.LastBackup, st.NoBackup)
		}
	})
}

// TestBackupDirIsNotMade: it may be on a file system that is not mounted. When it is there, the next attempt uses it.
func TestBackupDirIsNotMade(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir, to := filepath.Join(t.TempDir(), "later"), kektest.Identity(t).Recipient()
		c := keyringtest.NewCluster(t, keyringtest.Options{Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Backups = keyring.BackupSchedule{To: []age.Recipient{to}, Store: keyring.BackupDir(dir)}
		}})
		s := keyringtest.Ready(t, c)
		time.Sleep(20 * time.Minute)
		if p := keyringtest.Problems(t, s, keyring.ProblemSchedule); len(p) != 1 || !strings.Contains(p[0].Detail, dir) {
			t.Errorf("problems: %v", p)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if p := keyringtest.Problems(t, s, keyring.ProblemSchedule); len(p) > 0 || len(filesIn(t, dir)) != 1 {
			t.Errorf("problems: %v", p)
		}
	})
}

// TestWrongSchedulesAreRefused, with what is wrong.
func TestWrongSchedulesAreRefused(t *testing.T) {
	to, store := []age.Recipient{kektest.Identity(t).Recipient()}, keyring.BackupDir(t.TempDir())
	for want, s := range map[string]keyring.BackupSchedule{
		"Store is nil":          {Every: time.Hour},
		"Store is nil, and":     {To: to},
		"no age recipients":     {Store: store},
		"recipient that is nil": {Store: store, To: append([]age.Recipient{nil}, to...)},
		"identity that is nil":  {Store: store, To: to, Verify: []age.Identity{nil}},
		"less than a minute":    {Store: store, To: to, Every: time.Second * 59},
		"less than a second":    {Store: store, To: to, Every: 24},
		"is negative":           {Store: store, To: to, Every: -time.Hour},
		"is more than":          {Store: store, To: to, Every: 200 * 365 * 24 * time.Hour},
	} {
		err := keyring.Config{KEKs: []keyring.KEK{keyring.InlineKEK()}, Backups: s}.Check()
		if err == nil || !strings.Contains(err.Error(), "Backups") || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	for _, s := range []keyring.BackupSchedule{{}, {Store: store, To: to}, {Store: store, To: to, Every: time.Minute, Keep: -1}} {
		if err := (keyring.Config{KEKs: []keyring.KEK{keyring.InlineKEK()}, Backups: s}).Check(); err != nil {
			t.Errorf("%v: %v", s, err)
		}
	}
}

// TestScheduleDoesNotPrintItsIdentities: age's print themselves.
func TestScheduleDoesNotPrintItsIdentities(t *testing.T) {
	identity := kektest.Identity(t)
	s := keyring.BackupSchedule{To: []age.Recipient{identity.Recipient()}, Store: keyring.BackupDir("x"), Verify: []age.Identity{identity}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		for _, of := range []any{s, &s, keyring.Config{Backups: s}, &keyring.Config{Backups: s}} {
			if text := fmt.Sprintf(verb, of); keyringtest.Leaks([]byte(strings.ToLower(text)), [][]byte{[]byte(strings.ToLower(identity.String()))}) > 0 {
				t.Errorf("%s of a %T prints the identity", verb, of)
			}
		}
	}
}

// TestOnlyTheLeaderMakesBackups, into its own store.
func TestOnlyTheLeaderMakesBackups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dirs, identity := map[string]string{}, kektest.Identity(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			dir := t.TempDir()
			dirs[string(s.ID)] = dir
			cfg.Backups = keyring.BackupSchedule{To: []age.Recipient{identity.Recipient()}, Store: keyring.BackupDir(dir)}
		}})
		leader := keyringtest.Ready(t, c)
		time.Sleep(time.Hour)
		var has []string
		for id, dir := range dirs {
			if len(filesIn(t, dir)) > 0 {
				has = append(has, id)
			}
		}
		if !slices.Equal(has, []string{string(leader.ID)}) {
			t.Errorf("%s leads, and %q have backups", leader.ID, has)
		}
	})
}
