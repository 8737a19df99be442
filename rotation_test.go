package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// vault is what was sealed in a test, and has to open for ever.
type vault struct {
	t      testing.TB
	sealed [][]byte
}

// seal seals one more record on the server. A server that can't is no failure.
func (v *vault) seal(s *keyringtest.Server) error {
	c, err := s.Keyring.Encrypt(v.record(len(v.sealed)), []byte("aad"))
	if err == nil {
		v.sealed = append(v.sealed, c)
	}
	return err
}

func (v *vault) record(i int) []byte { return fmt.Appendf(nil, "record %d", i) }

// check opens every record on every live server.
func (v *vault) check(c *keyringtest.Cluster) {
	v.t.Helper()
	if len(v.sealed) == 0 {
		v.t.Error("nothing was sealed")
	}
	for _, s := range c.Live() {
		for i, sealed := range v.sealed {
			got, err := s.Keyring.Decrypt(sealed, []byte("aad"))
			if err != nil || string(got) != string(v.record(i)) {
				v.t.Errorf("%s: record %d: %q, %v", s.ID, i, got, err)
			}
		}
	}
}

// checkOneActive requires that every live server has the same active key, and one only.
func checkOneActive(t testing.TB, c *keyringtest.Cluster) {
	t.Helper()
	var active []keyring.KeyID
	for _, s := range c.Live() {
		for _, k := range s.Keyring.Keys() {
			if k.State == keyring.StateActive {
				active = append(active, k.ID)
			}
		}
	}
	if len(active) != len(c.Live()) || len(slices.Compact(active)) != 1 {
		t.Errorf("active keys on %d servers: %v", len(c.Live()), active)
	}
}

// whole waits until every live server knows what the leader knows and holds every key. With a
// pace of hours a follower learns minutes late that an entry is committed, and a key takes
// several entries.
func whole(t testing.TB, c *keyringtest.Cluster) {
	t.Helper()
	for range 10_000 {
		if lags := lagging(t, c); len(lags) == 0 {
			return
		}
		time.Sleep(time.Second) // virtual
	}
	t.Errorf("servers %v are behind, or keys are missing", lagging(t, c))
}

func lagging(t testing.TB, c *keyringtest.Cluster) (ids []raft.ServerID) {
	keys := func(s *keyringtest.Server) string {
		return fmt.Sprint(keyring.Ring(s.FSM).Encode())
	}
	want := keys(c.Leader())
	for _, s := range c.Live() {
		same := keys(s) == want // first: what is missing is missing of the ring that the server has by then
		st, err := s.Keyring.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(st.Missing) > 0 || !same {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// disaster is what happens to a server in the middle of a rotation.
type disaster struct {
	name   string
	leader bool // to the leader, else to a follower
	strike func(*keyringtest.Cluster, *keyringtest.Server)
	after  func(*keyringtest.Cluster, *keyringtest.Server)
}

// replace puts a fresh server in the place of one that has died with its disks.
func replace(c *keyringtest.Cluster, s *keyringtest.Server) {
	c.Stop(s)
	c.Remove(s)
	c.Add(s.ID + "-new")
}

var disasters = []disaster{
	{"leader dies with its disk", true, (*keyringtest.Cluster).Kill, replace},
	{"follower dies with its disk", false, (*keyringtest.Cluster).Kill, replace},
	{"leader restarts", true, (*keyringtest.Cluster).Kill, (*keyringtest.Cluster).Restart},
	{"leader is cut off", true,
		func(c *keyringtest.Cluster, s *keyringtest.Server) { c.Partition(s) },
		func(c *keyringtest.Cluster, s *keyringtest.Server) {
			time.Sleep(time.Minute) // virtual
			c.Partition()
		}},
	{"follower is cut off", false,
		func(c *keyringtest.Cluster, s *keyringtest.Server) { c.Partition(s) },
		func(c *keyringtest.Cluster, s *keyringtest.Server) {
			time.Sleep(time.Minute) // virtual
			c.Partition()
		}},
}

// TestI3NoStepOfARotationLosesAKey lets each disaster strike at every step of a rotation: at
// each operation on the victim's disk, each write of its raft log, each request it makes or
// answers. One run a step, until a rotation has no further step. With slow fetches the log is
// ahead of the keys, without them the keys are ahead of the log.
func TestI3NoStepOfARotationLosesAKey(t *testing.T) {
	t.Parallel()
	for _, d := range disasters {
		for _, slow := range []time.Duration{0, 20 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s, fetches take %v", d.name, slow), func(t *testing.T) {
				steps := 0
				for ; strikeAt(t, d, slow, steps+1); steps++ {
				}
				t.Logf("%d steps", steps)
				if steps < 10 {
					t.Errorf("only %d steps: the rotation was not watched", steps)
				}
			})
		}
	}
}

// strikeAt runs one rotation with the disaster at step n, and reports whether it had so many.
func strikeAt(t *testing.T, d disaster, slow time.Duration, n int) (struck bool) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, keyringtest.Options{Servers: 3})
		leader := ready(t, c)
		whole(t, c)
		synctest.Wait()
		victim := leader
		if !d.leader {
			victim = c.Servers[(slices.Index(c.Servers, leader)+1)%3]
		}
		v := vault{t: t}
		v.seal(leader)

		var count atomic.Int64
		var at atomic.Pointer[keyringtest.Event]
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Kind == "call" && strings.Contains(e.What, `"fetch"`) {
				time.Sleep(slow) // virtual
			}
			if e.Server == victim && count.Add(1) == int64(n) {
				at.Store(&e)
				d.strike(c, victim)
			}
			return keyringtest.Reply{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, rotated := leader.Keyring.Rotate(ctx, keyring.RotateOptions{})
		v.seal(leader)
		// Quiet before the steps of housekeeping that follow, which are no steps of the rotation.
		synctest.Wait()
		c.OnEvent(nil)
		if struck = at.Load() != nil; !struck {
			if rotated != nil {
				t.Errorf("undisturbed: %v", rotated)
			}
			return
		}
		fail := t.Failed()
		time.Sleep(5 * time.Second) // virtual: a new leader, if there is to be one
		v.seal(c.Leader())
		d.after(c, victim)

		leader = ready(t, c)
		v.seal(leader)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("rotate again: %v", err)
		}
		v.seal(leader)
		whole(t, c)
		synctest.Wait()
		v.check(c)
		checkOneActive(t, c)
		if t.Failed() && !fail {
			t.Logf("%s at step %d: %.100s; rotation: %v", d.name, n, at.Load(), rotated)
		}
	})
	return struck && !t.Failed()
}

// TestRotationsHappenOnTheirDay runs a year with leader changes and restarts.
func TestRotationsHappenOnTheirDay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		c := newCluster(t, keyringtest.Options{Servers: 3, Pace: 4 * time.Hour})
		leader := ready(t, c)
		v := vault{t: t}
		begin := leader.Keyring.Keys()[0].Activated
		for week := range 52 {
			time.Sleep(7 * day)
			leader = c.Leader()
			if err := v.seal(leader); err != nil && !errors.Is(err, keyring.ErrNotReady) {
				t.Fatal(err)
			}
			switch week % 3 {
			case 0:
				if err := leader.Raft.LeadershipTransfer().Error(); err != nil {
					t.Log(err)
				}
			case 1:
				c.Restart(leader)
			case 2:
				c.Restart(c.Servers[week%3])
			}
		}
		ready(t, c)
		var at []time.Duration
		for _, k := range c.Leader().Keyring.Keys() {
			if !k.Activated.IsZero() {
				at = append(at, k.Activated.Sub(begin))
			}
		}
		slices.Sort(at)
		t.Log("activated after", at)
		if len(at) != 13 {
			t.Errorf("%d activations in 364 days, want 13", len(at))
		}
		for i := 1; i < len(at); i++ {
			if gap := at[i] - at[i-1]; gap < 30*day || gap > 30*day+day/2 {
				t.Errorf("%v between activations %d and %d", gap, i-1, i)
			}
		}
		whole(t, c)
		v.check(c)
		checkOneActive(t, c)
	})
}
