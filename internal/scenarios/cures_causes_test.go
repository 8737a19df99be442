package scenarios_test

// The causes of problems, and what their advice says to do: see cures_test.go.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// three is a cluster of three that is ready. Nothing rotates by itself.
func three(t *testing.T, configure func(*keyringtest.Server, *keyring.Config)) (*keyringtest.Cluster, *keyringtest.Server) {
	t.Helper()
	c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
		cfg.Rotation.Every, cfg.Data = -1, keyring.NoData{}
		if configure != nil {
			configure(s, cfg)
		}
	}})
	leader := keyringtest.Ready(t, c)
	keyringtest.AwaitKeys(t, c)
	return c, leader
}

func keyNobodyHas(t *testing.T) cured {
	c, leader := three(t, nil)
	old := leader.Keyring.Keys()[0].ID
	keyringtest.RotateWhenReady(t, c)
	keyringtest.AwaitKeys(t, c)
	backup := bytes.Clone(leader.Disk.Bytes(nks.FileName(old)))
	for _, s := range c.Servers {
		c.Stop(s)
	}
	for _, s := range c.Servers {
		s.Disk.Unlink(nks.FileName(old))
	}
	for _, s := range c.Servers {
		c.Start(s)
	}
	keyringtest.Ready(t, c)
	return cured{c: c, on: leader, cure: func() { leader.Disk.Plant(nks.FileName(old), 0o600, backup) }}
}

func publicKeyAltered(t *testing.T) cured {
	c, leader := three(t, nil)
	active := keyringtest.Ring(leader.FSM).Active()
	mallory := keyringtest.NewPair(t, "EdDSA")
	keyringtest.TakeAlteredSnapshot(t, leader, func(b []byte) []byte { return altered(t, b, active.Public, mallory.Public(t)) })(leader)
	return cured{c: c, on: keyringtest.Ready(t, c), cure: func() {
		keyringtest.RotateWhenReady(t, c)
		keyringtest.Remove(t, c, keyring.KeyID(active.ID), keyring.RemoveOptions{})
	}}
}

func removedServer(t *testing.T) cured {
	c, leader := three(t, nil)
	f := keyringtest.Follower(c)
	if err := leader.Keyring.RemoveServer(t.Context(), f.ID, keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	return cured{c: c, on: f, cure: func() {
		c.Wipe(f)
		if err := c.Leader().Keyring.AddServer(t.Context(), f.ID, raft.ServerAddress(f.ID), keyring.AddServerOptions{}); err != nil {
			t.Error(err)
		}
	}}
}

func fullDisk(t *testing.T) cured {
	c, _ := three(t, nil)
	f := keyringtest.Follower(c)
	stop := fullDisks(c, func(s *keyringtest.Server) bool { return s == f })
	keyringtest.RotateWhenReady(t, c)
	return cured{c: c, on: f, cure: stop}
}

func notAFile(t *testing.T) cured {
	c, leader := three(t, nil)
	f, name := keyringtest.Follower(c), nks.FileName(leader.Keyring.Keys()[0].ID)
	c.Stop(f)
	f.Disk.Plant(name, fs.ModeSymlink|0o777, nil)
	c.Start(f)
	return cured{c: c, on: f, cure: func() { f.Disk.Unlink(name) }}
}

// withOtherKEKs is a cluster of which one server is started again with other KEKs, which do not open its files. The cure
// starts it again with the old KEK as an old one.
func withOtherKEKs(t *testing.T, was, is keyring.KEK) cured {
	var f *keyringtest.Server
	var old []keyring.KEK
	c, _ := three(t, func(s *keyringtest.Server, cfg *keyring.Config) {
		if cfg.KEKs = []keyring.KEK{was}; s == f {
			cfg.KEKs, cfg.OldKEKs = []keyring.KEK{is}, old
		}
	})
	f = keyringtest.Follower(c)
	c.Restart(f)
	return cured{c: c, on: f, cure: func() {
		old = []keyring.KEK{was}
		c.Restart(f)
	}}
}

func kekLeftOut(t *testing.T) cured { return withOtherKEKs(t, kektest.New("a"), kektest.New("b")) }

func kekOfTheSameName(t *testing.T) cured {
	return withOtherKEKs(t, kektest.NewVault(t, 1), kektest.NewVault(t, 2))
}

func oldKEK(t *testing.T) cured {
	made := withOtherKEKs(t, kektest.New("a"), kektest.New("b"))
	made.cure() // the file opens, under a KEK that is an old one
	return cured{c: made.c, on: made.on, cure: func() {
		if err := made.on.Keyring.Rewrap(t.Context()); err != nil {
			t.Error(err)
		}
	}}
}

func pendingKey(t *testing.T) cured {
	c, leader := three(t, nil)
	heal := keyringtest.Refuse(c, "fetch")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := leader.Keyring.Rotate(ctx, keyring.RotateOptions{}); !errors.Is(err, keyring.ErrNotDurable) {
		t.Fatal(err)
	}
	return cured{c: c, on: leader, cure: heal}
}

// manyKeys is a cluster whose JWKS has become large.
func manyKeys(cure func(*testing.T, *keyringtest.Cluster)) func(t *testing.T) cured {
	return func(t *testing.T) cured {
		c, leader := three(t, func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Tokens.MaxTTL = time.Hour })
		for range 36 {
			keyringtest.RotateWhenReady(t, c)
		}
		return cured{c: c, on: leader, cure: func() { cure(t, c) }}
	}
}

func removeOldest(t *testing.T, c *keyringtest.Cluster) {
	for _, k := range keyringtest.Ready(t, c).Keyring.Keys()[30:] {
		keyringtest.Remove(t, c, k.ID, keyring.RemoveOptions{})
	}
}

func letTokensEnd(*testing.T, *keyringtest.Cluster) { time.Sleep(time.Hour + time.Minute) }

func clockBehind(t *testing.T) cured {
	c, _ := three(t, nil)
	f := keyringtest.Follower(c)
	f.Clock.Set(-30 * time.Minute)
	keyringtest.RotateWhenReady(t, c)
	return cured{c: c, on: f, cure: func() { f.Clock.Set(0) }}
}

func clocksWereAhead(t *testing.T) cured {
	c, leader := three(t, nil)
	for _, s := range c.Servers {
		s.Clock.Set(time.Hour)
	}
	keyringtest.RotateWhenReady(t, c)
	for _, s := range c.Servers {
		s.Clock.Set(0)
	}
	return cured{c: c, on: leader, cure: func() {}, after: time.Hour}
}

func spoiledRecord(t *testing.T) cured {
	rc := keyringtest.NewRecordsCluster(t, 1, false, nil)
	rc.Store("r", 3)
	rc.Spoil("r/1")
	rc.Rotate(keyring.RotateOptions{Full: true})
	time.Sleep(time.Hour)
	return cured{c: rc.Cluster, on: rc.Leader(), after: time.Hour, cure: func() {
		if err := rc.StoreOne("r/1", "later"); err != nil {
			t.Error(err)
		}
	}}
}

// brokenData is a store that fails.
type brokenData struct{ keyring.NoData }

// Under implements keyring.SealedData.
func (brokenData) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) { yield(keyring.Sealed{}, errors.New("no table")) }
}

func dataLeftOut(t *testing.T) cured {
	data := keyring.SealedData(brokenData{})
	c := keyringtest.NewCluster(t, keyringtest.Options{Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
		cfg.Rotation.Every, cfg.Data = -1, data
	}})
	s := keyringtest.Ready(t, c)
	if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); err != nil {
		t.Fatal(err)
	}
	data = nil
	c.Restart(s)
	return cured{c: c, on: s, after: time.Hour, cure: func() {
		data = keyring.NoData{}
		c.Restart(s)
	}}
}

func fileSetAside(t *testing.T) cured {
	c, _ := three(t, nil)
	f := keyringtest.Follower(c)
	name := nks.FileName(f.Keyring.Keys()[0].ID)
	c.Stop(f)
	f.Disk.Plant(name, 0o600, []byte("hello"))
	c.Start(f)
	return cured{c: c, on: f, cure: func() {
		makeBackup(t, c)
		st := keyringtest.StatusOf(t, f)
		if len(st.Missing) > 0 || len(st.SetAside) != 1 {
			t.Errorf("missing %v, set aside %v", st.Missing, st.SetAside)
		}
		for _, name := range st.SetAside {
			f.Disk.Unlink(name)
		}
	}}
}

func makeBackup(t *testing.T, c *keyringtest.Cluster) {
	t.Helper()
	if _, err := keyringtest.Ready(t, c).Keyring.Backup(t.Context(), io.Discard, kektest.Identity(t).Recipient()); err != nil {
		t.Error(err)
	}
}

func noBackup(t *testing.T) cured {
	c, leader := three(t, nil)
	makeBackup(t, c)
	keyringtest.RotateWhenReady(t, c)
	return cured{c: c, on: leader, cure: func() { makeBackup(t, c) }}
}

func storeThatFails(t *testing.T) cured {
	s := newScheduled(t, 3, 0, nil)
	s.store.onCall(func(context.Context, string) error { return errors.New("quota exceeded") })
	leader := keyringtest.Ready(t, s.Cluster)
	time.Sleep(10 * time.Minute)
	return cured{c: s.Cluster, on: leader, after: time.Hour, cure: func() { s.store.onCall(nil) }}
}

func orphanFile(adopt bool) func(t *testing.T) cured {
	return func(t *testing.T) cured {
		c, _ := three(t, nil)
		f, id := keyringtest.Follower(c), keyring.KeyID{7}
		c.Stop(f)
		keyringtest.PlantKey(t, f.Disk, id, keyring.InlineKEK())
		c.Start(f)
		return cured{c: c, on: f, cure: func() {
			if !adopt {
				f.Disk.Unlink(nks.FileName(id))
			} else if err := keyringtest.Ready(t, c).Keyring.Adopt(t.Context(), id); err != nil {
				t.Error(err)
			}
		}}
	}
}

func nomadFiles(t *testing.T) cured {
	a := adoptNomad(t)
	s2 := a.Server("s2")
	return cured{c: a.Cluster, on: s2, cure: func() {
		for name := range a.files {
			s2.Disk.Unlink(name)
		}
	}}
}

// serverWithAKEKFile has its KEK in a file.
func serverWithAKEKFile(t *testing.T) (c *keyringtest.Cluster, path string) {
	path = kektest.WriteFile(t, kektest.CountingKey())
	own, err := kek.File(path)
	if err != nil {
		t.Fatal(err)
	}
	return keyringtest.NewCluster(t, keyringtest.Options{Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
		cfg.KEKs = []keyring.KEK{own}
	}}), path
}

// kekFileGone while the server runs: it goes on, and would not start again.
func kekFileGone(t *testing.T) cured {
	c, path := serverWithAKEKFile(t)
	on := keyringtest.Ready(t, c)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	return cured{c: c, on: on, cure: func() {
		if err := os.Rename(path+".away", path); err != nil {
			t.Error(err)
		}
	}}
}

func openKEKFile(t *testing.T) cured {
	c, path := serverWithAKEKFile(t)
	mode := func(m os.FileMode) {
		if err := os.Chmod(path, m); err != nil {
			t.Error(err)
		}
	}
	mode(0o644)
	return cured{c: c, on: keyringtest.Ready(t, c), cure: func() { mode(0o600) }}
}

func inlineKEK(t *testing.T) cured {
	keks, old := []keyring.KEK{keyring.InlineKEK()}, []keyring.KEK(nil)
	c := keyringtest.NewCluster(t, keyringtest.Options{Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
		cfg.KEKs, cfg.OldKEKs = keks, old
	}})
	s := keyringtest.Ready(t, c)
	return cured{c: c, on: s, cure: func() {
		keks, old = []keyring.KEK{kektest.New("a")}, keks
		c.Restart(s)
		keyringtest.Ready(t, c)
		if err := s.Keyring.Rewrap(t.Context()); err != nil {
			t.Error(err)
		}
		old = nil
		c.Restart(s)
		keyringtest.Ready(t, c)
	}}
}
