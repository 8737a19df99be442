package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// restoredHosts are three fresh servers whose raft was restored to a snapshot of another cluster's. The
// first of them leads, and is the only one whose keyring is open; disk is its keystore, if not nil.
func restoredHosts(t *testing.T, withKeystore bool) []*keyringtest.Host {
	t.Helper()
	hosts := keyringtest.NewHosts(t, 3)
	for _, h := range hosts {
		h.Open(t, nil)
	}
	leader := keyringtest.LeaderOf(t, hosts)
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
		const why = "1 of 3 voters hold it"
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
