package scenarios_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

const (
	hour = time.Hour
	day  = 24 * hour
	year = 365 * day
)

// back is by how much clocks are set back.
var back = []time.Duration{5 * time.Second, 2 * hour, day, year}

// clockSteps are by how much clocks are set.
var clockSteps = []time.Duration{-year, -day, -5 * time.Second, 5 * time.Second, day, year}

// forEach runs a test in a bubble of its own for each step of a clock.
func forEach(t *testing.T, by []time.Duration, test func(*testing.T, time.Duration)) {
	for _, d := range by {
		t.Run(d.String(), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { test(t, d) }) })
	}
}

// took waits until something is so, looking every second, and returns how long that took, at most a week.
func took(t testing.TB, is func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for ; !is() && time.Since(began) < 7*day; time.Sleep(time.Second) {
	}
	return time.Since(began)
}

// refuseCalls has calls that a test picks fail.
func refuseCalls(c *keyringtest.Cluster, call func(keyringtest.Event) bool) {
	c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
		if e.Kind == "call" && call(e) {
			return keyringtest.Reply{Err: errors.New("connection refused")}
		}
		return keyringtest.Reply{}
	})
}

// TestLeaderSaysSoonThatAClockWasSet: it asks the other servers each minute how far they are, and hears their time with it.
func TestLeaderSaysSoonThatAClockWasSet(t *testing.T) {
	forEach(t, []time.Duration{-hour, hour}, func(t *testing.T, by time.Duration) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: keyringtest.NoRotation})
		leader, f := keyringtest.Ready(t, c), keyringtest.Follower(c)
		time.Sleep(time.Hour)
		said := func() bool {
			all := keyringtest.Problems(t, leader, keyring.ProblemClock)
			return len(all) == 1 && all[0].Server == f.ID
		}
		f.Clock.Set(by)
		if d := took(t, said); d > 2*time.Minute {
			t.Errorf("the leader said so after %v", d)
		}
		f.Clock.Set(0)
		if d := took(t, func() bool { return !said() }); d > 2*time.Minute {
			t.Errorf("it is right again, and the leader said so after %v", d)
		}
	})
}

// A clock that was ahead when the cluster started is set right, while the leader waits for the last server.
func TestFirstKeyDoesNotWaitForTheClock(t *testing.T) {
	forEach(t, back, func(t *testing.T, by time.Duration) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		for _, s := range c.Servers {
			s.Clock.Set(by)
		}
		late := c.Servers[2].ID
		refuseCalls(c, func(e keyringtest.Event) bool { return e.To == late })
		time.Sleep(30 * time.Second)
		for _, s := range c.Servers {
			s.Clock.Set(0)
		}
		c.OnEvent(nil)
		leader := c.Leader()
		if d := took(t, func() bool { return len(leader.Keyring.Keys()) > 0 }); d > time.Minute {
			t.Errorf("the first key came %v after all servers were there", d)
		}
	})
}

// A server's clock is set back while it lacks a key that nobody gives it, and while it has not told what it holds.
func TestFetchAndReportDoNotWaitForTheClock(t *testing.T) {
	forEach(t, back, func(t *testing.T, by time.Duration) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Rotation.Every = -1 }})
		leader, f := keyringtest.Ready(t, c), keyringtest.Follower(c)
		refuseCalls(c, func(e keyringtest.Event) bool {
			return keyringtest.IsFetch(e, f.ID) || e.To == f.ID && strings.Contains(e.What, `"offer"`)
		})
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		f.Clock.Set(-by)
		refuseCalls(c, func(e keyringtest.Event) bool { return strings.Contains(e.What, `"hold"`) })
		missing := func() bool {
			s, err := f.Keyring.Status(t.Context())
			return err != nil || len(s.Missing) > 0
		}
		if d := took(t, func() bool { return !missing() }); d > 2*time.Minute {
			t.Errorf("the key came %v after its holders could be reached", d)
		}
		f.Clock.Set(-2 * by)
		c.OnEvent(nil)
		told := func() bool {
			i := slices.IndexFunc(leader.Keyring.Keys(), func(k keyring.Key) bool { return k.ID == key.ID })
			return slices.Contains(leader.Keyring.Keys()[i].Holders, f.ID)
		}
		if d := took(t, told); d > time.Minute {
			t.Errorf("the leader was told of it after %v", d)
		}
	})
}

// The leader's clock is set back while a batch is on its way to the host's store.
func TestRekeyDoesNotWaitForTheClock(t *testing.T) {
	forEach(t, back, func(t *testing.T, by time.Duration) {
		d := &oneRecord{}
		c := keyringtest.NewCluster(t, keyringtest.Options{Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.Data, cfg.RekeyRate = -1, d, 1
		}})
		s := keyringtest.Ready(t, c)
		d.replaced = func() { s.Clock.Set(-by) }
		var err error
		if d.record, err = s.Keyring.Encrypt([]byte("x"), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); err != nil {
			t.Fatal(err)
		}
		moved := func() bool {
			return !slices.ContainsFunc(s.Keyring.Keys(), func(k keyring.Key) bool { return k.State == keyring.StateRekeying })
		}
		if d := took(t, moved); d > time.Minute {
			t.Errorf("one record was moved in %v", d)
		}
	})
}

// oneRecord is a host's store with one record.
type oneRecord struct {
	record   []byte
	replaced func()
}

// Under implements keyring.SealedData.
func (d *oneRecord) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		yield(keyring.Sealed{Ref: "r", Ciphertext: d.record}, nil)
	}
}

// Replace implements keyring.SealedData.
func (d *oneRecord) Replace(_ context.Context, batch []keyring.Replacement) (int, error) {
	d.record = slices.Clone(batch[0].New)
	d.replaced()
	return 0, nil
}

// The leader's clock is set ahead while it waits for the time of a rotation: no timer notices.
func TestLeaderNoticesThatItsClockWasSet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: hour})
		leader := keyringtest.Ready(t, c)
		first := leader.Keyring.Keys()[0].ID
		time.Sleep(29*day + hour) // the next is prepublished
		for _, s := range c.Servers {
			s.Clock.Set(day)
		}
		rotated := func() bool {
			return len(leader.Keyring.Keys()) > 1 && leader.Keyring.Keys()[0].ID != first && active(t, leader) != first
		}
		if d := took(t, rotated); d > 15*time.Minute {
			t.Errorf("a rotation that was due came after %v", d)
		}
	})
}

// setAll sets the clocks of all servers.
func setAll(c *keyringtest.Cluster, ahead time.Duration) {
	for _, s := range c.Servers {
		s.Clock.Set(ahead)
	}
}

// inOrder requires that no key was retired before it was activated, on any server.
func inOrder(t testing.TB, c *keyringtest.Cluster) {
	t.Helper()
	for _, s := range c.Servers {
		for _, k := range s.Keyring.Keys() {
			if !k.Retired.IsZero() && k.Retired.Before(k.Activated) {
				t.Errorf("%s: key %s was activated at %v and retired at %v", s.ID, k.ID, k.Activated, k.Retired)
			}
		}
	}
}

// One server's clock is set, the leader's or another's, and is right again a day later. Keys rotate as if nothing were,
// a leader with a wrong clock hands over, and Status names both servers.
func TestOneWrongClockHarmsNoRotation(t *testing.T) {
	t.Parallel()
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("of the leader %t", leads), func(t *testing.T) {
			forEach(t, clockSteps, func(t *testing.T, by time.Duration) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: hour})
				wrong := keyringtest.Ready(t, c)
				if !leads {
					wrong = keyringtest.Follower(c)
				}
				began := time.Now()
				time.Sleep(28 * day)
				wrong.Clock.Set(by)
				time.Sleep(day)
				leader := c.Leader()
				said := keyringtest.ProblemAbout(t, leader, keyring.ProblemClock, wrong.ID)
				if leader == wrong {
					said = keyringtest.ProblemAbout(t, leader, keyring.ProblemClock, keyringtest.Follower(c).ID)
				}
				if far := by.Abs() > time.Minute; far != (said != "") && (leads || far) || far && leader == wrong {
					t.Errorf("%s leads, %s is wrong by %v: %q", leader.ID, wrong.ID, by, said)
				}
				time.Sleep(2 * day)
				wrong.Clock.Set(0)
				time.Sleep(time.Minute)
				for _, s := range c.Servers {
					if all := keyringtest.Problems(t, s, keyring.ProblemClock); len(all) > 0 {
						t.Errorf("%s: minutes after the clock was right: %v", s.ID, all)
					}
				}
				time.Sleep(34 * day)
				inOrder(t, c)
				var at []time.Duration
				for _, k := range c.Leader().Keyring.Keys() {
					if !k.Activated.IsZero() {
						at = append(at, k.Activated.Sub(began))
					}
				}
				if len(at) != 3 || at[1] < 29*day || at[1] > 31*day+day || at[0]-at[1] < 29*day || at[0]-at[1] > 31*day {
					t.Errorf("activated %v after the start", at)
				}
			})
		})
	}
}

// The clocks of all servers are ahead while the next key is made, or made and activated, and then are right. Keys rotate
// as often as before, also in a cluster of one, and Status tells which time is wrong.
func TestRotationGoesOnAfterClocksWereAhead(t *testing.T) {
	t.Parallel()
	for _, servers := range []int{1, 3} {
		for _, while := range []time.Duration{15 * time.Minute, 2 * hour} {
			t.Run(fmt.Sprintf("%d servers, for %v", servers, while), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := keyringtest.NewCluster(t, keyringtest.Options{Servers: servers, Pace: hour})
					keyringtest.Ready(t, c)
					setAll(c, year)
					time.Sleep(while)
					setAll(c, 0)
					time.Sleep(hour)
					for _, s := range c.Servers {
						if said := keyringtest.ProblemAbout(t, s, keyring.ProblemTime, ""); !strings.Contains(said, "ahead of this server's clock") {
							t.Errorf("%s: %q", s.ID, said)
						}
						if st, _ := s.Keyring.Status(t.Context()); time.Until(st.NextRotation) > 31*day {
							t.Errorf("%s: the next rotation is in %v", s.ID, time.Until(st.NextRotation))
						}
						retired := func(k keyring.Key) bool { return !k.Retired.IsZero() }
						told := func(p keyring.Problem) bool { return strings.Contains(p.Detail, "its tokens verify until") }
						if keys := s.Keyring.Keys(); slices.ContainsFunc(keys, retired) != slices.ContainsFunc(keyringtest.Problems(t, s, keyring.ProblemTime), told) {
							t.Errorf("%s: of tokens: %v", s.ID, keyringtest.Problems(t, s, keyring.ProblemTime))
						}
					}
					time.Sleep(90 * day)
					inOrder(t, c)
					for _, s := range c.Servers {
						if n := len(s.Keyring.Keys()); n < 4 || n > 6 {
							t.Errorf("%s: %d keys after 90 days", s.ID, n)
						}
					}
				})
			})
		}
	}
}

// The leader's clock is set back, or ahead, and the operator rotates at once: a token verifies until it expires, on each
// server whose clock is right.
func TestTokenOutlivesARotationByAWrongClock(t *testing.T) {
	t.Parallel()
	forEach(t, clockSteps, func(t *testing.T, by time.Duration) {
		c := keyringtest.NewSigningAt(t, hour, 3, func(cfg *keyring.Config) { cfg.Rotation.Every = -1 })
		keyringtest.Ready(t, c)
		time.Sleep(40 * day)
		leader := keyringtest.Ready(t, c)
		token := keyringtest.Sign(t, leader)
		leader.Clock.Set(by)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		inOrder(t, c)
		leader.Clock.Set(0)
		keyringtest.CheckVerifies(t, c, token, true, "after the rotation")
		time.Sleep(day - time.Minute)
		keyringtest.CheckVerifies(t, c, token, true, "a minute before its end")
		time.Sleep(3 * time.Minute)
		keyringtest.CheckVerifies(t, c, token, false, "after its end")
	})
}

// A clock is wrong while a key is removed, the leader's or all: its files are there for as long as it can be undone, and
// not for longer.
func TestUndoLastsByAWrongClock(t *testing.T) {
	t.Parallel()
	for _, all := range []bool{false, true} {
		t.Run(fmt.Sprintf("of all servers %t", all), func(t *testing.T) {
			forEach(t, clockSteps, func(t *testing.T, by time.Duration) {
				c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Pace: hour, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Rotation.Every = -1 }})
				leader := keyringtest.Ready(t, c)
				old := active(t, leader)
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				if leader.Clock.Set(by); all {
					setAll(c, by)
				}
				if err := leader.Keyring.Remove(t.Context(), old, keyring.RemoveOptions{Force: true}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(hour)
				setAll(c, 0)
				kept := func(want bool, when string) {
					for _, s := range c.Servers {
						if files := keyringtest.FilesOf(s, old); len(files) > 0 != want {
							t.Errorf("%s: %s: files %q", s.ID, when, files)
						}
					}
				}
				if time.Sleep(6 * day); !all || by > -day { // if all clocks are behind, all times are
					kept(true, "before the time to undo it is over")
				}
				time.Sleep(2*day + hour)
				kept(false, "after that")
			})
		})
	}
}

// active is the active key as a server knows it.
func active(t testing.TB, s *keyringtest.Server) keyring.KeyID {
	t.Helper()
	st, err := s.Keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.Active
}

// A verifier that is behind by the leeway, and allows for nothing, takes a token at once.
func TestTokenIsValidWhereClocksAreBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, leeway := range []time.Duration{time.Second, time.Minute, day} {
			c := keyringtest.NewSigning(t, 1, func(cfg *keyring.Config) { cfg.Tokens.Leeway = leeway })
			var claims struct{ Iat, Nbf int64 }
			if err := json.Unmarshal(keyringtest.DecodedPart(t, keyringtest.Sign(t, keyringtest.Ready(t, c)), 1), &claims); err != nil {
				t.Fatal(err)
			}
			if behind := time.Now().Add(-leeway).Unix(); claims.Nbf > behind || claims.Iat != time.Now().Unix() {
				t.Errorf("leeway %v: nbf %d, iat %d, and the verifier's clock shows %d", leeway, claims.Nbf, claims.Iat, behind)
			}
			c.Close()
		}
	})
}
