package scenarios_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// unmarked hands entries on without their extensions, as a wrapper that copies what it knows of.
type unmarked struct{ raft.FSM }

func (u unmarked) Apply(l *raft.Log) any {
	return u.FSM.Apply(&raft.Log{Index: l.Index, Term: l.Term, Type: l.Type, Data: l.Data})
}

// miswirings are the ways to have raft apply its log to another FSM than the keyring's.
var miswirings = map[string]func(*keyring.FSM) raft.FSM{
	"no Mux":                    func(*keyring.FSM) raft.FSM { return &keyringtest.App{} },
	"another FSM":               func(*keyring.FSM) raft.FSM { return keyring.NewFSM() },
	"a Mux of another":          func(*keyring.FSM) raft.FSM { return keyring.Mux(keyring.NewFSM(), &keyringtest.App{}) },
	"a wrapper around the Mux":  func(f *keyring.FSM) raft.FSM { return unmarked{keyring.Mux(f, &keyringtest.App{})} },
	"a wrapper around it alone": func(f *keyring.FSM) raft.FSM { return unmarked{f} },
}

// notApplied is what everything says that waits for raft to apply something.
const notApplied = "raft does not apply to this FSM"

// TestRaftThatAppliesElsewhereIsAProblem: it is named, by every server, and its log is not filled.
func TestRaftThatAppliesElsewhereIsAProblem(t *testing.T) {
	t.Parallel()
	for name, wire := range miswirings {
		for _, servers := range []int{1, 3} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hosts := keyringtest.NewHosts(t, servers)
					keyringtest.PlantKey(t, hosts[0].Disk, keyring.KeyID{7}, keyring.InlineKEK()) // to be adopted
					for _, h := range hosts {
						h.FSM = keyring.NewFSM()
						h.Run(t, wire(h.FSM))
						h.OpenKeyring(t)
					}
					time.Sleep(time.Minute)
					var leader *keyringtest.Host
					for _, h := range hosts {
						if h.Raft.State() == raft.Leader {
							leader = h
						}
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						err := h.Keyring.WaitReady(ctx)
						cancel()
						st, _ := h.Keyring.Status(t.Context())
						if h != leader && strings.HasPrefix(name, "a wrapper") {
							continue // it is given entries, and can't know of those that it is not given
						}
						if err == nil || !strings.Contains(err.Error(), notApplied) ||
							len(st.Problems) == 0 || st.Problems[0].Kind != keyring.ProblemNotApplied {
							t.Errorf("%s: WaitReady: %v, problems %v", h.ID, err, st.Problems)
						}
					}
					before := leader.Raft.LastIndex()
					time.Sleep(10 * time.Minute)
					if n := leader.Raft.LastIndex() - before; n > 40 {
						t.Errorf("%d entries in ten minutes", n)
					}
				})
			})
		}
	}
}

// TestCallsSayThatRaftAppliesElsewhere: on a server that had keys before it was miswired. What it can't have is
// not begun a second time, so that no key files are left.
func TestCallsSayThatRaftAppliesElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 1)
		h := hosts[0]
		h.Open(t, &keyringtest.App{})
		keyringtest.LeaderOf(t, hosts)
		old := h.Keyring.Keys()[0].ID
		if _, err := h.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := h.Raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		h.Stop(t)
		h.FSM = keyring.NewFSM()
		h.Run(t, unmarked{keyring.Mux(h.FSM, &keyringtest.App{})})
		h.OpenKeyring(t)
		keyringtest.LeaderOf(t, hosts)
		calls := map[string]func() error{
			"Remove": func() error { return h.Keyring.Remove(t.Context(), old, keyring.RemoveOptions{Force: true}) },
			"Rotate": func() error { _, err := h.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); return err },
		}
		for range 3 {
			for name, call := range calls {
				if err := call(); err == nil || !strings.Contains(err.Error(), notApplied) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		st, err := h.Keyring.Status(t.Context())
		if err != nil || len(st.Orphans) > 1 || st.Ready {
			t.Errorf("%v, ready %v, %d key files that nobody needs", err, st.Ready, len(st.Orphans))
		}
		h.Stop(t)
		h.Open(t, &keyringtest.App{}) // wired as it was
		if keyringtest.LeaderOf(t, hosts); problemOf(t, h, keyring.ProblemNotApplied) != "" {
			t.Errorf("wired as it was: %s", problemOf(t, h, keyring.ProblemNotApplied))
		}
	})
}

func problemOf(t *testing.T, h *keyringtest.Host, kind keyring.ProblemKind) string {
	t.Helper()
	st, err := h.Keyring.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range st.Problems {
		if p.Kind == kind {
			return p.Detail
		}
	}
	return ""
}

// TestReportsWithoutEffectAreFewer: each is an entry of raft's log.
func TestReportsWithoutEffectAreFewer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.RotateWhenReady(t, c)
		leader, other := keyringtest.Ready(t, c), keyringtest.Follower(c)
		time.Sleep(time.Minute)
		var reports atomic.Int32
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			switch {
			case e.Kind == "call" && e.To == other.ID && strings.Contains(e.What, `"offer"`):
				return keyringtest.Reply{Err: kektest.ErrDown}
			case e.Kind == "call" && e.Server == other && strings.Contains(e.What, `"hold"`):
				reports.Add(1)
				return keyringtest.Reply{Data: []byte(`{"version":1,"hold":{}}`)} // and nothing comes of it
			}
			return keyringtest.Reply{}
		})
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := reports.Load(); n < 10 || n > 80 {
			t.Errorf("%d reports in an hour", n)
		}
		c.OnEvent(nil)
		time.Sleep(2 * time.Minute)
		keyringtest.AwaitHolders(leader.Keyring, key.ID, 3)
	})
}
