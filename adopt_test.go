package keyring_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestAdoptTakesAnOrphanOfAnyServer: its file is planted on a follower, and after Adopt every
// server holds the key.
func TestAdoptTakesAnOrphanOfAnyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := keyring.KeyID{7}
		c := newCluster(t, keyringtest.Options{Servers: 3})
		ready(t, c)
		f := follower(c)
		plantKey(t, f.Disk, id, keyring.InlineKEK())
		c.Restart(f)
		ready(t, c)
		leader := c.Leader().Keyring
		if err := f.Keyring.Adopt(t.Context(), id); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("on a follower: %v", err)
		}
		if err := leader.Adopt(t.Context(), keyring.KeyID{8}); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("a key that no server has: %v", err)
		}
		for range 2 {
			if err := leader.Adopt(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		whole(t, c)
		k := keyring.Ring(c.Leader().FSM).Key(id)
		if k == nil || k.State != keyring.StateInactive || k.DataOnly || len(k.Holders) != 3 {
			t.Errorf("adopted as %+v", k)
		}
	})
}

// TestAdoptAdmitsTokensOfAKeyAdoptedForDataOnly, which is what the leader adopts by itself.
func TestAdoptAdmitsTokensOfAKeyAdoptedForDataOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id, disk := keyring.KeyID{7}, keyringtest.NewDisk()
		plantKey(t, disk, id, keyring.InlineKEK())
		c := newCluster(t, keyringtest.Options{Servers: 1, Disk: func(_ raft.ServerID) *keyringtest.Disk { return disk }})
		ready(t, c)
		ring := func() bool { return keyring.Ring(c.Leader().FSM).Key(id).DataOnly }
		if !ring() {
			t.Error("the leader's own adoption admits tokens")
		}
		if err := c.Leader().Keyring.Adopt(t.Context(), id); err != nil || ring() {
			t.Errorf("after Adopt it is still for data only: %v", err)
		}
	})
}
