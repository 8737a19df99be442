package keyring_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
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
	"no Mux":                    func(*keyring.FSM) raft.FSM { return &app{} },
	"another FSM":               func(*keyring.FSM) raft.FSM { return keyring.NewFSM() },
	"a Mux of another":          func(*keyring.FSM) raft.FSM { return keyring.Mux(keyring.NewFSM(), &app{}) },
	"a wrapper around the Mux":  func(f *keyring.FSM) raft.FSM { return unmarked{keyring.Mux(f, &app{})} },
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
					hosts := newHosts(t, servers)
					plantKey(t, hosts[0].disk, keyring.KeyID{7}, keyring.InlineKEK()) // to be adopted
					for _, h := range hosts {
						h.fsm = keyring.NewFSM()
						h.run(t, wire(h.fsm))
						h.openKeyring(t)
					}
					time.Sleep(time.Minute)
					var leader *host
					for _, h := range hosts {
						if h.raft.State() == raft.Leader {
							leader = h
						}
						ctx, cancel := context.WithTimeout(t.Context(), time.Second)
						err := h.keyring.WaitReady(ctx)
						cancel()
						st, _ := h.keyring.Status(t.Context())
						if h != leader && strings.HasPrefix(name, "a wrapper") {
							continue // it is given entries, and can't know of those that it is not given
						}
						if err == nil || !strings.Contains(err.Error(), notApplied) ||
							len(st.Problems) == 0 || st.Problems[0].Kind != keyring.ProblemNotApplied {
							t.Errorf("%s: WaitReady: %v, problems %v", h.id, err, st.Problems)
						}
					}
					before := leader.raft.LastIndex()
					time.Sleep(10 * time.Minute)
					if n := leader.raft.LastIndex() - before; n > 40 {
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
		hosts := newHosts(t, 1)
		h := hosts[0]
		h.open(t, &app{})
		leaderOf(t, hosts)
		old := h.keyring.Keys()[0].ID
		if _, err := h.keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := h.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		h.stop(t)
		h.fsm = keyring.NewFSM()
		h.run(t, unmarked{keyring.Mux(h.fsm, &app{})})
		h.openKeyring(t)
		leaderOf(t, hosts)
		calls := map[string]func() error{
			"Remove": func() error { return h.keyring.Remove(t.Context(), old, keyring.RemoveOptions{Force: true}) },
			"Rotate": func() error { _, err := h.keyring.Rotate(t.Context(), keyring.RotateOptions{}); return err },
		}
		for range 3 {
			for name, call := range calls {
				if err := call(); err == nil || !strings.Contains(err.Error(), notApplied) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		st, err := h.keyring.Status(t.Context())
		if err != nil || len(st.Orphans) > 1 || st.Ready {
			t.Errorf("%v, ready %v, %d key files that nobody needs", err, st.Ready, len(st.Orphans))
		}
		h.stop(t)
		h.open(t, &app{}) // wired as it was
		if leaderOf(t, hosts); problemOf(t, h, keyring.ProblemNotApplied) != "" {
			t.Errorf("wired as it was: %s", problemOf(t, h, keyring.ProblemNotApplied))
		}
	})
}

func problemOf(t *testing.T, h *host, kind keyring.ProblemKind) string {
	t.Helper()
	st, err := h.keyring.Status(t.Context())
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
		c := newCluster(t, keyringtest.Options{Servers: 3})
		rotateOn(t, c)
		leader, other := ready(t, c), follower(c)
		time.Sleep(time.Minute)
		var reports atomic.Int32
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			switch {
			case e.Kind == "call" && e.To == other.ID && strings.Contains(e.What, `"offer"`):
				return keyringtest.Reply{Err: errAway}
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
		keyring.AwaitHolders(leader.Keyring, key.ID, 3)
	})
}
