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
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/simulated"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

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
		anew := keyringtest.NewCluster(t, keyringtest.Options{Configure: keyringtest.NoRotation, Disk: func(raft.ServerID) *keyringtest.Disk { return disk }})
		one := keyringtest.Ready(t, anew)
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
		if err := keyring.Lose(s.Keyring, first); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		_, err := s.Keyring.Backup(t.Context(), &out, kektest.Identity(t).Recipient())
		if !errors.Is(err, keyring.ErrKeyMissing) || !strings.Contains(err.Error(), first.String()) || out.Len() > 0 {
			t.Errorf("without an inactive key: %v, and %d bytes", err, out.Len())
		}
	})
}

// TestServerVotesWithoutAKeyThatSealedNothing and that no server which answers has, while it is
// not dropped because another one does not answer.
func TestServerVotesWithoutAKeyThatSealedNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 1, nil)
	c.Ready(ctx)
	leader := c.Nodes["s1"]
	if err := leader.AddServer(ctx, "s9", "127.0.0.1:9"); err != nil { // and is never started
		t.Fatal(err)
	}
	key := keyringtest.NewKeyID()
	err := keyring.Propose(ctx, leader.Keyring(), meta.Command{Add: &meta.Add{Key: meta.NewKey{
		ID: key, Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1}, Created: time.Now().UTC().Round(0),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.Newcomer("s4")
	cfg.Join = []string{"s1@" + c.Addrs["s1"]}
	if err := leader.AddServer(ctx, "s4", c.Addrs["s4"]); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	c.Await(ctx, leader, "a voter", func(st keyring.Status) bool {
		return slices.ContainsFunc(st.Servers, func(s raft.Server) bool { return s.ID == "s4" && s.Suffrage == raft.Voter })
	})
	st, err := n.Keyring().Status(ctx)
	if err != nil || len(st.Keys) != 2 || !slices.Equal(st.Missing, []keyring.KeyID{key}) {
		t.Errorf("it votes with %d keys, missing %v; want all but %s; %v", len(st.Keys), st.Missing, key, err)
	}
	if err := leader.Leave(ctx); err != nil { // s4 alone votes then
		t.Errorf("the other one leaves: %v", err)
	}
}
