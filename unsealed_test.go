package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// keyOfTheDead has a leader make a key that no other server gets, and die. It returns the next leader.
func keyOfTheDead(t *testing.T, c *keyringtest.Cluster, o keyring.RotateOptions) (next *keyringtest.Server, key keyring.KeyID) {
	t.Helper()
	leader := ready(t, c)
	whole(t, c)
	stop := refuse(c, "fetch")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	k, err := leader.Keyring.Rotate(ctx, o)
	if !errors.Is(err, keyring.ErrNotDurable) {
		t.Fatalf("a key that nobody else gets: %v", err)
	}
	c.Stop(leader)
	stop()
	return ready(t, c), k.ID
}

func noRotation(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Rotation.Every = -1 }

// TestBackupLeavesOutAKeyThatSealedNothingAndIsNotHere: such a backup verifies and restores, and Status
// does not take the key for one that is in it.
func TestBackupLeavesOutAKeyThatSealedNothingAndIsNotHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		identity := ageIdentity(t)
		c := newCluster(t, keyringtest.Options{Servers: 3, Configure: noRotation})
		dead := ready(t, c)
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
		if st, _ := leader.Keyring.Status(t.Context()); !slices.Equal(st.NoBackup, []keyring.KeyID{key}) || st.LastBackup.SHA256 != m.SHA256 {
			t.Errorf("Status has %v in no backup, and the last of %v", st.NoBackup, st.LastBackup)
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
		keyring.SetRestoreFS(&o, fsys)
		if _, err := keyring.Restore(t.Context(), bytes.NewReader(file.Bytes()), o); err != nil {
			t.Fatalf("restore: %v", err)
		}
		anew := newCluster(t, keyringtest.Options{Configure: noRotation, Disk: func(raft.ServerID) *keyringtest.Disk { return disk }})
		one := ready(t, anew)
		if err := one.Raft.Restore(&m.Raft, &snapshot, time.Minute); err != nil {
			t.Fatal(err)
		}
		if got, err := one.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
			t.Errorf("after the restore: %q, %v", got, err)
		}
		time.Sleep(time.Hour) // virtual
		if !keyring.Ring(one.FSM).WasRemoved(key) {
			t.Error("the key that nobody has is still in the keyring")
		}
	})
}

// TestBackupCountsAKeyThatItLeftOutOnceItIsActive: it is not in the file.
func TestBackupCountsAKeyThatItLeftOutOnceItIsActive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		identity := ageIdentity(t)
		c := newCluster(t, keyringtest.Options{Servers: 3, Configure: noRotation})
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
		whole(t, c)
		leader = ready(t, c)
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
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, keyringtest.Options{Servers: 1, Configure: noRotation})
		s := ready(t, c)
		first := s.Keyring.Keys()[0].ID
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := keyring.Lose(s.Keyring, first); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		_, err := s.Keyring.Backup(t.Context(), &out, ageIdentity(t).Recipient())
		if !errors.Is(err, keyring.ErrKeyMissing) || !strings.Contains(err.Error(), first.String()) || out.Len() > 0 {
			t.Errorf("without an inactive key: %v, and %d bytes", err, out.Len())
		}
	})
}
