package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

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
		if holders := keyring.Ring(leader.FSM).Key(key.ID).Holders; len(holders) != 3 {
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

// TestManyKeysThatWaitHoldUpNothingElse: with peers that do not answer the live question, there is always a
// key about which it is due. Members come and go all the same.
func TestManyKeysThatWaitHoldUpNothingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			return keyringtest.Reply{Hang: e.Kind == "call" && strings.Contains(e.What, `"ask"`)}
		})
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // a step takes up to 2
			if _, err := leader.Keyring.Rotate(ctx, keyring.RotateOptions{}); !errors.Is(err, keyring.ErrNotDurable) {
				t.Fatal(err)
			}
			cancel()
		}
		time.Sleep(time.Minute) // virtual
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			if err := keyring.BetweenSteps(ctx, leader.Keyring, func(context.Context) error { return nil }); err != nil {
				t.Error(err)
			}
			cancel()
		}
	})
}

// TestWhoHasGoneGetsNoTurn: what it has found out, such as that nobody answers, may be only its own end.
func TestWhoHasGoneGetsNoTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		leader := keyringtest.Ready(t, keyringtest.NewCluster(t, keyringtest.Options{Servers: 1}))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 {
			synctest.Wait() // the leader's loop is waiting
			err := keyring.BetweenSteps(ctx, leader.Keyring, func(context.Context) error {
				t.Error("it has one")
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
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
		lost := keyring.Ring(first.FSM).Prepublished()[0].ID
		c.Stop(first)
		heal()
		leader := c.Leader()
		keyringtest.Rotate(t, c, &v, 1)
		time.Sleep(5 * time.Minute) // virtual
		if got := keyringtest.StateOf(leader, lost); got != keyring.StatePrepublished {
			t.Errorf("the key is %q, and one server has not answered yet", got)
		}
		if p := keyringtest.Problems(t, leader, keyring.ProblemKeyPending); len(p) != 1 || p[0].Key != lost {
			t.Errorf("Status has pending keys %v, want %s", p, lost)
		}
		c.Remove(first)
		c.Add("s4")
		time.Sleep(5 * time.Minute) // virtual
		if got := keyringtest.StateOf(leader, lost); got != "" || !keyring.Ring(leader.FSM).WasRemoved(lost) {
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

// TestLostScheduledKeyIsReplaced loses the next key with a leader that nobody replaces: the
// rotation still happens, with another key.
func TestLostScheduledKeyIsReplaced(t *testing.T) {
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
		old := keyring.Ring(first.FSM).Active().ID
		heal := keyringtest.Refuse(c, "fetch")
		time.Sleep(9*day + time.Hour) // virtual
		pending := keyring.Ring(first.FSM).Prepublished()
		if len(pending) == 0 || !pending[0].Scheduled {
			t.Fatalf("a day ahead %d keys are prepublished", len(pending))
		}
		c.Stop(first)
		heal()
		time.Sleep(2 * day) // virtual
		leader := c.Leader()
		if got := keyringtest.StateOf(leader, old); got != keyring.StateInactive {
			t.Errorf("two days later the old key is %s", got)
		}
		if err := v.Seal(leader); err != nil {
			t.Error(err)
		}
		v.Check(c)
		keyringtest.CheckOneActive(t, c)
	})
}

// TestRotationByHandMovesTheSchedule counts the period from the last activation, whoever
// asked for it.
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

// TestServerWithAnotherKeystoreThanIsRecordedGetsNoVote, though it says that it holds every key: what is
// recorded of the keystore that it had before is not there any more.
func TestServerWithAnotherKeystoreThanIsRecordedGetsNoVote(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	var voted atomic.Bool
	tried := make(chan struct{}, 1)
	tell := func() {
		select {
		case tried <- struct{}{}:
		default:
		}
	}
	log := io.MultiWriter(logged{"it says that it holds 1 of 1 keys", tell}, logged{"server becomes a voter: id=s9", func() {
		voted.Store(true)
		tell()
	}})
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) { cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: log}) })
	c.Ready(ctx)
	leader := c.Nodes[c.Nodes["s1"].Leader()]
	recorded, another := peer.ID{1}, peer.ID{2}
	present := atomic.Pointer[peer.ID]{}
	present.Store(&another)
	ln := keyringtest.Listen(t)
	defer c.Pose("s9", ln, func(_ context.Context, _ peer.Identity, _ string, body []byte) ([]byte, error) {
		q, err := peer.DecodeRequest(body)
		switch {
		case err != nil:
			return []byte(`{}`), nil // the node's greeting
		case q.Ask != nil:
			return peer.Response{Ask: &peer.AskAnswer{Keystore: *present.Load(), Held: q.Ask.IDs}}.Encode()
		}
		return peer.Response{Hello: &peer.HelloAnswer{Build: meta.Version, Keystore: *present.Load()}}.Encode()
	})()
	if err := leader.AddServer(ctx, "s9", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	var held []keyring.KeyID
	for _, key := range leader.Keyring().Keys() {
		held = append(held, key.ID)
	}
	hold := meta.Hold{Server: "s9", Keystore: meta.KeystoreID(recorded), Gained: held}
	if err := keyring.Propose(ctx, leader.Keyring(), meta.Command{Hold: &hold}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tried:
	case <-ctx.Done():
		t.Fatal("nobody thinks of giving it a vote")
	}
	if voted.Load() {
		t.Error("it gets one")
	}
	present.Store(&recorded)
	c.Await(ctx, leader, "of the opinion that it may vote", func(st keyring.Status) bool {
		return slices.ContainsFunc(st.Servers, func(s raft.Server) bool { return s.ID == "s9" && s.Suffrage == raft.Voter })
	})
}

// logged does something when a text is logged.
type logged struct {
	text string
	do   func()
}

func (l logged) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(l.text)) {
		l.do()
	}
	return len(b), nil
}

// TestServerVotesWithoutAKeyThatSealedNothing and that no server which answers has, while it is
// not dropped because another one does not answer.
func TestServerVotesWithoutAKeyThatSealedNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 1, nil)
	c.Ready(ctx)
	leader := c.Nodes["s1"]
	if err := leader.AddServer(ctx, "s9", "127.0.0.1:9"); err != nil { // and is never started
		t.Fatal(err)
	}
	key := keyringtest.NewKeyID()
	err := keyring.Propose(ctx, leader.Keyring(), meta.Command{Add: &meta.Add{Key: meta.NewKey{
		ID: key, Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1}, Created: time.Now().UTC().Round(0),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.Newcomer("s4")
	cfg.Join = []string{"s1@" + c.Addrs["s1"]}
	if err := leader.AddServer(ctx, "s4", c.Addrs["s4"]); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	c.Await(ctx, leader, "a voter", func(st keyring.Status) bool {
		return slices.ContainsFunc(st.Servers, func(s raft.Server) bool { return s.ID == "s4" && s.Suffrage == raft.Voter })
	})
	st, err := n.Keyring().Status(ctx)
	if err != nil || len(st.Keys) != 2 || !slices.Equal(st.Missing, []keyring.KeyID{key}) {
		t.Errorf("it votes with %d keys, missing %v; want all but %s; %v", len(st.Keys), st.Missing, key, err)
	}
	if err := leader.Leave(ctx); err != nil { // s4 alone votes then
		t.Errorf("the other one leaves: %v", err)
	}
}
