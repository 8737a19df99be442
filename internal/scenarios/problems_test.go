package scenarios_test

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// TestUnusableAnswersAreNoProblemWhenTheServerAnswers again, though nothing is missing any more, nor when it is removed.
func TestUnusableAnswersAreNoProblemWhenTheServerAnswers(t *testing.T) {
	t.Parallel()
	for _, cure := range []string{"it answers", "it is removed"} {
		t.Run(cure, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 4})
				leader := keyringtest.Ready(t, c)
				bad := c.Servers[slices.IndexFunc(c.Servers, func(s *keyringtest.Server) bool { return s != leader })]
				good := c.Servers[slices.IndexFunc(c.Servers, func(s *keyringtest.Server) bool { return s != leader && s != bad })]
				var failing atomic.Bool
				failing.Store(true)
				c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
					if failing.Load() && keyringtest.IsFetch(e, "s5") && e.To != good.ID {
						return keyringtest.Reply{Err: errors.New("no route to host")}
					}
					return keyringtest.Reply{}
				})
				fresh := c.Add("s5")
				time.Sleep(time.Minute) // virtual
				if st := keyringtest.StatusOf(t, fresh); len(st.Missing) > 0 || len(keyringtest.Problems(t, fresh, keyring.ProblemUnreachable)) == 0 {
					t.Fatalf("missing %v, %v", st.Missing, st.Problems)
				}
				if failing.Store(false); cure == "it is removed" {
					failing.Store(true)
					if err := leader.Keyring.RemoveServer(t.Context(), bad.ID, keyring.RemoveServerOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(2 * time.Minute)
				for _, p := range keyringtest.Problems(t, fresh, keyring.ProblemUnreachable) {
					if cure == "it answers" || p.Server == bad.ID {
						t.Errorf("it is over, and Status says: %s", p)
					}
				}
			})
		})
	}
}

// TestServerThatIsBackIsAskedAgainAtOnce, though it has been down for long: the key that it alone holds is here
// within a minute or so, and no problem is left.
func TestServerThatIsBackIsAskedAgainAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		asker, holder := c.Server("s1"), c.Server("s2")
		key := asker.Keyring.Keys()[0].ID
		var down atomic.Bool
		down.Store(true)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if down.Load() && keyringtest.IsFetch(e, asker.ID) {
				return keyringtest.Reply{Err: errors.New("no route to host")}
			}
			return keyringtest.Reply{}
		})
		c.Stop(asker)
		asker.Disk.Unlink(nks.FileName(key))
		c.Start(asker)
		time.Sleep(40 * time.Minute) // virtual
		if p := keyringtest.ProblemAbout(t, asker, keyring.ProblemUnreachable, holder.ID); p == "" || len(keyringtest.StatusOf(t, asker).Missing) != 1 {
			t.Fatalf("%v", keyringtest.StatusOf(t, asker))
		}
		down.Store(false)
		time.Sleep(90 * time.Second)
		if st := keyringtest.StatusOf(t, asker); len(st.Missing) > 0 || len(butNoBackup(st.Problems)) > 1 { // the inline KEK
			t.Errorf("missing %v, %v", st.Missing, st.Problems)
		}
	})
}

// butNoBackup are the problems but for that there is no backup, which these clusters never make.
func butNoBackup(all []keyring.Problem) []keyring.Problem {
	return slices.DeleteFunc(slices.Clone(all), func(p keyring.Problem) bool { return p.Kind == keyring.ProblemBackup })
}

// TestHealthyClusterHasNoProblems at no moment, on no server, whatever is done in it.
func TestHealthyClusterHasNoProblems(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		began := leader.Keyring.Keys()[0].Activated
		time.Sleep(time.Minute)
		for _, s := range c.Servers {
			go func() {
				for {
					changed := s.Keyring.Changed()
					st, err := s.Keyring.Status(t.Context())
					if err != nil {
						return
					}
					for _, p := range st.Problems {
						fresh := time.Since(began) < 10*time.Minute // then a backup is asked for
						if p.Kind != keyring.ProblemInlineKEK && (p.Kind != keyring.ProblemBackup || p.Severity != keyring.SeverityNotice || fresh) {
							t.Errorf("%s: %s", s.ID, p)
						}
					}
					select {
					case <-changed:
					case <-t.Context().Done():
						return
					}
				}
			}()
		}
		for i := range 5 {
			o := keyring.RotateOptions{}
			if i%2 == 1 {
				o.Publish = time.Now().Add(5 * time.Minute)
			}
			if _, err := leader.Keyring.Rotate(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			time.Sleep(6 * time.Minute) // virtual
		}
	})
}

// TestPoliciesThatDifferAreAProblem on the leader and on the server that differs, with both values, until it has been
// restarted with the right ones.
func TestPoliciesThatDifferAreAProblem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var right atomic.Bool
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			if cfg.Tokens.MaxTTL = 2 * time.Hour; s.ID == "s3" && !right.Load() {
				cfg.Tokens.MaxTTL, cfg.Rotation.Every = time.Hour, 48*time.Hour
			}
		}})
		keyringtest.Ready(t, c)
		for leader, want := range map[raft.ServerID]map[raft.ServerID][]raft.ServerID{ // of which server each one says it
			"s1": {"s1": {"s3"}, "s3": {"s1"}}, "s3": {"s1": {"s3"}, "s2": {"s3"}, "s3": {"s1", "s2"}},
		} {
			keyringtest.MakeLeader(t, c, c.Server(leader))
			time.Sleep(2 * time.Minute) // virtual
			for _, s := range c.Servers {
				var of []raft.ServerID
				for _, p := range keyringtest.Problems(t, s, keyring.ProblemPolicy) {
					of = append(of, p.Server)
					for _, text := range []string{`"1h0m0s"`, `"2h0m0s"`, "Tokens.MaxTTL", "Rotation.Every", "on s3", "on " + string(s.ID), "on " + string(p.Server)} {
						if !strings.Contains(p.Detail, text) {
							t.Errorf("%s does not say %s: %v", s.ID, text, p)
						}
					}
				}
				if !slices.Equal(of, want[s.ID]) {
					t.Errorf("%s leads, and %s says it of %q", leader, s.ID, of)
				}
			}
		}
		right.Store(true)
		c.Restart(c.Server("s3"))
		keyringtest.Ready(t, c)
		time.Sleep(2 * time.Minute)
		for _, s := range c.Servers {
			if ps := keyringtest.Problems(t, s, keyring.ProblemPolicy); len(ps) > 0 {
				t.Errorf("%s: %v", s.ID, ps)
			}
		}
	})
}

// TestPoliciesOfALeaderThatWasRestarted, and leads again, are asked again by a server that has seen no other leader.
func TestPoliciesOfALeaderThatWasRestarted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var right atomic.Bool
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			if s.ID == "s3" && !right.Load() {
				cfg.Rotation.Every = 48 * time.Hour
			}
		}})
		keyringtest.Ready(t, c)
		s1, s2, s3 := c.Server("s1"), c.Server("s2"), c.Server("s3")
		keyringtest.MakeLeader(t, c, s3)
		time.Sleep(2 * time.Minute) // virtual
		if ps := keyringtest.Problems(t, s1, keyring.ProblemPolicy); len(ps) == 0 {
			t.Fatal("no problem")
		}
		c.Partition(s1)
		time.Sleep(time.Minute)
		if _, err := s3.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Stop(s2) // s1 has not got the last entries, so that s3 alone can be elected
		right.Store(true)
		c.Restart(s3)
		c.Partition()
		keyringtest.Ready(t, c)
		time.Sleep(2 * time.Minute)
		if ps := keyringtest.Problems(t, s1, keyring.ProblemPolicy); c.Leader() != s3 || len(ps) > 0 {
			t.Errorf("%s leads: %v", c.Leader().ID, ps)
		}
	})
}
