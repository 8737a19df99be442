package scenarios_test

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
	"example.com/keyring/internal/meta"
)

// disaster is what happens to a server in the middle of a rotation.
type disaster struct {
	name   string
	leader bool // to the leader, else to a follower
	strike func(*keyringtest.Cluster, *keyringtest.Server)
	after  func(*keyringtest.Cluster, *keyringtest.Server)
}

var disasters = []disaster{
	{"leader dies with its disk", true, (*keyringtest.Cluster).Kill, keyringtest.Replace},
	{"follower dies with its disk", false, (*keyringtest.Cluster).Kill, keyringtest.Replace},
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
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		synctest.Wait()
		victim := leader
		if !d.leader {
			victim = c.Servers[(slices.Index(c.Servers, leader)+1)%3]
		}
		v := keyringtest.Vault{TB: t}
		v.Seal(leader)

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
		v.Seal(leader)
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
		v.Seal(c.Leader())
		d.after(c, victim)

		leader = keyringtest.Ready(t, c)
		v.Seal(leader)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("rotate again: %v", err)
		}
		v.Seal(leader)
		keyringtest.AwaitKeys(t, c)
		synctest.Wait()
		v.Check(c)
		keyringtest.CheckOneActive(t, c)
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
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: 4 * time.Hour})
		leader := keyringtest.Ready(t, c)
		v := keyringtest.Vault{TB: t}
		begin := leader.Keyring.Keys()[0].Activated
		for week := range 52 {
			time.Sleep(7 * day)
			leader = c.Leader()
			if err := v.Seal(leader); err != nil && !errors.Is(err, keyring.ErrNotReady) {
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
		keyringtest.Ready(t, c)
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
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
		keyringtest.CheckOneActive(t, c)
	})
}

func TestClusterSealsOpensAndRotates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		first, err := leader.Keyring.Encrypt([]byte("hello"), []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Log("rotated in", time.Since(start), key.State, key.Holders)
		if id, _ := keyring.CiphertextKeyID(first); key.State != keyring.StateActive || key.ID == id {
			t.Fatalf("after Rotate: key %s is %s", key.ID, key.State)
		}
		synctest.Wait()
		for _, s := range c.Servers {
			got, err := s.Keyring.Decrypt(first, []byte("aad"))
			if err != nil || string(got) != "hello" {
				t.Errorf("%s: %q, %v", s.ID, got, err)
			}
			st, _ := s.Keyring.Status(t.Context())
			t.Log(s.ID, st.Problems, st.Keys[0].Holders)
		}
	})
}

// TestI3RecordedHoldsAloneActivateNothing takes the keystores of all but the leader away after
// they were recorded as holders, and keeps their news from the leader. If the key became
// active, the leader's disk would be the only one that has it.
func TestI3RecordedHoldsAloneActivateNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		due := time.Now().Add(time.Hour)
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: due})
		if err != nil || key.State != keyring.StatePrepublished {
			t.Fatalf("%s, %v", key.State, err)
		}
		keyringtest.AwaitKeys(t, c)
		heal := keyringtest.Refuse(c, "fetch", "hold")
		for _, s := range c.Servers {
			if s != leader {
				c.Stop(s)
				s.Disk = keyringtest.NewDisk()
				c.Restart(s)
			}
		}
		if c.Leader() != leader {
			if err := c.Leader().Raft.LeadershipTransferToServer(leader.ID, "").Error(); err != nil {
				t.Log(err)
			}
		}
		time.Sleep(2 * time.Hour) // virtual
		for _, s := range c.Servers {
			if got := keyringtest.StateOf(s, key.ID); got != keyring.StatePrepublished {
				t.Errorf("%s: the key is %s while one server holds it", s.ID, got)
			}
		}
		if holders := keyringtest.Ring(leader.FSM).Key(meta.KeyID(key.ID)).Holders; len(holders) != 3 {
			t.Errorf("recorded holders are %v: the test has to have stale ones", holders)
		}
		heal()
		time.Sleep(5 * time.Minute) // virtual
		keyringtest.AwaitKeys(t, c)
		if got := keyringtest.StateOf(leader, key.ID); got != keyring.StateActive {
			t.Errorf("the key is %s after all hold it again", got)
		}
	})
}

// TestKeyThatNobodyHasIsDropped loses a prepublished key with the only server that has it. It
// stands in nobody's way, is named in Status, and goes once every server has answered.
func TestKeyThatNobodyHasIsDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		first := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		v := keyringtest.Vault{TB: t}
		heal := keyringtest.Refuse(c, "fetch")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := first.Keyring.Rotate(ctx, keyring.RotateOptions{})
		if !errors.Is(err, keyring.ErrNotDurable) {
			t.Fatalf("a rotation that no other server can follow: %v", err)
		}
		lost := keyringtest.Ring(first.FSM).Prepublished()[0].ID
		c.Stop(first)
		heal()
		leader := c.Leader()
		keyringtest.Rotate(t, c, &v, 1)
		time.Sleep(5 * time.Minute) // virtual
		if got := keyringtest.StateOf(leader, keyring.KeyID(lost)); got != keyring.StatePrepublished {
			t.Errorf("the key is %q, and one server has not answered yet", got)
		}
		if p := keyringtest.Problems(t, leader, keyring.ProblemKeyPending); len(p) != 1 || !slices.Equal(p[0].Keys, []keyring.KeyID{keyring.KeyID(lost)}) {
			t.Errorf("Status has pending keys %v, want %s", p, lost)
		}
		c.Remove(first)
		c.Add("s4")
		time.Sleep(5 * time.Minute) // virtual
		if got := keyringtest.StateOf(leader, keyring.KeyID(lost)); got != "" || !keyringtest.Ring(leader.FSM).WasRemoved(lost) {
			t.Errorf("the key is %q after every server has answered", got)
		}
		if p := keyringtest.Problems(t, leader, keyring.ProblemKeyPending); len(p) != 0 {
			t.Errorf("Status still has pending keys %v", p)
		}
		keyringtest.Rotate(t, c, &v, 1)
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
		keyringtest.CheckOneActive(t, c)
	})
}

// TestScheduledKeyThatIsGoneIsReplaced loses the next key with a leader that nobody replaces: the
// rotation still happens, with another key.
func TestScheduledKeyThatIsGoneIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: time.Hour, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation = keyring.RotationPolicy{Every: 10 * day, Lead: day}
		}})
		first := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		v := keyringtest.Vault{TB: t}
		if err := v.Seal(first); err != nil {
			t.Fatal(err)
		}
		old := keyringtest.Ring(first.FSM).Active().ID
		heal := keyringtest.Refuse(c, "fetch")
		time.Sleep(9*day + time.Hour) // virtual
		pending := keyringtest.Ring(first.FSM).Prepublished()
		if len(pending) == 0 || !pending[0].Scheduled {
			t.Fatalf("a day ahead %d keys are prepublished", len(pending))
		}
		c.Stop(first)
		heal()
		time.Sleep(2 * day) // virtual
		leader := c.Leader()
		if got := keyringtest.StateOf(leader, keyring.KeyID(old)); got != keyring.StateInactive {
			t.Errorf("two days later the old key is %s", got)
		}
		if err := v.Seal(leader); err != nil {
			t.Error(err)
		}
		v.Check(c)
		keyringtest.CheckOneActive(t, c)
	})
}

// TestRotationByHandMovesTheSchedule counts the period from the last activation, also from one
// that an operator asked for.
func TestRotationByHandMovesTheSchedule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Pace: time.Hour, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation = keyring.RotationPolicy{Every: 10 * day, Lead: day}
		}})
		s := keyringtest.Ready(t, c)
		begin := time.Now()
		time.Sleep(9*day + time.Hour) // virtual: the next key is prepublished
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20*day + time.Hour) // virtual
		var at []time.Duration
		for _, k := range s.Keyring.Keys() {
			if !k.Activated.IsZero() {
				at = append(at, k.Activated.Sub(begin).Round(time.Hour))
			}
		}
		slices.Sort(at)
		want := []time.Duration{0, 9*day + time.Hour, 19*day + time.Hour, 29*day + time.Hour}
		if !slices.Equal(at, want) {
			t.Errorf("activations after %v, want %v", at, want)
		}
	})
}
