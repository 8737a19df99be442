package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// wantSuffrage wants a server to be a member that votes, or not, as that one knows.
func wantSuffrage(t *testing.T, s *keyringtest.Server, id raft.ServerID, want raft.ServerSuffrage, when string) {
	t.Helper()
	if m, known := memberOf(s, id); !known || m.Suffrage != want {
		t.Errorf("%s: %s is a member: %t, %v", when, id, known, m.Suffrage)
	}
}

// within calls with a context that ends after that.
func within(t *testing.T, d time.Duration, call func(context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return call(ctx)
}

// TestServerIsAddedAndVotesByOneCall, which says what the server lacks if it ends before, and may be called again there and
// on the next leader.
func TestServerIsAddedAndVotesByOneCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		heal := keyringtest.Refuse(c, "fetch")
		c.StartFresh("s4")
		add := func(ctx context.Context) error {
			return leader.Keyring.AddVoter(ctx, "s4", "s4", keyring.AddServerOptions{})
		}
		err := within(t, time.Minute, add)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, keyring.ErrKeyMissing) || !strings.Contains(err.Error(), "it lacks 1 key") {
			t.Errorf("while it gets no key: %v", err)
		}
		wantSuffrage(t, leader, "s4", raft.Nonvoter, "without a key")
		added := make(chan error)
		go func() { added <- within(t, time.Minute, add) }()
		time.Sleep(time.Second) // virtual
		heal()
		if err := <-added; err != nil {
			t.Errorf("when it gets its key: %v", err)
		}
		wantSuffrage(t, leader, "s4", raft.Voter, "added")
		keyringtest.MakeLeader(t, c, keyringtest.Follower(c))
		leader = keyringtest.Ready(t, c)
		if err := within(t, time.Minute, add); err != nil {
			t.Errorf("again, on the next leader: %v", err)
		}
		wantSuffrage(t, leader, "s4", raft.Voter, "added twice")
	})
}

// TestServerWithoutAKeyringIsAddedInVainAndNotInSilence: the call, Status and the log say that it does not answer.
func TestServerWithoutAKeyringIsAddedInVainAndNotInSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Log: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Info})})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply { // as of a host that serves no ServePeer, and has no Transport
			if e.Kind == "call" && (e.To == "s4" || e.Server.ID == "s4") {
				return keyringtest.Reply{Err: errors.New("404 page not found")}
			}
			return keyringtest.Reply{}
		})
		c.StartFresh("s4")
		const why = "it lacks 1 key, and its keyring does not answer: call s4: 404 page not found"
		for i, add := range []func(context.Context) error{
			func(ctx context.Context) error {
				return leader.Keyring.AddVoter(ctx, "s4", "s4", keyring.AddServerOptions{})
			},
			func(ctx context.Context) error { return leader.Keyring.PromoteServer(ctx, "s4") },
		} {
			if err := within(t, time.Minute, add); !errors.Is(err, keyring.ErrKeyMissing) || !strings.Contains(err.Error(), why) {
				t.Errorf("call %d: %v", i, err)
			}
		}
		if err := leader.Keyring.PromoteServers(t.Context()); err != nil {
			t.Errorf("a server that lacks keys is no error: %v", err)
		}
		if p := keyringtest.Problems(t, leader, keyring.ProblemNonvoter); len(p) != 1 || p[0].Server != "s4" || p[0].Detail != why {
			t.Errorf("Status says %v", p)
		}
		c.Close() // nothing is logged any more
		if n := strings.Count(log.String(), why); n != 1 {
			t.Errorf("the log says %d times why it has no vote:\n%s", n, log.String())
		}
	})
}

// promoteAll has the leader promote whom it may, and gives that some time.
func promoteAll(t *testing.T, c *keyringtest.Cluster) *keyringtest.Server {
	t.Helper()
	leader := keyringtest.Ready(t, c)
	for range 5 {
		if err := leader.Keyring.PromoteServers(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second) // virtual
	}
	return leader
}

// TestPermanentNonvoterIsPromotedByNameAlone, whatever is restarted, whoever leads, and though it is added or readmitted again. It is
// no problem.
func TestPermanentNonvoterIsPromotedByNameAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		replica := c.StartFresh("s4")
		for range 2 {
			if err := leader.Keyring.AddNonvoter(t.Context(), "s4", "s4", keyring.AddServerOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		keyringtest.AwaitKeys(t, c)
		want := func(when string) {
			t.Helper()
			leader := promoteAll(t, c)
			keyringtest.AwaitKeys(t, c)
			wantSuffrage(t, leader, "s4", raft.Nonvoter, when)
			for _, s := range c.Servers {
				st := keyringtest.StatusOf(t, s)
				if !slices.Equal(st.Nonvoters, []raft.ServerID{"s4"}) || len(keyringtest.Problems(t, s, keyring.ProblemNonvoter)) > 0 {
					t.Errorf("%s: %s says that %q are permanent non-voters: %v", when, s.ID, st.Nonvoters, st.Problems)
				}
			}
		}
		want("added")
		if err := leader.Keyring.AddVoter(t.Context(), "s4", "s4", keyring.AddServerOptions{}); err == nil || !strings.Contains(err.Error(), "PromoteServer") {
			t.Errorf("AddVoter: %v", err)
		}
		c.Stop(replica)
		if err := leader.Keyring.AddServer(t.Context(), "s4", "s4", keyring.AddServerOptions{}); err != nil {
			t.Error(err)
		}
		if err := leader.Keyring.ReadmitServer(t.Context(), "s4", "s4"); err != nil {
			t.Error(err)
		}
		c.Start(replica)
		want("added again, readmitted, and started again")
		keyringtest.MakeLeader(t, c, c.Server(keyringtest.Besides(c.Leader().ID))) // a voter
		want("by another leader")
		for _, s := range c.Servers {
			if err := s.Raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
			c.Restart(s)
		}
		want("all were restarted, from snapshots")
		promoted(t.Context(), t, keyringtest.Ready(t, c), "s4")
		keyringtest.AwaitKeys(t, c)
		for _, s := range c.Servers {
			wantSuffrage(t, s, "s4", raft.Voter, "promoted by name")
			if ring := keyringtest.Ring(s.FSM); ring.IsNonvoter("s4") || len(keyringtest.StatusOf(t, s).Nonvoters) > 0 {
				t.Errorf("%s takes it for a permanent non-voter", s.ID)
			}
		}
	})
}

// TestVoterIsDemotedIfTheOthersCanDoWithoutIt, is promoted by name alone, and keeps its keys.
func TestVoterIsDemotedIfTheOthersCanDoWithoutIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		id := keyringtest.Follower(c).ID
		heal := keyringtest.Refuse(c, "ask")
		if err := leader.Keyring.DemoteServer(t.Context(), id); !errors.Is(err, keyring.ErrNotDurable) {
			t.Errorf("demoted while the others do not say what they hold: %v", err)
		}
		if err := leader.Keyring.DemoteServer(t.Context(), "s9"); !errors.Is(err, keyring.ErrNotMember) {
			t.Errorf("a server that is no member: %v", err)
		}
		wantSuffrage(t, leader, id, raft.Voter, "refused")
		if len(keyringtest.Ring(leader.FSM).Nonvoters) > 0 {
			t.Error("a refused demotion has left a record")
		}
		heal()
		for range 2 {
			if err := leader.Keyring.DemoteServer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			wantSuffrage(t, promoteAll(t, c), id, raft.Nonvoter, "demoted")
		}
		if err := leader.Keyring.AddNonvoter(t.Context(), leader.ID, raft.ServerAddress(leader.ID), keyring.AddServerOptions{}); err == nil || !strings.Contains(err.Error(), "DemoteServer") {
			t.Errorf("a voter is added as a non-voter: %v", err)
		}
		if _, err := c.Server(id).Keyring.Decrypt(sealedBy(t, leader), nil); err != nil {
			t.Errorf("a demoted server opens nothing: %v", err)
		}
		if err := leader.Keyring.DemoteServer(t.Context(), leader.ID); !errors.Is(err, keyring.ErrNotLeader) {
			t.Errorf("a leader that is to demote itself: %v", err)
		}
		next := keyringtest.Ready(t, c)
		if next == leader {
			t.Fatal("it has not handed over")
		}
		if err := next.Keyring.DemoteServer(t.Context(), leader.ID); err != nil {
			t.Errorf("the next leader: %v", err)
		}
		if err := next.Keyring.DemoteServer(t.Context(), next.ID); err == nil || !strings.Contains(err.Error(), "last voter") {
			t.Fatalf("the last voter: %v", err)
		}
		for _, id := range []raft.ServerID{leader.ID, id} {
			promoted(t.Context(), t, next, id)
		}
		if n := len(keyringtest.Ring(next.FSM).Nonvoters); n > 0 {
			t.Errorf("%d are recorded as permanent non-voters, and all vote", n)
		}
	})
}

func sealedBy(t *testing.T, s *keyringtest.Server) []byte {
	t.Helper()
	sealed, err := s.Keyring.Encrypt([]byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// TestNoKeyIsActivatedWhileAVoterIsDemoted: what the others hold was asked before there was that key, of which they would be no
// majority.
func TestNoKeyIsActivatedWhileAVoterIsDemoted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		demoted := keyringtest.Follower(c)
		stays := c.Server(otherThan(leader.ID, demoted.ID))
		q := holdQuestion(c, leader, stays, nil, stays.ID)
		done := make(chan error)
		go func() { done <- leader.Keyring.DemoteServer(t.Context(), demoted.ID) }()
		<-q.asked
		rotated := make(chan error)
		go func() {
			_, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
			rotated <- err
		}()
		time.Sleep(time.Second) // virtual; the question waits for two
		made := keyringtest.Ring(leader.FSM).Prepublished()
		if len(made) != 1 {
			t.Fatalf("%d keys wait for activation while a voter is demoted", len(made))
		}
		q.answer()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // virtual
		if got := keyringtest.StateOf(leader, keyring.KeyID(made[0].ID)); got != keyring.StatePrepublished {
			t.Errorf("the key is %s, and 1 of 2 voters holds it", got)
		}
		c.OnEvent(nil)
		if err := <-rotated; err != nil {
			t.Error(err)
		}
		if k := keyringtest.Ring(leader.FSM).Key(made[0].ID); k.State != meta.StateActive || !k.HeldBy(string(stays.ID)) {
			t.Errorf("the key is %s, held by %q", k.State, k.Holders)
		}
	})
}

// otherThan is the third of three servers.
func otherThan(a, b raft.ServerID) raft.ServerID {
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		if id != a && id != b {
			return id
		}
	}
	return ""
}

// TestPromotionThatHasBegunStopsAtAPermanentNonvoter: the server has become one while the promotion waited for its turn.
func TestPromotionThatHasBegunStopsAtAPermanentNonvoter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		c.StartFresh("s4")
		if err := leader.Keyring.AddServer(t.Context(), "s4", "s4", keyring.AddServerOptions{}); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 4) // else it is not asked
		asked, release := make(chan struct{}), make(chan struct{})
		var once sync.Once
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server == leader && e.Kind == "call" && e.To == "s4" && strings.Contains(e.What, `"hello":{`) {
				once.Do(func() { close(asked); <-release })
			}
			return keyringtest.Reply{}
		})
		recorded, promotion := make(chan error), make(chan error)
		go func() { recorded <- leader.Keyring.AddNonvoter(t.Context(), "s4", "s4", keyring.AddServerOptions{}) }()
		<-asked // whether it applies the record
		go func() { promotion <- leader.Keyring.PromoteServers(t.Context()) }()
		synctest.Wait() // it waits for its turn
		close(release)
		if err := errors.Join(<-recorded, <-promotion); err != nil {
			t.Error(err)
		}
		wantSuffrage(t, leader, "s4", raft.Nonvoter, "made a permanent non-voter while it was promoted")
	})
}

// TestRecordsThatACrashHasLeftEnd: that of a server that was not added then, and that of one whose vote was not taken.
func TestRecordsThatACrashHasLeftEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		leader := keyringtest.Ready(t, c)
		for _, id := range []string{"s2", "s9"} {
			keyringtest.MustPropose(t, c, meta.Command{Nonvoter: &meta.Nonvoter{Server: id}})
		}
		time.Sleep(time.Second) // virtual
		if left := keyringtest.Ring(leader.FSM).Nonvoters; len(left) > 0 {
			t.Errorf("%q are recorded", left)
		}
		c.StartFresh("s4")
		if err := leader.Keyring.AddNonvoter(t.Context(), "s4", "s4", keyring.AddServerOptions{}); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		if err := leader.Keyring.RemoveServer(t.Context(), "s4", keyring.RemoveServerOptions{}); err != nil {
			t.Fatal(err)
		}
		if left := keyringtest.Ring(leader.FSM).Nonvoters; len(left) > 0 { // at once: it may be added again
			t.Errorf("%q are recorded after the removal", left)
		}
	})
}
