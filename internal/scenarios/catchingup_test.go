package scenarios_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestFollowerCatchesUpWithTheFSMAndNotWithRaft: raft counts as applied what it has handed to an FSM that may
// take its time. A server whose host's Apply is slow has not caught up before that is done.
func TestFollowerCatchesUpWithTheFSMAndNotWithRaft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gates keyringtest.Gates
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: gates.App})
		leader := keyringtest.Ready(t, c)
		slow := keyringtest.Follower(c)
		c.Stop(slow)
		open := gates.Shut(slow.ID)
		if err := leader.Raft.Apply([]byte("slow"), time.Minute).Error(); err != nil {
			t.Fatal(err)
		}
		key := keyringtest.RotateWhenReady(t, c)
		applied := leader.Raft.AppliedIndex()
		c.Start(slow)
		time.Sleep(time.Minute)
		if slow.Raft.AppliedIndex() < applied {
			t.Fatal("raft has not handed on the entries")
		}
		if keyringtest.StatusOf(t, slow).CaughtUp {
			t.Error("it has caught up, and its FSM has yet to apply what raft has handed to it")
		}
		open()
		keyringtest.Ready(t, c)
		if !keyringtest.StatusOf(t, slow).CaughtUp || slow.Keyring.Keys()[0].ID != key.ID {
			t.Error("it has not caught up")
		}
	})
}

// TestFollowerOfAnOlderLeaderCatchesUpByWhatItHears: a build that does not know the question refuses it.
func TestFollowerOfAnOlderLeaderCatchesUpByWhatItHears(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.RotateWhenReady(t, c)
		s := keyringtest.Follower(c)
		asked := 0
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			r, is := olderLeader(e)
			if is {
				asked++
			}
			return r
		})
		c.Restart(s)
		keyringtest.Ready(t, c)
		c.OnEvent(nil)
		if !keyringtest.StatusOf(t, s).CaughtUp || asked == 0 {
			t.Errorf("caught up %t, asked %d times", keyringtest.StatusOf(t, s).CaughtUp, asked)
		}
	})
}

// olderLeader has a server take every other one for a build that does not know the question.
func olderLeader(e keyringtest.Event) (keyringtest.Reply, bool) {
	if e.Kind != "call" || !strings.Contains(e.What, `"state"`) {
		return keyringtest.Reply{}, false
	}
	b, err := peer.Response{Refusal: &peer.Refusal{Code: peer.Unsupported}}.Encode()
	return keyringtest.Reply{Data: b, Err: err}, true
}

// TestFollowerOfAnOlderLeaderHasNotCaughtUpByHeartbeats: they tell who leads, and nothing of what is committed.
func TestFollowerOfAnOlderLeaderHasNotCaughtUpByHeartbeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		s := keyringtest.Follower(c)
		c.Stop(s)
		key := keyringtest.RotateWhenReady(t, c)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if r, ok := olderLeader(e); ok {
				return r
			}
			if e.Server == s && e.Kind == "log" {
				return keyringtest.Reply{Err: errors.New("nothing is replicated")}
			}
			return keyringtest.Reply{}
		})
		c.Restart(s)
		time.Sleep(time.Minute)
		if _, leader := s.Raft.LeaderWithID(); leader == "" || s.Raft.CommitIndex() > 0 {
			t.Fatalf("leader %q, committed %d", leader, s.Raft.CommitIndex())
		}
		if st := keyringtest.StatusOf(t, s); st.CaughtUp {
			t.Error("it has caught up, and has been told nothing of what is committed")
		}
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply { r, _ := olderLeader(e); return r })
		keyringtest.Ready(t, c)
		if st := keyringtest.StatusOf(t, s); !st.CaughtUp || st.Active != key.ID {
			t.Errorf("%+v", st)
		}
	})
}

// TestFollowerOfAnOlderLeaderCatchesUpThoughItsLogWasReplacedByLess: what it had at Open is never committed.
func TestFollowerOfAnOlderLeaderCatchesUpThoughItsLogWasReplacedByLess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		s := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		c.Partition(s)
		for range 1000 {
			s.Raft.Barrier(0) // nobody takes it
		}
		synctest.Wait()
		had := s.Raft.LastIndex()
		c.Stop(s)
		c.Leader()
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply { r, _ := olderLeader(e); return r })
		c.Partition()
		c.Restart(s)
		time.Sleep(time.Minute)
		if last := s.Raft.LastIndex(); last >= had {
			t.Fatalf("its log had %d entries and has %d", had, last)
		}
		if !keyringtest.StatusOf(t, s).CaughtUp {
			t.Error("it has not caught up")
		}
	})
}

// TestFollowerCatchesUpWithALeaderWhoseFSMLags: the leader can't confirm that it leads before its FSM has
// applied what came before, and that takes longer than another call may.
func TestFollowerCatchesUpWithALeaderWhoseFSMLags(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lagging atomic.Pointer[keyringtest.Server]
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: func(s *keyringtest.Server) raft.FSM {
			return laggingApp{&keyringtest.App{}, func() bool { return lagging.Load() == s }}
		}})
		leader := keyringtest.Ready(t, c)
		s := keyringtest.Follower(c)
		lagging.Store(leader)
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server == leader && e.Kind == "answer" && strings.Contains(e.What, `"state"`) {
				leader.Raft.Apply([]byte("slow"), 0)
			}
			return keyringtest.Reply{}
		})
		c.Restart(s)
		time.Sleep(time.Minute)
		if !keyringtest.StatusOf(t, s).CaughtUp {
			t.Error("it has not caught up")
		}
		c.OnEvent(nil)
		keyringtest.Ready(t, c)
	})
}

// laggingApp takes five seconds for an entry, while it lags.
type laggingApp struct {
	*keyringtest.App
	lags func() bool
}

func (a laggingApp) Apply(l *raft.Log) any {
	if a.lags() {
		time.Sleep(5 * time.Second)
	}
	return a.App.Apply(l)
}

// TestFollowerThatAskedBeforeTheFirstEntryCatchesUp: when the answer arrives, there is one.
func TestFollowerThatAskedBeforeTheFirstEntryCatchesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		var late atomic.Int32
		began := time.Now()
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			switch {
			case time.Since(began) > time.Minute:
			case time.Since(began) < 10*time.Second && strings.Contains(e.What, `"state"`):
				return keyringtest.Reply{Err: errors.New("not yet")} // nor does the leader lead
			case e.Kind == "call" && strings.Contains(e.What, `"hello"`): // without which there is no first entry
				return keyringtest.Reply{Err: errors.New("not yet")}
			case e.Kind == "called" && strings.Contains(e.What, `"state"`):
				late.Add(1)
				time.Sleep(time.Minute)
			}
			return keyringtest.Reply{}
		})
		keyringtest.Ready(t, c)
		c.OnEvent(nil)
		if late.Load() < 2 {
			t.Errorf("%d questions", late.Load())
		}
		time.Sleep(time.Minute) // virtual: Close does not wait that long for answers that are late
	})
}

// TestRestartedClusterCatchesUpFromItsSnapshots: no FSM has seen an entry of the keyring's, only its snapshot.
func TestRestartedClusterCatchesUpFromItsSnapshots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, Raft: func(conf *raft.Config) { conf.TrailingLogs = 0 }})
		key := keyringtest.RotateWhenReady(t, c)
		keyringtest.AwaitHolders(keyringtest.Ready(t, c).Keyring, key.ID, 3)
		time.Sleep(time.Minute)
		for _, s := range c.Servers {
			if err := s.Raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range c.Servers {
			c.Stop(s)
		}
		for _, s := range c.Servers {
			c.Start(s)
			if entry := stateOf(t, s, "s1").Entry; entry > 0 {
				t.Errorf("%s has entry %d beside its snapshot", s.ID, entry)
			}
		}
		keyringtest.Ready(t, c)
		for _, s := range c.Servers {
			if st := keyringtest.StatusOf(t, s); !st.CaughtUp || st.Active != key.ID {
				t.Errorf("%s: %+v", s.ID, st)
			}
		}
	})
}

// encoded is a request as servers send it.
func encoded(t *testing.T, request peer.Request) []byte {
	t.Helper()
	b, err := request.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// stateOf is what a server answers when another asks for its state.
func stateOf(t *testing.T, s *keyringtest.Server, from raft.ServerID) *peer.StateAnswer {
	t.Helper()
	b, err := s.Keyring.ServePeer(t.Context(), from, encoded(t, peer.Request{State: &peer.StateRequest{Confirm: true}}))
	if err != nil {
		t.Fatal(err)
	}
	a, err := peer.DecodeAnswer[peer.StateAnswer](b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestOnlyAConfirmedLeaderSaysThatItLeads: one that was cut off believes for a while that it leads, and
// does not know what another leads to.
func TestOnlyAConfirmedLeaderSaysThatItLeads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.RotateWhenReady(t, c)
		leader, other := keyringtest.Ready(t, c), keyringtest.Follower(c)
		time.Sleep(time.Second)
		a := stateOf(t, leader, other.ID)
		if !a.Leads || a.Term != leader.Raft.CurrentTerm() || a.Entry == 0 || a.Entry != keyringtest.LastEntry(t, leader) || a.Applied < a.Entry {
			t.Errorf("the leader says %+v", a)
		}
		if !a.Time.Equal(time.Now()) {
			t.Errorf("its clock is %v", a.Time)
		}
		if a := stateOf(t, other, leader.ID); a.Leads || a.Entry != keyringtest.LastEntry(t, leader) {
			t.Errorf("a follower says %+v", a)
		}
		c.Partition(leader)
		if leader.Raft.State() != raft.Leader {
			t.Fatal("it knows already that it was cut off")
		}
		if a := stateOf(t, leader, other.ID); a.Leads {
			t.Errorf("a leader that was cut off says %+v", a)
		}
	})
}

// TestQuestionsToTheLeaderShareOneEntry: a member that asks often has the log grow by no more than that.
func TestQuestionsToTheLeaderShareOneEntry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gates keyringtest.Gates
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: gates.App})
		leader := keyringtest.Ready(t, c)
		asker := keyringtest.Follower(c).ID
		keyringtest.AwaitKeys(t, c)
		open := gates.Shut(leader.ID)
		leader.Raft.Apply([]byte("slow"), 0)
		synctest.Wait()
		before := leader.Raft.LastIndex()
		var asked sync.WaitGroup
		for range 50 {
			asked.Go(func() {
				if a := stateOf(t, leader, asker); !a.Leads {
					t.Errorf("the leader says %+v", a)
				}
			})
		}
		time.Sleep(time.Second)
		open()
		asked.Wait()
		if n := leader.Raft.LastIndex() - before; n < 1 || n > 2 { // those who came after the first had begun have another
			t.Errorf("50 questions at a time have written %d entries", n)
		}
	})
}

// TestQuestionToTheLeaderEndsWithItsContext, and what it has begun is there for those who ask after it.
func TestQuestionToTheLeaderEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var gates keyringtest.Gates
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: gates.App})
		leader := keyringtest.Ready(t, c)
		asker := keyringtest.Follower(c).ID
		open := gates.Shut(leader.ID)
		leader.Raft.Apply([]byte("slow"), 0)
		time.AfterFunc(10*time.Second, open)
		began := time.Now()
		ask := func(request peer.Request) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if b, err := leader.Keyring.ServePeer(ctx, asker, encoded(t, request)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s, %v", b, err)
			}
		}
		ask(peer.Request{State: &peer.StateRequest{Confirm: true}})
		ask(peer.Request{Removed: &peer.RemovedRequest{IDs: []peer.ID{{1}}}})
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("the calls have taken %v", took)
		}
		if a := stateOf(t, leader, asker); !a.Leads {
			t.Errorf("the leader says %+v", a)
		}
	})
}
