package keyring_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

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
				if keyring.LastEntry(c.Leader().FSM) == 0 {
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
