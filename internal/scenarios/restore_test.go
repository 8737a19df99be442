package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	"example.com/keyring/internal/simulated"
	"filippo.io/age"
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

// restoredHosts are three fresh servers whose raft was restored to a snapshot of another cluster's. The
// first of them leads, and is the only one whose keyring is open; disk is its keystore, if not nil.
func restoredHosts(t *testing.T, withKeystore bool) []*keyringtest.Host {
	t.Helper()
	hosts, leader := keyringtest.OpenHosts(t, 3)
	time.Sleep(time.Minute)
	snap, index, disk := keyringtest.SnapshotOf(t, leader.FSM), leader.Raft.AppliedIndex(), leader.Disk
	for _, h := range hosts {
		h.Stop(t)
	}
	fresh := keyringtest.NewHosts(t, 3)
	if withKeystore {
		fresh[0].Disk = disk.Crash(keyringtest.Dropped, 0)
	}
	for _, h := range fresh {
		h.FSM = keyring.NewFSM()
		h.Run(t, h.FSM)
	}
	for now := keyringtest.LeaderOf(t, fresh); now != fresh[0]; now = keyringtest.LeaderOf(t, fresh) {
		if err := now.Raft.LeadershipTransferToServer(fresh[0].ID, raft.ServerAddress(fresh[0].ID)).Error(); err != nil {
			t.Fatal(err)
		}
	}
	meta := &raft.SnapshotMeta{Version: 1, Index: index, Size: int64(len(snap))}
	if err := fresh[0].Raft.Restore(meta, bytes.NewReader(snap), time.Hour); err != nil {
		t.Fatal(err)
	}
	fresh[0].OpenKeyring(t)
	return fresh
}

// TestI3NothingIsSealedAfterARestoreBeforeAMajorityHoldsTheKey: a snapshot says nothing of the keystores of
// the servers that it is restored to.
func TestI3NothingIsSealedAfterARestoreBeforeAMajorityHoldsTheKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := restoredHosts(t, true)
		k := hosts[0].Keyring
		time.Sleep(time.Minute)
		const why = "1 of 3 voters held it"
		if _, err := k.Encrypt([]byte("secret"), nil); !errors.Is(err, keyring.ErrNotReady) || !strings.Contains(err.Error(), why) {
			t.Errorf("Encrypt: %v", err)
		}
		if _, err := k.Sign(map[string]any{"aud": "a"}); !errors.Is(err, keyring.ErrNotReady) {
			t.Errorf("Sign: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := k.WaitReady(ctx); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("WaitReady: %v", err)
		}
		if got := kindsOf(t, k)[keyring.ProblemUnconfirmed]; !strings.Contains(got, why) {
			t.Errorf("problem %q", got)
		}
		active := k.Keys()[0].ID
		hosts[1].OpenKeyring(t) // fetches it
		if err := k.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		sealed, err := k.Encrypt([]byte("secret"), nil)
		if id, _ := keyring.CiphertextKeyID(sealed); err != nil || id != active {
			t.Errorf("sealed under %s: %v", id, err)
		}
		if _, err := hosts[1].Keyring.Decrypt(sealed, nil); err != nil {
			t.Errorf("the second holder: %v", err)
		}
		if got, ok := kindsOf(t, k)[keyring.ProblemUnconfirmed]; ok {
			t.Errorf("problem %q", got)
		}
	})
}

// TestRotateIsTheWayOutWhenNoMajorityCanHoldTheRestoredKey: nobody has it any more.
func TestRotateIsTheWayOutWhenNoMajorityCanHoldTheRestoredKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := restoredHosts(t, false)
		for _, h := range hosts[1:] {
			h.OpenKeyring(t)
		}
		time.Sleep(time.Minute)
		k := leaderWithout(hosts).Keyring
		if _, err := k.Encrypt(nil, nil); err == nil {
			t.Fatal("sealed under a key that nobody holds")
		}
		key, err := k.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := k.Encrypt(nil, nil)
		if id, _ := keyring.CiphertextKeyID(sealed); err != nil || id != key.ID {
			t.Errorf("sealed under %s, want %s: %v", id, key.ID, err)
		}
		if got, ok := kindsOf(t, k)[keyring.ProblemUnconfirmed]; ok {
			t.Errorf("problem %q", got)
		}
	})
}

// leaderWithout is the leader, which need not be ready.
func leaderWithout(hosts []*keyringtest.Host) *keyringtest.Host {
	for {
		for _, h := range hosts {
			if h.Raft.State() == raft.Leader && h.Raft.VerifyLeader().Error() == nil {
				return h
			}
		}
		time.Sleep(time.Second) // virtual
	}
}

// kindsOf is the detail of a problem of each kind that there is.
func kindsOf(t *testing.T, k *keyring.Keyring) map[keyring.ProblemKind]string {
	t.Helper()
	st, err := k.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[keyring.ProblemKind]string{}
	for _, p := range st.Problems {
		kinds[p.Kind] = p.Detail
	}
	return kinds
}

// TestBackupUnderLoadIsConsistent: records are stored, keys rotate and are removed for good while
// backups are made. Each of them opens all that its snapshot holds.
func TestBackupUnderLoadIsConsistent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, nil)
		leader := keyringtest.Ready(t, rc.Cluster)
		identity := kektest.Identity(t)
		ctx, stop := context.WithCancel(t.Context())
		var load sync.WaitGroup
		load.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				ref := fmt.Sprint("record/", n%200)
				err := leader.Keyring.EncryptTo(ctx, []byte(ref), []byte(ref), func(_ context.Context, c []byte) error {
					errs, err := keyringtest.PutRecords(leader.Raft, keyringtest.RecordPut{Ref: ref, New: c})
					return errors.Join(append(errs, err)...)
				})
				if err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond) // virtual
			}
		})
		removed := 0
		load.Go(func() {
			for ctx.Err() == nil {
				old := keyringtest.Ring(leader.FSM).Active().ID
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Error(err)
				}
				if err := leader.Keyring.Remove(t.Context(), keyring.KeyID(old), keyring.RemoveOptions{Now: true}); err != nil {
					t.Error(err)
				}
				removed++
				time.Sleep(7 * time.Millisecond) // virtual
			}
		})
		var files [][]byte
		for range 12 {
			time.Sleep(50 * time.Millisecond) // virtual
			var out bytes.Buffer
			if _, err := leader.Keyring.Backup(t.Context(), &out, identity.Recipient()); err != nil {
				t.Fatal(err)
			}
			files = append(files, out.Bytes())
		}
		stop()
		load.Wait()
		if removed < 12 {
			t.Errorf("only %d keys were removed", removed)
		}
		rc.Close()
		for _, file := range files {
			opensAll(t, file, identity)
		}
	})
}

// opensAll restores a backup to a fresh server and opens all records.
func opensAll(t *testing.T, file []byte, identity age.Identity) {
	t.Helper()
	disk := keyringtest.NewDisk()
	fsys, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	var snapshot bytes.Buffer
	o := keyring.RestoreOptions{
		Dir: "simulated", KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Unauthenticated: true, Snapshot: &snapshot,
	}
	m, err := keyring.Restore(simulated.WithDisk(t.Context(), fsys), bytes.NewReader(file), o)
	if err != nil {
		t.Fatal(err)
	}
	c := keyringtest.NewCluster(t, keyringtest.Options{
		Disk: func(raft.ServerID) *keyringtest.Disk { return disk },
		App: func(s *keyringtest.Server) raft.FSM {
			return &keyringtest.Records{Keys: s.FSM, All: map[string][]byte{}}
		},
	})
	leader := keyringtest.Ready(t, c)
	if err := leader.Raft.Restore(&m.Raft, &snapshot, time.Minute); err != nil {
		t.Fatal(err)
	}
	all := leader.App.(*keyringtest.Records).Copy()
	if len(all) == 0 {
		t.Error("there are no records")
	}
	for ref, c := range all {
		if got, err := leader.Keyring.Decrypt(c, []byte(ref)); err != nil || string(got) != ref {
			t.Errorf("backup of index %d: %s: %q, %v", m.Raft.Index, ref, got, err)
		}
	}
	c.Close()
}
