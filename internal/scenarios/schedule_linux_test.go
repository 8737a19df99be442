package scenarios_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"filippo.io/age"
	"golang.org/x/sys/unix"
)

// TestBackupsOnATroubledDisk leave nothing of an attempt that fails, and go on when it is over.
func TestBackupsOnATroubledDisk(t *testing.T) {
	for name, trouble := range map[string]struct {
		errno       syscall.Errno
		begin, over func(t *testing.T, dir string)
	}{
		"no space":  {syscall.ENOSPC, func(t *testing.T, dir string) { fill(t, dir, make([]byte, 4096)) }, empty},
		"no inodes": {syscall.ENOSPC, func(t *testing.T, dir string) { fill(t, dir, nil) }, empty},
		"a bit of space": {syscall.ENOSPC, func(t *testing.T, dir string) {
			fill(t, dir, make([]byte, 4096))
			if err := os.Remove(filepath.Join(dir, "ballast", "0")); err != nil {
				t.Fatal(err)
			}
		}, empty},
		"read-only": {syscall.EROFS, func(t *testing.T, dir string) { remount(t, dir, unix.MS_RDONLY) }, func(t *testing.T, dir string) { remount(t, dir, 0) }},
	} {
		t.Run(name, func(t *testing.T) {
			disk, ok := mount(t)
			if !ok {
				return
			}
			dir, identity := filepath.Join(disk, "backups"), kektest.Identity(t)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Pace: time.Minute, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
					cfg.Rotation.Every = -1
					cfg.Backups = keyring.BackupSchedule{
						Every: time.Hour, To: []age.Recipient{identity.Recipient()}, Store: keyring.BackupDir(dir), Keep: 2, Verify: []age.Identity{identity},
					}
				}})
				s := keyringtest.Ready(t, c)
				time.Sleep(150 * time.Minute)
				before := namesIn(t, dir)
				trouble.begin(t, disk)
				time.Sleep(3 * time.Hour)
				if p := theProblem(t, s, keyring.ProblemSchedule); !strings.Contains(p.Detail, trouble.errno.Error()) || !strings.Contains(p.Detail, dir) {
					t.Errorf("in trouble: %v", p)
				}
				if after := namesIn(t, dir); len(before) != 2 || !slices.Equal(before, after) {
					t.Errorf("in trouble it has %q, before %q", after, before)
				}
				trouble.over(t, disk)
				time.Sleep(time.Hour)
				after := namesIn(t, dir)
				if len(after) != 2 || slices.Equal(before, after) || len(keyringtest.Problems(t, s, keyring.ProblemSchedule)) > 0 {
					t.Errorf("when it is over it has %q: %v", after, keyringtest.StatusOf(t, s).Problems)
				}
				for _, name := range after {
					f, err := os.Open(filepath.Join(dir, name))
					if err != nil {
						t.Fatal(err)
					}
					_, err = keyring.VerifyBackup(f, identity)
					if err := errors.Join(err, f.Close()); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
			})
		})
	}
}
