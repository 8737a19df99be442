package keyring_test

import (
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
)

// leaderPatience is what the documentation says of calls whose contexts have no deadline.
const leaderPatience = 30 * time.Second

// TestEveryCallOfAKeyringEndsWithoutALeader, with a context that has no deadline: on the leader that loses the others while
// the call is under way, and on a server that is left alone. WaitReady is there to wait.
func TestEveryCallOfAKeyringEndsWithoutALeader(t *testing.T) {
	t.Parallel()
	must := map[string][]string{"a follower": {"WaitRemoved"}} // what waits for a leader, and so says that there is none
	for _, who := range []string{"the leader", "a follower"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
					cfg.Rotation.Every, cfg.Data = -1, keyring.NoData{}
				}})
				s := keyringtest.Ready(t, c)
				first := s.Keyring.Keys()[0].ID
				if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				later, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
				if err != nil {
					t.Fatal(err)
				}
				to := kektest.Identity(t).Recipient()
				for name := range callsOfKeyring(s, "", first, later.ID, to) {
					if name == "WaitReady" {
						continue
					}
					c.Partition()
					s = keyringtest.Ready(t, c)
					keyringtest.AwaitKeys(t, c)
					other := keyringtest.Follower(c)
					if who == "a follower" {
						s, other = other, s
					}
					c.Partition(s)
					wantNoLeader(t, name, callsOfKeyring(s, other.ID, first, later.ID, to)[name], slices.Contains(must[who], name))
				}
				c.Partition()
				keyringtest.Ready(t, c)
			})
		})
	}
}

// wantNoLeader makes a call that is to end for want of a leader, and to say so if it waits for one.
func wantNoLeader(t *testing.T, name string, call func(context.Context) error, waits bool) {
	t.Helper()
	began := time.Now()
	err := call(context.Background())
	took := time.Since(began)
	if took > leaderPatience+time.Second+2*keyring.CallGrace {
		t.Errorf("%s took %v: %v", name, took, err)
	}
	if took > 10*time.Second && (!errors.Is(err, keyring.ErrNoLeader) || !strings.Contains(err.Error(), "Status of another server has one")) {
		t.Errorf("%s took %v, and does not say that there is no leader: %v", name, took, err)
	}
	if waits && took < 10*time.Second {
		t.Errorf("%s has not waited: %v", name, err)
	}
}

// TestCallWithADeadlineWaitsForALeaderAsLongAsItMay, and goes on when there is one again.
func TestCallWithADeadlineWaitsForALeaderAsLongAsItMay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
		leader := keyringtest.Ready(t, c)
		follower := keyringtest.Follower(c)
		c.Partition(follower)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		rotated := make(chan error, 1)
		key, err := leader.Keyring.Rotate(ctx, keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, err := follower.Keyring.WaitRotated(ctx, key.ID); rotated <- err }()
		time.Sleep(50 * time.Second) // virtual: less than it waits to hear of a key
		c.Partition()
		if err := <-rotated; err != nil {
			t.Error(err)
		}
	})
}

// TestRotateEndsWhenItsLeaderIsLeftAlone: no other server holds the new key yet. It ends too on a follower, which has not
// heard of the key.
func TestRotateEndsWhenItsLeaderIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
		leader := keyringtest.Ready(t, c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server != leader && e.Kind == "disk" {
				return keyringtest.Reply{Err: errors.New("full")}
			}
			return keyringtest.Reply{}
		})
		go func() {
			time.Sleep(5 * time.Minute) // virtual
			c.Partition(leader)
		}()
		began := time.Now()
		_, err := leader.Keyring.Rotate(context.Background(), keyring.RotateOptions{})
		if !errors.Is(err, keyring.ErrNoLeader) || !errors.Is(err, keyring.ErrNotDurable) {
			t.Errorf("%v", err)
		}
		if took := time.Since(began) - 5*time.Minute; took < leaderPatience || took > leaderPatience+2*time.Second {
			t.Errorf("it ends %v after its leader was left alone", took)
		}
		c.OnEvent(nil)
		c.Partition()
		keyringtest.Ready(t, c)
		follower := keyringtest.Follower(c)
		c.Partition(follower)
		wantNoLeader(t, "WaitRotated", func(ctx context.Context) error {
			_, err := follower.Keyring.WaitRotated(ctx, keyringtest.NewKeyID())
			return err
		}, true)
	})
}

// TestWaitReadySaysThatThereIsNoLeader when its context has ended. It waits for as long as that lets it.
func TestWaitReadySaysThatThereIsNoLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)

		for _, s := range c.Servers[1:] {
			c.Stop(s)
		}
		c.Restart(c.Servers[0])
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		err := c.Servers[0].Keyring.WaitReady(ctx)
		if !errors.Is(err, keyring.ErrNoLeader) || !errors.Is(err, keyring.ErrNotReady) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}
