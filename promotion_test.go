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
	log := io.MultiWriter(logged{"it says that it holds 1 of 1 keys", tell}, logged{"promoting a server: id=s9", func() {
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
			return []byte(`{}`), nil // the hello of a Node
		case q.Ask != nil:
			return peer.Response{Ask: &peer.AskAnswer{Keystore: *present.Load(), Held: q.Ask.IDs}}.Encode()
		}
		return peer.Response{Hello: &peer.HelloAnswer{Build: meta.Version, Keystore: *present.Load()}}.Encode()
	})()
	if err := leader.AddServer(ctx, "s9", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	var held []meta.KeyID
	for _, key := range leader.Keyring().Keys() {
		held = append(held, meta.KeyID(key.ID))
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
		ID: meta.KeyID(key), Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1}, Created: time.Now().UTC().Round(0),
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

// TestEntryThatFitsNoFrameIsRefused: raft would take it, and never get it to the others.
func TestEntryThatFitsNoFrameIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 1})
		s := keyringtest.Ready(t, c)
		hold := meta.Hold{Server: "a", Keystore: meta.KeystoreID{1}}
		for range keyring.MaxCommand / 36 { // the JSON of an ID has 38 bytes and a comma
			hold.Gained = append(hold.Gained, meta.KeyID(keyringtest.NewKeyID()))
		}
		if err := keyring.Propose(t.Context(), s.Keyring, meta.Command{Hold: &hold}); !errors.Is(err, keyring.ErrTooLong) {
			t.Errorf("%v", err)
		}
	})
}
