package scenarios_test

import (
	"bytes"
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
	"github.com/hashicorp/raft"
)

// lostCluster has had several keys, of which nothing is left but a raft snapshot and one
// server's keystore directory.
func lostCluster(t *testing.T) (v *keyringtest.Vault, restore func(*keyringtest.Server), keystore *keyringtest.Disk) {
	t.Helper()
	c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
	keyringtest.Ready(t, c)
	v = &keyringtest.Vault{TB: t}
	keyringtest.Rotate(t, c, v, 4)
	keyringtest.AwaitKeys(t, c)
	restore = keyringtest.TakeSnapshot(t, c.Leader())
	keystore = keyringtest.Follower(c).Disk.Crash(keyringtest.Kept, 0)
	c.Close()
	return v, restore, keystore
}

// TestSnapshotAndOneKeystoreRestoreACluster of three fresh servers, one of which gets the
// directory.
func TestSnapshotAndOneKeystoreRestoreACluster(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, restore, keystore := lostCluster(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Disk: func(id raft.ServerID) *keyringtest.Disk {
			if id == "s2" {
				return keystore
			}
			return keyringtest.NewDisk()
		}})
		restore(keyringtest.Ready(t, c))
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
		keyringtest.CheckOneActive(t, c)
		keyringtest.Rotate(t, c, v, 1)
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
	})
}

// TestSnapshotAloneSaysWhatIsMissing makes no key in its place, spins on nothing, and heals
// without a restart when the files turn up.
func TestSnapshotAloneSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, restore, keystore := lostCluster(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: time.Hour, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every = 10 * time.Hour
		}})
		restore(keyringtest.Ready(t, c))
		time.Sleep(10 * time.Hour)
		known := len(c.Leader().Keyring.Keys())
		for _, s := range c.Servers {
			st, err := s.Keyring.Status(t.Context())
			if err != nil || len(st.Missing) != 5 || st.Ready {
				t.Errorf("%s: missing %v, ready %v, %v", s.ID, st.Missing, st.Ready, err)
			}
			if text := strings.Join(problemLines(st), "\n"); !strings.Contains(text, st.Missing[0].String()) {
				t.Errorf("%s: no problem names the key: %s", s.ID, text)
			}
		}
		var events atomic.Int64
		c.OnEvent(func(keyringtest.Event) keyringtest.Reply { events.Add(1); return keyringtest.Reply{} })
		const hours = 48 // several rotations would be due
		time.Sleep(hours * time.Hour)
		if n := events.Load() / hours; n < 3*60 || n > 3*60*20 { // a try a minute, of a handful of steps
			t.Errorf("%d events an hour", n)
		}
		if n := len(c.Leader().Keyring.Keys()); n != known {
			t.Errorf("%d keys have become %d", known, n)
		}
		c.OnEvent(nil)

		for _, name := range keystore.Names() {
			if _, ok := nks.ParseFileName(name); ok {
				c.Servers[1].Disk.Plant(name, 0o600, keystore.Bytes(name))
			}
		}
		time.Sleep(10 * time.Hour)
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
		for _, s := range c.Servers {
			if st, err := s.Keyring.Status(t.Context()); err != nil || !st.Ready {
				t.Errorf("%s is not ready: %v, %v", s.ID, st.Problems, err)
			}
		}
	})
}

func problemLines(st keyring.Status) (lines []string) {
	for _, p := range st.Problems {
		lines = append(lines, p.String())
	}
	return lines
}

// TestBackupWithoutEveryKeyIsRefused: there is a snapshot, and no material of one of its keys.
func TestBackupWithoutEveryKeyIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v, restore, _ := lostCluster(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1})
		restore(keyringtest.Ready(t, c))
		var out bytes.Buffer
		_, err := c.Leader().Keyring.Backup(t.Context(), &out, kektest.Identity(t).Recipient())
		if !errors.Is(err, keyring.ErrKeyMissing) || out.Len() > 0 {
			t.Errorf("%v, and %d bytes", err, out.Len())
		}
		for _, c := range v.Sealed {
			if id, _ := keyring.CiphertextKeyID(c); !strings.Contains(fmt.Sprint(err), id.String()) {
				t.Errorf("%v: it does not name %s", err, id)
			}
		}
	})
}
