package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// withFiles is a new cluster whose first server has five key files under a KEK.
func withFiles(t *testing.T, servers int, under keyring.KEK, configure func(*keyringtest.Server, *keyring.Config)) *keyringtest.Cluster {
	t.Helper()
	disk := keyringtest.NewDisk()
	for i := range 5 {
		keyringtest.PlantKey(t, disk, keyring.KeyID{7, byte(i)}, under)
	}
	return keyringtest.NewCluster(t, keyringtest.Options{Servers: servers, Configure: configure, Disk: func(id raft.ServerID) *keyringtest.Disk {
		if id == "s1" {
			return disk
		}
		return keyringtest.NewDisk()
	}})
}

// waitsFor is what a server says that WaitReady waits for.
func waitsFor(t *testing.T, s *keyringtest.Server) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := s.Keyring.WaitReady(ctx)
	if err == nil {
		t.Errorf("%s is ready", s.ID)
		return ""
	}
	return err.Error()
}

// adopted requires that all of the five keys are in the keyring, and none is an orphan.
func adopted(t *testing.T, c *keyringtest.Cluster) {
	t.Helper()
	keyringtest.Ready(t, c)
	time.Sleep(10 * time.Minute)
	for _, s := range c.Servers {
		st, err := s.Keyring.Status(t.Context())
		if err != nil || len(st.Orphans) > 0 || len(st.Keys) != 6 {
			t.Errorf("%s: %v, %d keys, %d orphans", s.ID, err, len(st.Keys), len(st.Orphans))
		}
		for _, p := range st.Problems {
			if p.Kind == keyring.ProblemFirstKey {
				t.Errorf("%s: %v", s.ID, p)
			}
		}
	}
}

// TestNoFirstKeyWhileFilesWait: it would make orphans of the keys in them.
func TestNoFirstKeyWhileFilesWait(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		begin, end func(*kektest.KMS)
		says       string
	}{
		"a KMS that is away":           {func(k *kektest.KMS) { k.Err = kektest.ErrDown }, func(k *kektest.KMS) { k.Err = nil }, "5 of 5 key files there wait for KEK a"},
		"a KMS that fails for a while": {func(k *kektest.KMS) { k.NoUnwrap = kektest.ErrDown }, func(k *kektest.KMS) { k.NoUnwrap = nil }, "5 of 5 key files there wait for KEK a"},
		"another KEK by its name":      {func(k *kektest.KMS) { k.NoUnwrap = keyring.ErrDecrypt }, func(k *kektest.KMS) { k.NoUnwrap = nil }, "5 of 5 key files there wait for KEK a"},
	} {
		for _, servers := range []int{1, 3} {
			for _, sameBuild := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d servers, same build %v", name, servers, sameBuild), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						k := kektest.New("a")
						k.Set(tt.begin)
						c := withFiles(t, servers, kektest.New("a"), func(_ *keyringtest.Server, cfg *keyring.Config) {
							cfg.KEKs = []keyring.KEK{k}
							if strings.HasPrefix(name, "another") {
								cfg.KEKs = []keyring.KEK{keyring.InlineKEK(), k} // which wraps, and could make a first key
							}
							if sameBuild {
								cfg.EveryBuild = true
							}
						})
						time.Sleep(time.Minute)
						leader := c.Leader()
						if got := keyringtest.ProblemAbout(t, leader, keyring.ProblemFirstKey, "s1"); got != tt.says {
							t.Errorf("problem %q", got)
						}
						for _, s := range []*keyringtest.Server{leader, c.Server("s1")} {
							if got := waitsFor(t, s); !strings.Contains(got, "the first one waits for s1: "+tt.says) {
								t.Errorf("%s: WaitReady: %s", s.ID, got)
							}
						}
						if n := keyringtest.Entries(t, leader); n > 0 {
							t.Errorf("the keyring has %d entries in raft already", n)
						}
						k.Set(tt.end)
						adopted(t, c)
					})
				})
			}
		}
	}
}

// TestNoFirstKeyWhileFilesCannotBeRead: whatever stands in their way.
func TestNoFirstKeyWhileFilesCannotBeRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var bad atomic.Bool
		bad.Store(true)
		c := withFiles(t, 3, keyring.InlineKEK(), func(s *keyringtest.Server, cfg *keyring.Config) {
			if s.ID == "s1" {
				s.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
					if bad.Load() && op.Kind == "read" && strings.HasPrefix(op.Name, "0700") {
						return keyringtest.Fault{Err: errors.New("too many open files")}
					}
					return keyringtest.Fault{}
				})
			}
		})
		time.Sleep(time.Minute)
		if got := keyringtest.ProblemAbout(t, c.Leader(), keyring.ProblemFirstKey, "s1"); !strings.Contains(got, "of 5 key files there can't be read") {
			t.Errorf("problem %q", got)
		}
		bad.Store(false)
		adopted(t, c)
	})
}

// TestFirstKeyComesWhenFilesThatWaitAreMovedAway: a KEK that is gone for good does not stand in its way for
// ever, and no server need be restarted.
func TestFirstKeyComesWhenFilesThatWaitAreMovedAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := withFiles(t, 3, kektest.New("lost"), func(*keyringtest.Server, *keyring.Config) {})
		time.Sleep(time.Hour)
		const says = "5 of 5 key files there wait for KEK lost"
		if got := keyringtest.ProblemAbout(t, c.Leader(), keyring.ProblemFirstKey, "s1"); got != says {
			t.Errorf("problem %q", got)
		}
		for i := range 5 {
			c.Server("s1").Disk.Unlink(nks.FileName(keyring.KeyID{7, byte(i)}))
		}
		time.Sleep(2 * time.Minute)
		if got := keyringtest.ProblemAbout(t, keyringtest.Ready(t, c), keyring.ProblemFirstKey, "s1"); got != "" {
			t.Errorf("problem %q", got)
		}
	})
}

// slow is a KEK that takes eight seconds to open a file.
type slow struct{ *kektest.KMS }

func (s slow) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	select {
	case <-time.After(8 * time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.KMS.Unwrap(ctx, wrapped, aad)
}

// TestNoFirstKeyWhileAServerOpensItsKeystore: however long that takes, though the others are known to be of
// this build and wait for none that is down.
func TestNoFirstKeyWhileAServerOpensItsKeystore(t *testing.T) {
	t.Parallel()
	for _, keys := range []int{8, 40} { // sixteen at a time: 8 seconds, 24 seconds
		synctest.Test(t, func(t *testing.T) {
			disk := keyringtest.NewDisk()
			for i := range keys {
				keyringtest.PlantKey(t, disk, keyring.KeyID{7, byte(i >> 8), byte(i)}, kektest.New("a"))
			}
			c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Disk: func(id raft.ServerID) *keyringtest.Disk {
				if id == "s3" {
					return disk
				}
				return keyringtest.NewDisk()
			}, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
				cfg.EveryBuild = true
				if s.ID == "s3" {
					cfg.KEKs = []keyring.KEK{slow{kektest.New("a")}}
				}
			}, Raft: func(conf *raft.Config) {
				if conf.LocalID == "s3" { // it does not lead
					conf.HeartbeatTimeout, conf.ElectionTimeout = 100*conf.HeartbeatTimeout, 100*conf.ElectionTimeout
				}
			}})
			keyringtest.Ready(t, c)
			time.Sleep(10 * time.Minute)
			st, err := c.Server("s3").Keyring.Status(t.Context())
			if err != nil || len(st.Orphans) > 0 || len(st.Keys) != keys+1 {
				t.Errorf("%v, %d keys, %d orphans", err, len(st.Keys), len(st.Orphans))
			}
		})
	}
}

// refusing has a server refuse what it is asked, as a Node's port does while its keyring is not open.
func refusing(server raft.ServerID, yes func() bool) func(keyringtest.Event) keyringtest.Reply {
	return func(e keyringtest.Event) keyringtest.Reply {
		if e.Kind == "call" && e.To == server && yes() {
			return keyringtest.Reply{Err: &peer.Refusal{Code: peer.NotReady}}
		}
		return keyringtest.Reply{}
	}
}

// TestServerThatIsDownIsNotWaitedForLong where all are known to be of this build, but one that refuses is, and
// one that comes and goes.
func TestServerThatIsDownIsNotWaitedForLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.EveryBuild = true
		}, Raft: func(conf *raft.Config) {
			if conf.LocalID == "s3" {
				conf.HeartbeatTimeout, conf.ElectionTimeout = 100*conf.HeartbeatTimeout, 100*conf.ElectionTimeout
			}
		}})
		c.OnEvent(refusing("s3", func() bool { return true }))
		time.Sleep(2 * time.Minute)
		if got := waitsFor(t, c.Leader()); !strings.Contains(got, "s3: it is opening its keystore") {
			t.Errorf("WaitReady: %s", got)
		}
		if got := keyringtest.ProblemAbout(t, c.Leader(), keyring.ProblemFirstKey, "s3"); !strings.Contains(got, "opening its keystore") {
			t.Errorf("problem %q", got)
		}
		for range 3 { // restarted again and again
			c.OnEvent(nil)
			c.Kill(c.Server("s3"))
			time.Sleep(6 * time.Second)
			waitsFor(t, c.Leader())
			c.OnEvent(refusing("s3", func() bool { return true }))
			c.Stop(c.Server("s3"))
			c.Start(c.Server("s3"))
			time.Sleep(20 * time.Second)
		}
		waitsFor(t, c.Leader())
		c.OnEvent(nil)
		c.Stop(c.Server("s3"))
		began := time.Now()
		keyringtest.Ready(t, c)
		if took := time.Since(began); took < 5*time.Second || took > 30*time.Second {
			t.Errorf("a server that is down was waited for %v", took)
		}
	})
}

// TestLeaderOfAnOlderBuildAsksAgainWhileFilesWait, for it can't be told of them; and is answered when it has
// made its key all the same.
func TestLeaderOfAnOlderBuildAsksAgainWhileFilesWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kektest.New("a")
		k.Set(func(k *kektest.KMS) { k.Err = kektest.ErrDown })
		c := withFiles(t, 3, kektest.New("a"), func(s *keyringtest.Server, cfg *keyring.Config) {
			if s.ID == "s1" {
				cfg.KEKs = []keyring.KEK{k}
			}
		})
		time.Sleep(time.Minute)
		keyringtest.MakeLeader(t, c, c.Server("s2"))
		time.Sleep(time.Minute)
		const hello, refusal = `{"version":1,"hello":{}}`, `{"version":1,"error":{"code":"not-ready"}}`
		answer, err := c.Server("s1").Keyring.ServePeer(t.Context(), "s2", []byte(hello))
		if err != nil || string(answer) != refusal {
			t.Errorf("%s, %v", answer, err)
		}
		k.Set(func(k *kektest.KMS) { k.Err = nil })
		adopted(t, c)
		c.Server("s1").Disk.Plant(nks.FileName(keyring.KeyID{8}), 0o600, func() []byte {
			b, _ := keyringtest.NewKeyFile(t, keyring.KeyID{8}, kektest.New("unknown"))
			return b
		}())
		c.Restart(c.Server("s1"))
		keyringtest.Ready(t, c)
		time.Sleep(time.Minute)
		answer, err = c.Server("s1").Keyring.ServePeer(t.Context(), c.Leader().ID, []byte(hello))
		if err != nil || !strings.HasPrefix(string(answer), `{"version":1,"hello":{"build":`) {
			t.Errorf("%s, %v", answer, err)
		}
	})
}

// TestServersOfAnOlderBuildAreAskedAsTheyUnderstand.
func TestServersOfAnOlderBuildAreAskedAsTheyUnderstand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		var c *keyringtest.Cluster
		hook := func(e keyringtest.Event) keyringtest.Reply {
			if e.Kind == "call" && strings.HasPrefix(e.What, `{"version":2,`) {
				asked.Add(1)
				return keyringtest.Reply{Data: []byte(`{"version":1,"error":{"code":"unsupported"}}`)}
			}
			return keyringtest.Reply{}
		}
		c = withFiles(t, 3, keyring.InlineKEK(), func(*keyringtest.Server, *keyring.Config) {})
		c.OnEvent(hook)
		adopted(t, c)
		if asked.Load() == 0 {
			t.Error("nothing of version 2 was asked: that was no test")
		}
	})
}

// TestEachTryOfTheFirstKeyAsksWhoHasFiles: a server that was down, or no member, when the leader asked before
// the try that failed may be up with its files at the next one.
func TestEachTryOfTheFirstKeyAsksWhoHasFiles(t *testing.T) {
	t.Parallel()
	for name, comes := range map[string]struct {
		from raft.ServerID
		come func(*keyringtest.Cluster)
	}{
		"a server that was down comes back": {"s3", func(c *keyringtest.Cluster) { c.Start(c.Server("s3")) }},
		"a server is added":                 {"s4", func(c *keyringtest.Cluster) { c.Add("s4") }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, disk := kektest.New("a"), keyringtest.NewDisk()
				k.Set(func(k *kektest.KMS) { k.Err = kektest.ErrDown })
				for i := range 5 {
					keyringtest.PlantKey(t, disk, keyring.KeyID{7, byte(i)}, kektest.New("a"))
				}
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Disk: func(id raft.ServerID) *keyringtest.Disk {
					if id == comes.from {
						return disk
					}
					return keyringtest.NewDisk()
				}, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
					cfg.KEKs = []keyring.KEK{k}
					cfg.EveryBuild = true
				}, Raft: func(conf *raft.Config) {
					if conf.LocalID == "s3" { // it does not lead
						conf.HeartbeatTimeout, conf.ElectionTimeout = 100*conf.HeartbeatTimeout, 100*conf.ElectionTimeout
					}
				}})
				c.Leader()
				c.Stop(c.Server("s3"))
				time.Sleep(10 * time.Minute) // the leader tries to make the first key, and can't wrap it
				if keyringtest.Entries(t, c.Leader()) == 0 {
					t.Error("nothing was tried: that is no test")
				}
				comes.come(c)
				if comes.from != "s3" {
					c.Start(c.Server("s3"))
				}
				time.Sleep(10 * time.Minute)
				if got := keyringtest.ProblemAbout(t, c.Leader(), keyring.ProblemFirstKey, comes.from); got != "5 of 5 key files there wait for KEK a" {
					t.Errorf("problem %q", got)
				}
				k.Set(func(k *kektest.KMS) { k.Err = nil })
				adopted(t, c)
			})
		})
	}
}

// TestFirstKeyOfASnapshotIsWaitedForNoMore: the host restores one that has an active key, while the leader waits
// to make the first.
func TestFirstKeyOfASnapshotIsWaitedForNoMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		donor := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1})
		from := keyringtest.Ready(t, donor)
		snap, index := keyringtest.SnapshotOf(t, from.FSM), from.Raft.AppliedIndex()
		k := kektest.New("a")
		k.Set(func(k *kektest.KMS) { k.Err = kektest.ErrDown })
		c := withFiles(t, 3, kektest.New("a"), func(s *keyringtest.Server, cfg *keyring.Config) {
			if s.ID == "s1" {
				cfg.KEKs = []keyring.KEK{k}
			}
		})
		time.Sleep(time.Minute)
		leader := c.Leader()
		if keyringtest.ProblemAbout(t, leader, keyring.ProblemFirstKey, "s1") == "" {
			t.Fatal("the first key does not wait: that is no test")
		}
		meta := &raft.SnapshotMeta{Version: 1, Index: index, Size: int64(len(snap))}
		if err := leader.Raft.Restore(meta, bytes.NewReader(snap), time.Hour); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if now := c.Leader(); now != leader {
			t.Fatalf("%s leads: that is no test", now.ID)
		}
		if got := keyringtest.ProblemAbout(t, leader, keyring.ProblemFirstKey, "s1"); got != "" {
			t.Errorf("problem %q", got)
		}
	})
}
