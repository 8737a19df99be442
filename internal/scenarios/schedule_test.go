package scenarios_test

// Backups by schedule, of clusters, in virtual months.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
)

// backupStore keeps backups in memory.
type backupStore struct {
	mu    sync.Mutex // guards below
	files map[string][]byte
	puts  int                                          // that have begun
	hook  func(ctx context.Context, call string) error // nil lets all pass
	spoil bool                                         // the last byte of each file that is put
}

func newBackupStore() *backupStore { return &backupStore{files: map[string][]byte{}} }

func (s *backupStore) onCall(hook func(ctx context.Context, call string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *backupStore) call(ctx context.Context, call string) error {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook == nil {
		return ctx.Err()
	}
	return hook(ctx, call)
}

// Put implements keyring.BackupStore.
func (s *backupStore) Put(ctx context.Context, name string, r io.Reader) error {
	s.mu.Lock()
	s.puts++
	s.mu.Unlock()
	var begin bytes.Buffer
	if _, err := io.CopyN(&begin, r, 100); err != nil {
		return err
	}
	if err := s.call(ctx, "put"); err != nil {
		return err
	}
	rest, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	file := append(begin.Bytes(), rest...)
	s.mu.Lock()
	if s.files[name] = file; s.spoil {
		file[len(file)-1] ^= 1
	}
	s.mu.Unlock()
	return s.call(ctx, "commit")
}

// Open implements keyring.BackupStore.
func (s *backupStore) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := s.call(ctx, "open"); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(s.all()[name])), nil
}

// List implements keyring.BackupStore.
func (s *backupStore) List(ctx context.Context) ([]string, error) {
	return slices.Collect(maps.Keys(s.all())), s.call(ctx, "list")
}

// Remove implements keyring.BackupStore.
func (s *backupStore) Remove(ctx context.Context, name string) error {
	if err := s.call(ctx, "remove"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, name)
	return nil
}

func (s *backupStore) all() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.files)
}

// plant puts empty files there.
func (s *backupStore) plant(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		s.files[name] = nil
	}
}

func (s *backupStore) begun() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.puts
}

// scheduled is a cluster that makes backups by schedule, daily, into one store.
type scheduled struct {
	*keyringtest.Cluster
	t        *testing.T
	store    *backupStore
	identity *age.X25519Identity
}

func newScheduled(t *testing.T, servers int, pace time.Duration, change func(*keyring.Config)) *scheduled {
	t.Helper()
	s := &scheduled{t: t, store: newBackupStore(), identity: kektest.Identity(t)}
	s.Cluster = keyringtest.NewCluster(t, keyringtest.Options{Servers: servers, Pace: pace, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
		cfg.Rotation.Every, cfg.Data = 10*24*time.Hour, keyring.NoData{}
		cfg.Backups = keyring.BackupSchedule{To: []age.Recipient{s.identity.Recipient()}, Store: s.store, Verify: []age.Identity{s.identity}}
		if change != nil {
			change(cfg)
		}
	}})
	return s
}

// last is the last backup by the ring of the leader.
func (s *scheduled) last() keyring.LastBackup {
	return keyringtest.StatusOf(s.t, s.Leader()).LastBackup
}

// checkFiles wants so many backups in the store, each of which restores, and the last one that was noted among them.
func (s *scheduled) checkFiles(when string, want int) {
	s.t.Helper()
	last, is := s.last(), false
	files := s.store.all()
	for name, file := range files {
		m, err := keyring.VerifyBackup(bytes.NewReader(file), s.identity)
		if err != nil || m.Cluster != clusterIn(name) {
			s.t.Errorf("%s: %s: of cluster %s, %v", when, name, m.Cluster, err)
		}
		is = is || m.SHA256 == last.SHA256
	}
	if len(files) != want || !is {
		s.t.Errorf("%s: %d files, want %d; the last that was noted is there: %t", when, len(files), want, is)
	}
}

func clusterIn(name string) string { return strings.Split(name, "-")[1] }

// TestAMonthOfBackups: one a day, under any leader, and the last seven are kept. What else lies in the store stays.
func TestAMonthOfBackups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScheduled(t, 3, 5*time.Minute, nil)
		keyringtest.Ready(t, s.Cluster)
		time.Sleep(3 * time.Hour)
		s.checkFiles("the first", 1)
		other := "keyring-00000000000000000000000000000001-20200101T000000Z-00000000.age"
		s.store.plant(other, "README")
		var times []time.Time
		for hour := range 30 * 24 {
			if last := s.last().Time; len(times) == 0 || !last.Equal(times[len(times)-1]) {
				times = append(times, last)
			}
			switch leader := s.Leader(); {
			case hour%50 == 20: // a new leader begins nothing by itself
				if err := leader.Raft.LeadershipTransfer().Error(); err != nil {
					t.Error(err)
				}
			case hour%150 == 75:
				s.Restart(leader)
			}
			time.Sleep(time.Hour)
		}
		for i, at := range times[1:] {
			if after := at.Sub(times[i]); after < 24*time.Hour || after > 28*time.Hour {
				t.Errorf("backup %d came %v after the one before", i+1, after)
			}
		}
		if n := len(times); n < 28 || n > 31 || s.store.begun() > n+4 {
			t.Errorf("%d backups, of %d that were begun", n, s.store.begun())
		}
		for _, name := range []string{other, "README"} {
			if _, is := s.store.all()[name]; !is {
				t.Errorf("%s was removed", name)
			}
			if err := s.store.Remove(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
		s.checkFiles("after a month", 7)
		for _, server := range s.Live() {
			if p := keyringtest.Problems(t, server, keyring.ProblemSchedule); len(p) > 0 {
				t.Errorf("%s: %v", server.ID, p)
			}
		}
	})
}

// TestLeaderThatIsDeposedLeavesNoFile: what it writes ends with its term, and the next leader makes the backup.
func TestLeaderThatIsDeposedLeavesNoFile(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"put", "commit", "open"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScheduled(t, 3, 0, nil)
				s.store.onCall(func(context.Context, string) error { return errors.New("not yet") })
				keyringtest.Ready(t, s.Cluster)
				keyringtest.AwaitKeys(t, s.Cluster)
				before := s.store.begun()
				var once sync.Once
				s.store.onCall(func(ctx context.Context, c string) error {
					if c == call {
						once.Do(func() {
							for _, server := range s.Servers {
								if server.Raft.LeadershipTransfer().Error() == nil { // the others do not lead
									break
								}
							}
							<-ctx.Done()
						})
					}
					return ctx.Err()
				})
				time.Sleep(10 * time.Minute)
				if n := s.store.begun() - before; n != 2 {
					t.Errorf("%d were begun", n)
				}
				s.checkFiles("deposed during "+call, 1)
			})
		})
	}
}

// TestLeaderThatDiesLeavesAFileAtMost: one that is complete, and is kept as the others are until it is the oldest.
func TestLeaderThatDiesLeavesAFileAtMost(t *testing.T) {
	t.Parallel()
	for call, left := range map[string]int{"put": 0, "commit": 1, "open": 1} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScheduled(t, 3, 5*time.Minute, func(cfg *keyring.Config) { cfg.Backups.Keep = 2 })
				var once sync.Once
				var gone atomic.Bool
				died := make(chan *keyringtest.Server, 1)
				s.store.onCall(func(ctx context.Context, c string) error {
					if c == call {
						once.Do(func() {
							leader := s.Leader()
							s.Kill(leader)
							gone.Store(true)
							died <- leader
						})
					}
					if gone.Load() {
						return errors.New("the process is gone")
					}
					return ctx.Err()
				})
				keyringtest.Ready(t, s.Cluster)
				dead := <-died
				s.Stop(dead)
				s.store.onCall(nil)
				time.Sleep(2 * time.Hour)
				s.checkFiles("died during "+call, 1+left)
				s.Start(dead)
				time.Sleep(26 * time.Hour)
				s.checkFiles("a day later", 2)
			})
		})
	}
}

// TestStoreThatFails is a problem, with its cause, first on the leader and when the backup is late on every server. It is tried
// again, and the first that is made ends it.
func TestStoreThatFails(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"put", "commit", "open"} {
		t.Run(call, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				figures := keyringtest.NewFigures()
				s := newScheduled(t, 3, time.Minute, func(cfg *keyring.Config) {
					cfg.Metrics, cfg.MetricsEvery = figures, time.Hour
				})
				keyringtest.Ready(t, s.Cluster)
				time.Sleep(time.Hour)
				s.checkFiles("well", 1)
				s.store.onCall(func(_ context.Context, c string) error {
					if c == call {
						return errors.New("quota exceeded")
					}
					return nil
				})
				says := func(want int, when string) {
					t.Helper()
					n := 0
					for _, server := range s.Live() {
						n += len(keyringtest.Problems(t, server, keyring.ProblemSchedule))
					}
					if n != want {
						t.Errorf("%s: %d servers say it, want %d", when, n, want)
					}
				}
				time.Sleep(20 * time.Hour)
				says(0, "before it is due")
				time.Sleep(4 * time.Hour)
				says(1, "when it is due")
				if p := theProblem(t, s.Leader(), keyring.ProblemSchedule); !strings.Contains(p.Detail, "quota exceeded") {
					t.Errorf("the leader says %v", p)
				}
				time.Sleep(12 * time.Hour)
				says(3, "when it is late")
				s.checkFiles("while it fails", 1)
				if n := s.store.begun(); n < 12 || n > 40 {
					t.Errorf("%d were begun in half a day", n)
				}
				s.store.onCall(nil)
				time.Sleep(time.Hour + time.Minute)
				says(0, "when it works again")
				s.checkFiles("when it works again", 2)
				_, counters := figures.Get()
				time.Sleep(time.Hour)
				if gauges, _ := figures.Get(); gauges["keyring.backup.age"] > 3*3600 || counters["keyring.backup.failures"] < 12 {
					t.Errorf("age %v, failures %v", gauges["keyring.backup.age"], counters["keyring.backup.failures"])
				}
			})
		})
	}
}

// TestBackupThatIsSpoiledDoesNotCount: it is read back, where an identity is given, and is removed.
func TestBackupThatIsSpoiledDoesNotCount(t *testing.T) {
	t.Parallel()
	for _, verified := range []bool{true, false} {
		t.Run(fmt.Sprint(verified), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScheduled(t, 1, time.Minute, func(cfg *keyring.Config) {
					if !verified {
						cfg.Backups.Verify = nil
					}
				})
				s.store.spoil = true
				keyringtest.Ready(t, s.Cluster)
				time.Sleep(7 * time.Hour)
				if n, last := len(s.store.all()), s.last(); (n == 0 && last.Index == 0) != verified {
					t.Errorf("%d files, the last is %+v", n, last)
				}
				if p := keyringtest.Problems(t, s.Leader(), keyring.ProblemSchedule); (len(p) == 1) != verified {
					t.Errorf("problems: %v", p)
				}
			})
		})
	}
}

// TestStoreThatTakesPart says that it has all: that is no backup.
func TestStoreThatTakesPart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScheduled(t, 1, time.Minute, func(cfg *keyring.Config) { cfg.Backups.Store = lazyStore{cfg.Backups.Store} })
		keyringtest.Ready(t, s.Cluster)
		time.Sleep(time.Hour)
		if p := theProblem(t, s.Leader(), keyring.ProblemSchedule); !strings.Contains(p.Detail, "has not read the whole backup") || s.last().Index != 0 {
			t.Errorf("%v, the last is %+v", p, s.last())
		}
	})
}

// lazyStore reads some of what it is to store.
type lazyStore struct{ keyring.BackupStore }

// Put implements keyring.BackupStore.
func (lazyStore) Put(_ context.Context, _ string, r io.Reader) error {
	_, err := io.CopyN(io.Discard, r, 100)
	return err
}

// TestStoreThatHangs is named, and given up when it goes by its context. One that does not is asked for nothing more, until it
// comes back.
func TestStoreThatHangs(t *testing.T) {
	t.Parallel()
	for _, heeds := range []bool{true, false} {
		t.Run(fmt.Sprint(heeds), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScheduled(t, 1, time.Minute, nil)
				h := make(chan struct{})
				s.store.onCall(func(ctx context.Context, c string) error {
					if c != "put" {
						return nil
					}
					if heeds {
						<-ctx.Done()
						return ctx.Err()
					}
					<-h
					return errors.New("late")
				})
				leader := keyringtest.Ready(t, s.Cluster)
				time.Sleep(5 * time.Minute)
				if p := theProblem(t, leader, keyring.ProblemHost); !strings.Contains(p.Detail, "Config.Backups.Store.Put") {
					t.Errorf("after 5 minutes: %v", p)
				}
				time.Sleep(2 * time.Hour)
				if n := s.store.begun(); (n > 1) != heeds {
					t.Errorf("%d were begun", n)
				}
				p := theProblem(t, leader, keyring.ProblemSchedule)
				if want := "has done nothing for 10m0s"; !strings.Contains(p.Detail, want) {
					t.Errorf("%v, want %q", p, want)
				}
				if !heeds {
					if err := leader.Keyring.Close(); err == nil || !strings.Contains(err.Error(), "Config.Backups.Store.Put") {
						t.Errorf("close: %v", err)
					}
				}
				s.store.onCall(nil)
				close(h)
				time.Sleep(2 * time.Hour)
				if heeds {
					s.checkFiles("when it answers", 1)
				}
			})
		})
	}
}

// TestOldBackupsThatStay are a problem: one backup more does not count as a failure.
func TestOldBackupsThatStay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScheduled(t, 1, 5*time.Minute, func(cfg *keyring.Config) { cfg.Backups.Keep = 2 })
		s.store.onCall(func(_ context.Context, c string) error {
			if c == "remove" {
				return errors.New("write-once bucket")
			}
			return nil
		})
		leader := keyringtest.Ready(t, s.Cluster)
		time.Sleep(4*24*time.Hour + time.Hour)
		s.checkFiles("while nothing goes", 5)
		if p := theProblem(t, leader, keyring.ProblemSchedule); !strings.Contains(p.Detail, "could not remove old backups") || !strings.Contains(p.Detail, "write-once bucket") {
			t.Errorf("%v", p)
		}
		s.store.onCall(nil)
		time.Sleep(24 * time.Hour)
		s.checkFiles("when they go", 2)
		if p := keyringtest.Problems(t, leader, keyring.ProblemSchedule); len(p) > 0 {
			t.Errorf("%v", p)
		}
	})
}

// backUpLater has the first backup made some time after the first key, so that no time of a key is its own.
func (s *scheduled) backUpLater() {
	s.t.Helper()
	s.store.onCall(func(context.Context, string) error { return errors.New("not yet") })
	keyringtest.Ready(s.t, s.Cluster)
	time.Sleep(time.Minute)
	s.store.onCall(nil)
	time.Sleep(2 * time.Hour)
	if n := len(s.store.all()); n != 1 {
		s.t.Fatalf("%d files", n)
	}
}

// TestBackupsGoOnAfterClocksWereAhead: the last one was made a year from now. The next is due a day after the leader saw that.
func TestBackupsGoOnAfterClocksWereAhead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScheduled(t, 3, 5*time.Minute, nil)
		for _, server := range s.Servers {
			server.Clock.Set(365 * 24 * time.Hour)
		}
		s.backUpLater()
		for _, server := range s.Servers {
			server.Clock.Set(0)
		}
		time.Sleep(20 * time.Hour)
		if n := len(s.store.all()); n != 1 {
			t.Errorf("%d files before the next is due", n)
		}
		time.Sleep(6 * time.Hour)
		s.checkFiles("when the next was due", 2)
		if last := s.last().Time; last.After(time.Now()) {
			t.Errorf("the last is of %v", last)
		}
	})
}

// TestBackupOfAClockThatIsAheadIsLateToo, on each server, though its time never comes.
func TestBackupOfAClockThatIsAheadIsLateToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScheduled(t, 3, 5*time.Minute, nil)
		for _, server := range s.Servers {
			server.Clock.Set(365 * 24 * time.Hour)
		}
		s.backUpLater()
		s.store.onCall(func(context.Context, string) error { return errors.New("quota exceeded") })
		for _, server := range s.Servers {
			server.Clock.Set(0)
			keyringtest.StatusOf(t, server) // it sees the time
		}
		time.Sleep(28 * time.Hour)
		late := func(server *keyringtest.Server) bool {
			p := keyringtest.Problems(t, server, keyring.ProblemSchedule)
			return len(p) == 1 && strings.Contains(p[0].Detail, "the last backup is of")
		}
		for _, server := range s.Servers {
			if late(server) {
				t.Errorf("%s says too early that it is late", server.ID)
			}
		}
		time.Sleep(4 * time.Hour)
		for _, server := range s.Servers {
			if !late(server) {
				t.Errorf("%s does not say that it is late: %v", server.ID, keyringtest.StatusOf(t, server).Problems)
			}
		}
	})
}

// TestStoreIsNotNamedForWhatItHasNoPartIn: the leader lacks a key.
func TestStoreIsNotNamedForWhatItHasNoPartIn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newScheduled(t, 1, 0, nil)
		leader := keyringtest.Ready(t, s.Cluster)
		old := leader.Keyring.Keys()[0].ID
		keyringtest.RotateWhenReady(t, s.Cluster)
		s.Stop(leader)
		leader.Disk.Unlink(nks.FileName(old))
		s.Start(leader)
		time.Sleep(26 * time.Hour)
		p := theProblem(t, leader, keyring.ProblemSchedule)
		if !strings.Contains(p.Detail, old.String()) || strings.Contains(p.Detail, "store") {
			t.Errorf("%v", p)
		}
		for name, file := range s.store.all() {
			if _, err := keyring.VerifyBackup(bytes.NewReader(file), s.identity); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
