package keyring_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// TestLeaderNamesServersThatAreDownAndLackTheActiveKey, from when on, and no longer than they are.
func TestLeaderNamesServersThatAreDownAndLackTheActiveKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		dead := keyringtest.Follower(c)
		time.Sleep(time.Minute)
		if st := statusOf(t, leader); len(st.Problems) != 1 { // the inline KEK
			t.Errorf("problems %v", st.Problems)
		}
		down := time.Now()
		c.Stop(dead)
		key := keyringtest.RotateWhenReady(t, c)
		time.Sleep(10 * time.Second)
		got := keyringtest.Problems(t, leader, keyring.ProblemUnreachable)
		if len(got) != 1 || got[0].Server != dead.ID {
			t.Fatalf("problems %v", statusOf(t, leader).Problems)
		}
		said, err := time.Parse(time.DateTime, got[0].Detail[len(got[0].Detail)-len(time.DateTime):])
		if err != nil || said.Sub(down).Abs() > 2*time.Second {
			t.Errorf("%q, down since %v: %v", got[0].Detail, down, err)
		}
		under := keyringtest.Problems(t, leader, keyring.ProblemUnderheld)
		if len(under) != 1 || under[0].Key != key.ID || !strings.Contains(under[0].Detail, `["`+string(dead.ID)+`"]`) {
			t.Errorf("problems %v", under)
		}
		c.Start(dead)
		keyringtest.Ready(t, c)
		time.Sleep(20 * time.Second)
		if st := statusOf(t, leader); len(st.Problems) != 1 {
			t.Errorf("problems %v", st.Problems)
		}
	})
}

// TestNewLeaderNamesServersThatWereDownBefore: it has never heard from them.
func TestNewLeaderNamesServersThatWereDownBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		keyringtest.MakeLeader(t, c, c.Server("s1"))
		c.Stop(c.Server("s3"))
		keyringtest.MakeLeader(t, c, c.Server("s2"))
		time.Sleep(10 * time.Second)
		if got := keyringtest.Problems(t, c.Server("s2"), keyring.ProblemUnreachable); len(got) != 1 || got[0].Server != "s3" {
			t.Errorf("problems %v", got)
		}
		if got := keyringtest.Problems(t, c.Server("s1"), keyring.ProblemUnreachable); len(got) != 0 {
			t.Errorf("a server that leads no more: %v", got)
		}
	})
}

// TestServerThatHearsFromNoLeaderSaysSo, and since when.
func TestServerThatHearsFromNoLeaderSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		s := keyringtest.Follower(c)
		lost := time.Now()
		for _, other := range c.Servers {
			if other != s {
				c.Stop(other)
			}
		}
		time.Sleep(15 * time.Second)
		got := keyringtest.Problems(t, s, keyring.ProblemNoLeader)
		if len(got) != 1 || !strings.Contains(got[0].Detail, statusOf(t, s).LastContact.Format(time.DateTime)) {
			t.Errorf("problems %v", got)
		}
		if at := statusOf(t, s).LastContact; at.Sub(lost).Abs() > time.Second {
			t.Errorf("last contact %v, and the others were stopped at %v", at, lost)
		}
		c.Start(leader)
		keyringtest.Ready(t, c)
		if got := keyringtest.Problems(t, s, keyring.ProblemNoLeader); len(got) > 0 {
			t.Errorf("problems %v", got)
		}
	})
}

// TestLeaderNamesServerWhoseLogTakesNothing: it answers heartbeats, and gets no further.
func TestLeaderNamesServerWhoseLogTakesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		full := keyringtest.Follower(c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server == full && e.Kind == "log" {
				return keyringtest.Reply{Err: errors.New("no space left on device")}
			}
			return keyringtest.Reply{}
		})
		keyringtest.RotateWhenReady(t, c)
		time.Sleep(5 * time.Minute)
		got := keyringtest.Problems(t, leader, keyring.ProblemStuck)
		if len(got) != 1 || got[0].Server != full.ID || !strings.Contains(got[0].Detail, "entries of raft's log behind") {
			t.Errorf("problems %v", statusOf(t, leader).Problems)
		}
		c.OnEvent(nil)
		time.Sleep(5 * time.Minute)
		if got := keyringtest.Problems(t, leader, keyring.ProblemStuck); len(got) > 0 {
			t.Errorf("problems %v", got)
		}
	})
}
