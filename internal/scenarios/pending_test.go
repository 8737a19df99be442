package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/simulated"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// TestRotateThatCantSucceedLeavesNoFile on any server.
func TestRotateThatCantSucceedLeavesNoFile(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ctx func(context.Context) context.Context
		o   keyring.RotateOptions
	}{
		"a context that has ended": {ctx: func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx
		}},
		"the year 10000":              {o: keyring.RotateOptions{Publish: time.Date(10000, 1, 2, 0, 0, 0, 0, time.UTC)}},
		"more than an entry can have": {o: keyring.RotateOptions{Revoke: make([]keyring.KeyID, 200_000)}},
		"a key that is not there":     {o: keyring.RotateOptions{Revoke: []keyring.KeyID{{1}}}},
		"no data":                     {o: keyring.RotateOptions{Full: true}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
				leader := keyringtest.Ready(t, c)
				keyringtest.AwaitKeys(t, c)
				o, ctx := tt.o, t.Context()
				if tt.ctx != nil {
					ctx = tt.ctx(ctx)
				}
				if len(o.Revoke) > 1 {
					o.Revoke = slices.Repeat([]keyring.KeyID{leader.Keyring.Keys()[0].ID}, len(o.Revoke))
				}
				if _, err := leader.Keyring.Rotate(ctx, o); err == nil || errors.Is(err, keyring.ErrNotDurable) {
					t.Errorf("rotate: %v", err)
				}
				time.Sleep(time.Minute) // virtual
				for _, s := range c.Servers {
					if names := s.Disk.Names(); len(names) != 2 || len(s.Keyring.Keys()) != 1 {
						t.Errorf("%s has %v, and %d keys", s.ID, names, len(s.Keyring.Keys()))
					}
				}
			})
		})
	}
}

// TestRotateAgainWaitsForTheKeyThatIsPending: who tries again after a timeout gets one key, not one
// for each time.
func TestRotateAgainWaitsForTheKeyThatIsPending(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.Data = -1, keyring.NoData{}
		}})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		first := leader.Keyring.Keys()[0].ID
		stop := fullDisks(c, func(s *keyringtest.Server) bool { return s != leader })
		rotate := func(o keyring.RotateOptions) keyring.KeyID {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			key, err := leader.Keyring.Rotate(ctx, o)
			if !errors.Is(err, keyring.ErrNotDurable) || key.ID == (keyring.KeyID{}) {
				t.Errorf("%+v: %s, %v", o, key.ID, err)
			}
			return key.ID
		}
		later := time.Now().Add(time.Hour)
		kinds := []keyring.RotateOptions{
			{}, {Full: true}, {Publish: later}, {Publish: later.Add(time.Hour)}, {Revoke: []keyring.KeyID{first}},
		}
		seen := map[keyring.KeyID]bool{}
		for _, o := range kinds {
			id := rotate(o)
			if seen[id] {
				t.Errorf("%+v: the key of other options", o)
			}
			seen[id] = true
			for range 3 {
				if again := rotate(o); again != id {
					t.Errorf("%+v: another key", o)
				}
			}
			if o.Full { // it would drop the others
				if err := leader.Keyring.Remove(t.Context(), id, keyring.RemoveOptions{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if again := rotate(keyring.RotateOptions{Revoke: []keyring.KeyID{first, first}}); !seen[again] {
			t.Error("another key for the same one to revoke")
		}
		stop()
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil || !seen[key.ID] || key.State == keyring.StatePrepublished {
			t.Errorf("when there is room again: %s is %s, %v", key.ID, key.State, err)
		}
		next, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil || seen[next.ID] {
			t.Errorf("the next one: %s, %v", next.ID, err)
		}
	})
}

// TestRotateMakesAnotherKeyThanOneThatMayBeKnownOrLost: a server that was removed may have the pending one,
// and nobody may get it from a leader that does not hold it.
func TestRotateMakesAnotherKeyThanOneThatMayBeKnownOrLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 4, Configure: keyringtest.NoRotation})
		leader, pending := keyOfTheDead(t, c, keyring.RotateOptions{})
		time.Sleep(time.Minute) // virtual
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil || key.ID == pending {
			t.Errorf("a leader without the key that is pending: %v", err)
		}
		stop := fullDisks(c, func(s *keyringtest.Server) bool { return s != leader })
		rotate := func() keyring.KeyID {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			key, err := leader.Keyring.Rotate(ctx, keyring.RotateOptions{})
			if !errors.Is(err, keyring.ErrNotDurable) {
				t.Error(err)
			}
			return key.ID
		}
		before := rotate()
		if rotate() != before {
			t.Error("another key, and nothing has changed")
		}
		for _, s := range c.Servers {
			if !slices.Contains(c.Live(), s) {
				c.Remove(s)
			}
		}
		if after := rotate(); after == before {
			t.Error("a server was removed, and the key that it may have is to be the next one")
		}
		stop()
	})
}

// TestRotationsSideBySideMayShareAKey and all return one that is active.
func TestRotationsSideBySideMayShareAKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil || key.Activated.IsZero() {
					t.Errorf("%s is %s, %v", key.ID, key.State, err)
				}
			})
		}
		wg.Wait()
		for _, k := range leader.Keyring.Keys() {
			if k.State == keyring.StatePrepublished {
				t.Errorf("key %s is still prepublished", k.ID)
			}
		}
	})
}

// TestCallsEndWhenARestoreDropsWhatTheyWaitFor.
func TestCallsEndWhenARestoreDropsWhatTheyWaitFor(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		call func(ctx context.Context, k *keyring.Keyring, first keyring.KeyID) error
		err  error
	}{
		"Rotate": {func(ctx context.Context, k *keyring.Keyring, _ keyring.KeyID) error {
			_, err := k.Rotate(ctx, keyring.RotateOptions{})
			return err
		}, keyring.ErrUnknownKey},
		"Remove": {func(ctx context.Context, k *keyring.Keyring, first keyring.KeyID) error {
			return k.Remove(ctx, first, keyring.RemoveOptions{})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := keyringtest.HangingData{Hang: keyringtest.NewHang()}
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
					cfg.Rotation.Every, cfg.Data = -1, data
				}})
				leader := keyringtest.Ready(t, c)
				first := leader.Keyring.Keys()[0].ID
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				keyringtest.AwaitKeys(t, c)
				m, snapshot := raftSnapshotOf(t, leader)
				stop := fullDisks(c, func(s *keyringtest.Server) bool { return s != leader })
				defer data.End()
				data.On.Store(true)
				ended := make(chan error, 1)
				go func() { ended <- tt.call(t.Context(), leader.Keyring, first) }()
				time.Sleep(time.Second) // virtual
				if err := leader.Raft.Restore(m, snapshot, time.Minute); err != nil {
					t.Fatal(err)
				}
				select {
				case err := <-ended:
					if err == nil || tt.err != nil && !errors.Is(err, tt.err) {
						t.Errorf("it returned %v", err)
					}
				case <-time.After(time.Hour): // virtual
					t.Error("it waits for what is no more")
				}
				stop()
			})
		})
	}
}

func raftSnapshotOf(t *testing.T, s *keyringtest.Server) (*raft.SnapshotMeta, io.Reader) {
	t.Helper()
	f := s.Raft.Snapshot()
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	m, r, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	return m, r
}

// TestFollowerWaitsForARemovalThatItHasYetToHearOf, and for no more than a while for one that never comes.
func TestFollowerWaitsForARemovalThatItHasYetToHearOf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		f, unheard := keyringtest.Follower(c), keyringtest.NewKeyID()
		began := time.Now()
		if err := f.Keyring.WaitRemoved(t.Context(), unheard); err == nil || time.Since(began) < time.Second || time.Since(began) > time.Hour {
			t.Errorf("of a key that nobody knows: %v after %v", err, time.Since(began))
		}
		key := meta.NewKey{ID: meta.KeyID(unheard), Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1}, Created: time.Now().UTC().Round(0)}
		ended := make(chan error, 1)
		go func() { ended <- f.Keyring.WaitRemoved(t.Context(), unheard) }()
		time.Sleep(time.Second) // virtual
		err := keyringtest.Propose(leader.Raft, meta.Command{Add: &meta.Add{Key: key}})
		if err == nil {
			err = leader.Keyring.Remove(t.Context(), unheard, keyring.RemoveOptions{})
		}
		if err := errors.Join(err, <-ended); err != nil || !keyringtest.Ring(f.FSM).WasRemoved(meta.KeyID(unheard)) {
			t.Errorf("of one that is removed: %v", err)
		}
	})
}

// keyOfTheDead has a leader make a key that no other server gets, and die. It returns the next leader.
func keyOfTheDead(t *testing.T, c *keyringtest.Cluster, o keyring.RotateOptions) (next *keyringtest.Server, key keyring.KeyID) {
	t.Helper()
	leader := keyringtest.Ready(t, c)
	keyringtest.AwaitKeys(t, c)
	stop := keyringtest.Refuse(c, "fetch")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	k, err := leader.Keyring.Rotate(ctx, o)
	if !errors.Is(err, keyring.ErrNotDurable) {
		t.Fatalf("a key that nobody else gets: %v", err)
	}
	c.Stop(leader)
	stop()
	return keyringtest.Ready(t, c), k.ID
}

// TestBackupLeavesOutAKeyThatSealedNothingAndIsNotHere: such a backup verifies and restores, and Status
// does not take the key for one that is in it.
func TestBackupLeavesOutAKeyThatSealedNothingAndIsNotHere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		identity := kektest.Identity(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
		dead := keyringtest.Ready(t, c)
		sealed, err := dead.Keyring.Encrypt([]byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		leader, key := keyOfTheDead(t, c, keyring.RotateOptions{Publish: time.Now().Add(24 * time.Hour)})
		var file bytes.Buffer
		m, err := leader.Keyring.Backup(t.Context(), &file, identity.Recipient())
		if err != nil || len(m.Keys) != 1 || m.Keys[0].ID == key {
			t.Fatalf("%v, keys %v; the key that is nowhere is %s", err, m.Keys, key)
		}
		if st, _ := leader.Keyring.Status(t.Context()); len(st.NoBackup) > 0 || st.LastBackup.SHA256 != m.SHA256 {
			t.Errorf("Status has %v in no backup, and the last of %v", st.NoBackup, st.LastBackup)
		}
		if p := keyringtest.Problems(t, leader, keyring.ProblemKeyMissing); len(p) > 0 {
			t.Errorf("a key that has sealed nothing is missed: %v", p)
		}
		if got, err := keyring.VerifyBackup(bytes.NewReader(file.Bytes()), identity); err != nil || len(got.Missing) > 0 {
			t.Errorf("verify: %v, missing %v", err, got.Missing)
		}

		disk, snapshot := keyringtest.NewDisk(), bytes.Buffer{}
		fsys, err := disk.Open()
		if err != nil {
			t.Fatal(err)
		}
		o := keyring.RestoreOptions{
			Dir: "simulated", KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Snapshot: &snapshot, Digest: m.SHA256,
		}
		if _, err := keyring.Restore(simulated.WithDisk(t.Context(), fsys), bytes.NewReader(file.Bytes()), o); err != nil {
			t.Fatalf("restore: %v", err)
		}
		again := keyringtest.NewCluster(t, keyringtest.Options{Configure: keyringtest.NoRotation, Disk: func(raft.ServerID) *keyringtest.Disk { return disk }})
		one := keyringtest.Ready(t, again)
		if err := one.Raft.Restore(&m.Raft, &snapshot, time.Minute); err != nil {
			t.Fatal(err)
		}
		if got, err := one.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
			t.Errorf("after the restore: %q, %v", got, err)
		}
		time.Sleep(time.Hour) // virtual
		if !keyringtest.Ring(one.FSM).WasRemoved(meta.KeyID(key)) {
			t.Error("the key that nobody has is still in the keyring")
		}
	})
}

// TestBackupCountsAKeyThatItLeftOutOnceItIsActive: it is not in the file.
func TestBackupCountsAKeyThatItLeftOutOnceItIsActive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		identity := kektest.Identity(t)
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
		leader, key := keyOfTheDead(t, c, keyring.RotateOptions{})
		backup := func() keyring.Manifest {
			t.Helper()
			m, err := c.Leader().Keyring.Backup(t.Context(), new(bytes.Buffer), identity.Recipient())
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		backup()
		for _, s := range c.Servers {
			if s != leader && len(c.Live()) < 3 && !slices.Contains(c.Live(), s) {
				c.Restart(s) // with the key
			}
		}
		time.Sleep(time.Hour) // virtual
		keyringtest.AwaitKeys(t, c)
		leader = keyringtest.Ready(t, c)
		st, err := leader.Keyring.Status(t.Context())
		if err != nil || st.Active != key || !slices.Contains(st.NoBackup, key) {
			t.Fatalf("active %s, in no backup %v, want %s in both; %v", st.Active, st.NoBackup, key, err)
		}
		m := backup()
		if st, _ := leader.Keyring.Status(t.Context()); len(st.NoBackup) > 0 || st.LastBackup.Index != m.Raft.Index {
			t.Errorf("after another backup, of %d: %v, %v", m.Raft.Index, st.NoBackup, st.LastBackup)
		}
	})
}

// TestBackupStillNeedsKeysThatHaveSealed: whatever state they are in.
func TestBackupStillNeedsKeysThatHaveSealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: keyringtest.NoRotation})
		s := keyringtest.Ready(t, c)
		first := s.Keyring.Keys()[0].ID
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Stop(s)
		s.Disk.Unlink(nks.FileName(first))
		c.Restart(s)
		for _, err := s.Keyring.Encrypt(nil, nil); err != nil; _, err = s.Keyring.Encrypt(nil, nil) {
			time.Sleep(time.Second) // virtual
		}
		var out bytes.Buffer
		_, err := s.Keyring.Backup(t.Context(), &out, kektest.Identity(t).Recipient())
		if !errors.Is(err, keyring.ErrKeyMissing) || !strings.Contains(err.Error(), first.String()) || out.Len() > 0 {
			t.Errorf("without an inactive key: %v, and %d bytes", err, out.Len())
		}
	})
}
