package scenarios_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// trail is what an audit hook is told.
type trail struct {
	mu     sync.Mutex // guards below
	events []keyring.Event
}

func (a *trail) add(e keyring.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
}

func (a *trail) all() []keyring.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.events)
}

// lines are the events as text, without the times; keys are numbered as they come.
func (a *trail) lines() (lines []string) {
	keys := map[keyring.KeyID]int{}
	for _, e := range a.all() {
		line := string(e.Step)
		if e.Key != (keyring.KeyID{}) {
			if keys[e.Key] == 0 {
				keys[e.Key] = len(keys) + 1
			}
			line += fmt.Sprint(" ", keys[e.Key])
		}
		if e.Actor != "" {
			line += " by " + e.Actor
		}
		lines = append(lines, line)
	}
	return lines
}

// TestEveryServerTellsOfEveryStep with the same index, time and actor.
func TestEveryServerTellsOfEveryStep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		trails := map[*keyringtest.Server]*trail{}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			trails[s] = &trail{}
			cfg.Audit, cfg.Data, cfg.Rotation.Every = trails[s].add, keyring.NoData{}, -1
		}})
		leader := keyringtest.Ready(t, c).Keyring
		first := leader.Keys()[0].ID
		alice, bob := keyring.WithActor(t.Context(), "alice"), keyring.WithActor(t.Context(), strings.Repeat("ü", 200))
		if _, err := leader.Rotate(alice, keyring.RotateOptions{Revoke: []keyring.KeyID{first}}); err != nil {
			t.Fatal(err)
		}
		if err := leader.Remove(bob, first, keyring.RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitRing(t, c)
		synctest.Wait()
		want := []string{
			"added 1", "activated 1", "added 2 by alice", "retired 1", "revoked 1", "activated 2",
			"rekeying 1 by " + strings.Repeat("ü", 127), "remove asked 1 by " + strings.Repeat("ü", 127),
			"deprecated 1", "removed 1",
		}
		events := trails[c.Leader()].all()
		for s, a := range trails {
			if got := a.lines(); !slices.Equal(got, want) {
				t.Errorf("%s tells of\n%s\nnot\n%s", s.ID, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if !slices.Equal(a.all(), events) {
				t.Errorf("%s tells of %v, the leader of %v", s.ID, a.all(), events)
			}
		}
		for i, e := range events {
			if time.Since(e.Time) > time.Hour || e.Index == 0 || i > 0 && e.Index < events[i-1].Index {
				t.Errorf("%+v after %+v", e, events[max(0, i-1)])
			}
		}
	})
}

// TestAuditIsToldAllBeforeCloseReturns, and a slow one holds up nothing else. Close waits for it as long as each call
// returns within 10 seconds.
func TestAuditIsToldAllBeforeCloseReturns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var told trail
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Audit = func(e keyring.Event) { time.Sleep(8 * time.Second); told.add(e) } // virtual
			cfg.Rotation.Every = -1
		}})
		began := time.Now()
		k := keyringtest.Ready(t, c).Keyring
		for range 10 {
			if _, err := k.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("ten rotations took %v", took)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		if n := len(told.all()); n != 2+10*3 {
			t.Errorf("told of %d steps", n)
		}
	})
}

// TestNodesForwardTheActor that a follower was asked by.
func TestNodesForwardTheActor(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var told trail
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		if cfg.Data = (keyring.NoData{}); cfg.ID == "s1" {
			cfg.Audit = told.add
		}
	})
	c.Ready(ctx)
	old := c.Nodes["s1"].Keyring().Keys()[0].ID
	var want []string
	var last keyring.KeyID
	for _, id := range []string{"s1", "s2", "s3"} {
		n := c.Nodes[raft.ServerID(id)]
		if _, err := n.Rotate(keyring.WithActor(ctx, "rotate "+id), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := n.Remove(keyring.WithActor(ctx, "remove "+id), old, keyring.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		last, old = old, n.Keyring().Keys()[0].ID
		want = append(want, "added by rotate "+id, "removed by remove "+id)
	}
	// Once more, which changes nothing: then s1 has applied it too.
	if err := c.Nodes["s1"].Remove(ctx, last, keyring.RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes["s1"].Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range told.all() {
		if e.Actor != "" {
			got = append(got, fmt.Sprintf("%s by %s", e.Step, e.Actor))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("told of %q, want %q", got, want)
	}
}

// TestEventToldAgainAfterARestartHasTheSameName: raft applies its log again. By Index, Step and Key each step is there
// once, with the same time and actor each time.
func TestEventToldAgainAfterARestartHasTheSameName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		told := &trail{}
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1, Configure: func(_ *keyringtest.Server, cfg *keyring.Config) {
			cfg.Audit, cfg.Rotation.Every, cfg.Tokens.Algorithm = told.add, -1, "EdDSA"
		}})
		s := keyringtest.Ready(t, c)
		v := keyringtest.Vault{TB: t}
		keyringtest.Rotate(t, c, &v, 3)
		synctest.Wait()
		once := told.all()
		for range 3 {
			c.Restart(s)
			keyringtest.Ready(t, c)
		}
		synctest.Wait()
		type name struct {
			index uint64
			step  keyring.Step
			key   keyring.KeyID
		}
		kept := map[name]keyring.Event{}
		for _, e := range told.all() {
			n := name{e.Index, e.Step, e.Key}
			if was, again := kept[n]; again && was != e {
				t.Errorf("%+v is told again as %+v", was, e)
			}
			kept[n] = e
		}
		if len(kept) != len(once) || len(told.all()) <= len(once) {
			t.Errorf("%d steps were told %d times, and have %d names", len(once), len(told.all()), len(kept))
		}
	})
}
