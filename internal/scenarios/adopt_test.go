package scenarios_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// TestAdoptTakesAnOrphanOfAnyServer: its file is planted on a follower, and after Adopt every
// server holds the key.
func TestAdoptTakesAnOrphanOfAnyServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id := keyring.KeyID{7}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		f := keyringtest.Follower(c)
		keyringtest.PlantKey(t, f.Disk, id, keyring.InlineKEK())
		c.Restart(f)
		keyringtest.Ready(t, c)
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
		keyringtest.AwaitKeys(t, c)
		k := keyringtest.Ring(c.Leader().FSM).Key(id)
		if k == nil || k.State != keyring.StateInactive || k.DataOnly || len(k.Holders) != 3 {
			t.Errorf("adopted as %+v", k)
		}
	})
}

// TestAdoptAdmitsTokensOfAKeyAdoptedForDataOnly, which is what the leader adopts by itself.
func TestAdoptAdmitsTokensOfAKeyAdoptedForDataOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		id, disk := keyring.KeyID{7}, keyringtest.NewDisk()
		keyringtest.PlantKey(t, disk, id, keyring.InlineKEK())
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Disk: func(_ raft.ServerID) *keyringtest.Disk { return disk }})
		keyringtest.Ready(t, c)
		ring := func() bool { return keyringtest.Ring(c.Leader().FSM).Key(id).DataOnly }
		if !ring() {
			t.Error("the leader's own adoption admits tokens")
		}
		if err := c.Leader().Keyring.Adopt(t.Context(), id); err != nil || ring() {
			t.Errorf("after Adopt it is still for data only: %v", err)
		}
	})
}

// TestTokensVerifyFromTheirAdmissionOn, however long after the leader's own adoption that is.
func TestTokensVerifyFromTheirAdmissionOn(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{time.Minute, 48 * time.Hour, 365 * 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			id, disk := keyring.KeyID{7}, keyringtest.NewDisk()
			keyringtest.PlantKey(t, disk, id, keyring.InlineKEK())
			first := func(raft.ServerID) *keyringtest.Disk {
				defer func() { disk = keyringtest.NewDisk() }()
				return disk
			}
			c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: time.Hour, Disk: first})
			leader := keyringtest.Ready(t, c)
			time.Sleep(wait)
			if err := leader.Keyring.Adopt(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			verifies := func() bool { return strings.Contains(string(leader.Keyring.JWKS()), id.String()) }
			time.Sleep(24 * time.Hour)
			if !verifies() {
				t.Errorf("admitted %v after the adoption: a day later its tokens verify no longer", wait)
			}
			if time.Sleep(2 * time.Minute); verifies() {
				t.Errorf("admitted %v after the adoption: its tokens verify for longer than MaxTTL and the leeway", wait)
			}
		})
	}
}

// TestManyOrphansAreAdoptedInSeveralEntries: one log entry with all of them would be too long.
func TestManyOrphansAreAdoptedInSeveralEntries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const orphans, most = 1200, 500
		disk := keyringtest.NewDisk()
		for i := range orphans {
			keyringtest.PlantKey(t, disk, keyring.KeyID{7, byte(i >> 8), byte(i)}, keyring.InlineKEK())
		}
		var mu sync.Mutex
		entries := map[uint64]int{} // adoptions by index
		c := keyringtest.NewCluster(t, keyringtest.Options{
			Servers: 1, Disk: func(raft.ServerID) *keyringtest.Disk { return disk },
			Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
				cfg.Audit = func(e keyring.Event) {
					mu.Lock()
					defer mu.Unlock()
					if e.Step == keyring.StepAdopted {
						entries[e.Index]++
					}
				}
			},
		})
		keyringtest.Ready(t, c)
		synctest.Wait()
		ring := keyringtest.Ring(c.Leader().FSM)
		for i := range orphans {
			if k := ring.Key(keyring.KeyID{7, byte(i >> 8), byte(i)}); k == nil || k.State != keyring.StateInactive || !k.DataOnly {
				t.Fatalf("%d is adopted as %+v", i, k)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		all := 0
		for index, n := range entries {
			if all += n; n > most {
				t.Errorf("%d are adopted at %d", n, index)
			}
		}
		if all != orphans {
			t.Errorf("%d are adopted in %d entries", all, len(entries))
		}
	})
}
