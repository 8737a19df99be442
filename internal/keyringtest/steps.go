package keyringtest

// What tests do to a cluster.

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// RotateWhenReady makes a key, and returns it when it is active.
func RotateWhenReady(t testing.TB, c *Cluster) keyring.Key {
	t.Helper()
	key, err := Ready(t, c).Keyring.Rotate(t.Context(), keyring.RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// MakeLeader makes a server the leader.
func MakeLeader(t testing.TB, c *Cluster, s *Server) {
	t.Helper()
	for leader := c.Leader(); leader != s; leader = c.Leader() {
		if err := leader.Raft.LeadershipTransferToServer(s.ID, raft.ServerAddress(s.ID)).Error(); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Wait()
}

// PlantKey puts the file of a new key on a disk, wrapped under KEKs.
func PlantKey(t testing.TB, d *Disk, id keyring.KeyID, keks ...keyring.KEK) {
	t.Helper()
	keystoretest.Plant(t, d, meta.KeyID(id), keks...)
}

// NewKeyFile makes a key and its file.
func NewKeyFile(t testing.TB, id keyring.KeyID, keks ...keyring.KEK) ([]byte, *nks.Material) {
	t.Helper()
	return keystoretest.KeyFile(t, meta.KeyID(id), keks...)
}

// Refuse makes all requests of these kinds fail until it is told to stop.
func Refuse(c *Cluster, kinds ...string) (stop func()) {
	var off atomic.Bool
	c.OnEvent(func(e Event) Reply {
		for _, kind := range kinds {
			if e.Kind == "call" && strings.Contains(e.What, `"`+kind+`":{`) && !off.Load() {
				return Reply{Err: errors.New("connection refused")}
			}
		}
		return Reply{}
	})
	return func() { off.Store(true) }
}

// Remove removes a key.
func Remove(t testing.TB, c *Cluster, id keyring.KeyID, o keyring.RemoveOptions) {
	t.Helper()
	if err := c.Leader().Keyring.Remove(t.Context(), id, o); err != nil {
		t.Fatal(err)
	}
}

// Replace puts a fresh server in the place of one that has died with its disks.
func Replace(c *Cluster, s *Server) {
	c.Stop(s)
	c.Remove(s)
	c.Add(s.ID + "-new")
}

// MustPropose proposes commands, which no server may refuse.
func MustPropose(t testing.TB, c *Cluster, cmds ...meta.Command) {
	t.Helper()
	if err := Propose(c.Leader().Raft, cmds...); err != nil {
		t.Fatal(err)
	}
	AwaitRing(t, c)
}

// Deprecate takes a rekeying key's data for moved.
func Deprecate(t testing.TB, c *Cluster, id keyring.KeyID) {
	t.Helper()
	MustPropose(t, c, meta.Command{Clean: &meta.Clean{ID: meta.KeyID(id)}})
	MustPropose(t, c, meta.Command{Deprecate: &meta.Deprecate{ID: meta.KeyID(id), Clean: Ring(c.Leader().FSM).Key(meta.KeyID(id)).Clean}})
}

// NoRotation is an Options.Configure for tests in which no key becomes old.
func NoRotation(_ *Server, cfg *keyring.Config) { cfg.Rotation.Every = -1 }

// Propose proposes commands to a leader, past what the keyring checks before it does so. An FSM's refusal is an error.
func Propose(r *raft.Raft, cmds ...meta.Command) error {
	b, err := meta.Entry{Commands: cmds}.Encode()
	if err != nil {
		return err
	}
	f := r.ApplyLog(raft.Log{Data: b, Extensions: []byte(Extensions)}, time.Minute)
	if err := f.Error(); err != nil {
		return err
	}
	err, _ = f.Response().(error)
	return err
}

// NewKeyID draws one.
func NewKeyID() (id keyring.KeyID) {
	rand.Read(id[:]) // never fails
	return id
}

// WithOldKey starts three servers and returns a key that is no longer active, and what was
// sealed under it.
func WithOldKey(t testing.TB) (c *Cluster, old keyring.KeyID, v *Vault) {
	t.Helper()
	// Rotation is off: weeks pass.
	c = NewCluster(t, Options{Servers: 3, Pace: time.Hour, Configure: func(_ *Server, cfg *keyring.Config) {
		cfg.Rotation.Every = -1
	}})
	leader := Ready(t, c)
	v = &Vault{TB: t}
	if err := v.Seal(leader); err != nil {
		t.Fatal(err)
	}
	old, err := keyring.CiphertextKeyID(v.Sealed[0])
	if err != nil {
		t.Fatal(err)
	}
	Rotate(t, c, v, 1)
	AwaitKeys(t, c)
	return c, old, v
}

// WithRemovedKey is WithOldKey after the old key was removed by force, 10 hours ago. restore brings back, on a leader,
// the snapshot from before the removal.
func WithRemovedKey(t testing.TB) (c *Cluster, old keyring.KeyID, v *Vault, restore func(*Server)) {
	t.Helper()
	c, old, v = WithOldKey(t)
	restore = TakeSnapshot(t, c.Leader())
	Remove(t, c, old, keyring.RemoveOptions{Force: true})
	time.Sleep(10 * time.Hour) // virtual
	return c, old, v, restore
}

// TakeSnapshot takes a snapshot of raft, to be restored later.
func TakeSnapshot(t testing.TB, s *Server) (restore func(*Server)) {
	t.Helper()
	return TakeAlteredSnapshot(t, s, func(b []byte) []byte { return b })
}

// TakeAlteredSnapshot takes a snapshot of raft, to be restored with other bytes.
func TakeAlteredSnapshot(t testing.TB, s *Server, alter func([]byte) []byte) (restore func(*Server)) {
	t.Helper()
	snap := s.Raft.Snapshot()
	if err := snap.Error(); err != nil {
		t.Fatal(err)
	}
	meta, rc, err := snap.Open()
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	all = alter(all)
	return func(s *Server) {
		t.Helper()
		if err := s.Raft.Restore(meta, bytes.NewReader(all), 10*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
}
