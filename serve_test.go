package keyring_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// handedOut is how many keys a server sends to another that asks for one.
func handedOut(t *testing.T, s *keyringtest.Server, to raft.ServerID, id keyring.KeyID) int {
	t.Helper()
	pull, err := peer.NewFetch([]peer.ID{peer.ID(id)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Keyring.ServePeer(t.Context(), to, pull.Request())
	if err != nil {
		t.Fatal(err)
	}
	a, err := peer.DecodeAnswer[peer.FetchAnswer](b)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := pull.Open(peer.Binding{Cluster: keyring.Ring(s.FSM).Cluster, Asker: string(to), Answerer: string(s.ID)}, a)
	if err != nil {
		t.Fatal(err)
	}
	return len(keys)
}

// TestRemovedKeyIsNotHandedOut, though it is in memory.
func TestRemovedKeyIsNotHandedOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		leader, s := c.Leader(), keyringtest.Follower(c)
		file := leader.Disk.Bytes(nks.FileName(old))
		if n := handedOut(t, leader, s.ID, old); n != 1 {
			t.Fatalf("%d keys are handed out", n)
		}
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
		time.Sleep(10 * time.Hour) // virtual
		leader.Disk.Plant(nks.FileName(old), 0o600, file)
		if err := readFiles(leader.Keyring); err != nil {
			t.Fatal(err)
		}
		if !keyring.Store(leader.Keyring).InMemory(meta.KeyID(old)) {
			t.Fatal("the key is not in memory")
		}
		if n := handedOut(t, leader, s.ID, old); n != 0 {
			t.Error("it is handed out")
		}
	})
}

// TestTurnIsRefusedToWhoWasRemovedMeanwhile: what a server asked for as a member, and waits for its turn, is not
// done for it once it is none.
func TestTurnIsRefusedToWhoWasRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		turn := func(server raft.ServerID) (done bool, err error) {
			err = keyring.BetweenSteps(keyring.WithForwarder(t.Context(), server), leader.Keyring, func(context.Context) error {
				done = true
				return nil
			})
			return done, err
		}
		other := c.Servers[0]
		if other == leader {
			other = c.Servers[1]
		}
		if done, err := turn(other.ID); !done || err != nil {
			t.Errorf("a member: %v, %v", done, err)
		}
		c.Stop(other)
		if err := leader.Raft.RemoveServer(other.ID, 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		refusal := (*peer.Refusal)(nil)
		if done, err := turn(other.ID); done || !errors.As(err, &refusal) || refusal.Code != peer.NotMember {
			t.Errorf("a server that was removed: %v, %v", done, err)
		}
	})
}
