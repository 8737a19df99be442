package keyring_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"filippo.io/age"
)

// fullDisk takes so many bytes and no more.
type fullDisk struct{ left int }

var errFull = errors.New("no space left on device")

func (d *fullDisk) Write(b []byte) (int, error) {
	if d.left -= len(b); d.left < 0 {
		return 0, errFull
	}
	return len(b), nil
}

// wantNoted wants every server to know of that backup as the last, and to have every key in one or not.
func wantNoted(t *testing.T, c *keyringtest.Cluster, m keyring.Manifest, all bool) {
	t.Helper()
	keyringtest.AwaitRing(t, c)
	for _, s := range c.Servers {
		st, err := s.Keyring.Status(t.Context())
		want := keyring.LastBackup{Index: m.Raft.Index, Time: m.Created, SHA256: m.SHA256}
		warns := slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemBackup })
		if err != nil || st.LastBackup != want || (len(st.NoBackup) == 0) != all || warns == all {
			t.Errorf("%s: the last is %+v, no backup of %v, %t, %v; want %+v", s.ID, st.LastBackup, st.NoBackup, warns, err, want)
		}
	}
}

// newerKey makes a cluster with a backup and a key that is newer, and returns the leader and the backup.
func newerKey(t *testing.T) (*keyringtest.Cluster, *keyringtest.Server, keyring.Manifest, age.Recipient) {
	t.Helper()
	c, to := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation}), kektest.Identity(t).Recipient()
	leader := keyringtest.Ready(t, c)
	m, err := leader.Keyring.Backup(t.Context(), io.Discard, to)
	if err != nil {
		t.Fatal(err)
	}
	wantNoted(t, c, m, true)
	if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantNoted(t, c, m, false)
	return c, leader, m, to
}

// TestBackupIsNotedOnceItIsConfirmed, and not before: what was written may get no further than a full disk.
func TestBackupIsNotedOnceItIsConfirmed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, leader, last, to := newerKey(t)
		write := func(w io.Writer) (keyring.Manifest, error) {
			time.Sleep(time.Second) // virtual
			return leader.Keyring.WriteBackup(t.Context(), w, to)
		}
		var file bytes.Buffer
		first, err := write(&file)
		if err != nil {
			t.Fatal(err)
		}
		wantNoted(t, c, last, false)
		for at := range file.Len() / 1000 {
			if _, err := write(&fullDisk{at * 1000}); !errors.Is(err, errFull) {
				t.Errorf("on a disk with %d bytes: %v", at*1000, err)
			}
			if m, err := leader.Keyring.Backup(t.Context(), &fullDisk{at * 1000}, to); !errors.Is(err, errFull) || m.Format != "" {
				t.Errorf("on a disk with %d bytes: %v, %v", at*1000, m, err)
			}
		}
		wantNoted(t, c, last, false)
		second, err := write(io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []keyring.Manifest{second, second, first} { // the last one comes too late, and is no error
			if err := leader.Keyring.ConfirmBackup(t.Context(), m.SHA256); err != nil {
				t.Error(err)
			}
			wantNoted(t, c, second, true)
		}
	})
}

// TestBackupIsConfirmedByWhoHasMadeIt, as the leader: nobody else knows what is in it.
func TestBackupIsConfirmedByWhoHasMadeIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, leader, last, to := newerKey(t)
		m, err := leader.Keyring.WriteBackup(t.Context(), io.Discard, to)
		if err != nil {
			t.Fatal(err)
		}
		for _, unknown := range [][32]byte{{}, {1}} {
			if err := leader.Keyring.ConfirmBackup(t.Context(), unknown); !errors.Is(err, keyring.ErrUnknownBackup) {
				t.Errorf("%x: %v", unknown, err)
			}
		}
		if err := keyringtest.Follower(c).Keyring.ConfirmBackup(t.Context(), m.SHA256); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("on a follower: %v", err)
		}
		if err := leader.Raft.LeadershipTransfer().Error(); err != nil {
			t.Fatal(err)
		}
		next := keyringtest.Ready(t, c)
		if err := next.Keyring.ConfirmBackup(t.Context(), m.SHA256); next == leader || !errors.Is(err, keyring.ErrUnknownBackup) {
			t.Errorf("on the next leader: %v", err)
		}
		if err := leader.Keyring.ConfirmBackup(t.Context(), m.SHA256); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("on the last leader: %v", err)
		}
		wantNoted(t, c, last, false)
	})
}

// TestBackupsAreRememberedFor a while: the last 16, and none from before raft restored a snapshot.
func TestBackupsAreRememberedForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, leader, last, to := newerKey(t)
		var all []keyring.Manifest
		for range 17 {
			m, err := leader.Keyring.WriteBackup(t.Context(), io.Discard, to)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, m)
		}
		if err := leader.Keyring.ConfirmBackup(t.Context(), all[0].SHA256); !errors.Is(err, keyring.ErrUnknownBackup) {
			t.Errorf("of 17 the first: %v", err)
		}
		wantNoted(t, c, last, false)
		if err := leader.Keyring.ConfirmBackup(t.Context(), all[1].SHA256); err != nil {
			t.Errorf("of 17 the second: %v", err)
		}
		wantNoted(t, c, all[1], true)
		snapshot := leader.Raft.Snapshot()
		if err := snapshot.Error(); err != nil {
			t.Fatal(err)
		}
		meta, body, err := snapshot.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if err := leader.Raft.Restore(meta, body, time.Minute); err != nil {
			t.Fatal(err)
		}
		leader = keyringtest.Ready(t, c)
		if err := leader.Keyring.ConfirmBackup(t.Context(), all[16].SHA256); !errors.Is(err, keyring.ErrUnknownBackup) {
			t.Errorf("of before a restore: %v", err)
		}
		wantNoted(t, c, all[1], true)
	})
}
