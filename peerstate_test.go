package keyring_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// stateOf is what a server answers when another asks for its state.
func stateOf(t *testing.T, s *keyringtest.Server, from raft.ServerID) *peer.StateAnswer {
	t.Helper()
	request, err := peer.Request{State: &peer.StateRequest{Confirm: true}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Keyring.ServePeer(t.Context(), from, request)
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
		if !a.Leads || a.Term != leader.Raft.CurrentTerm() || a.Entry == 0 || a.Entry != keyring.LastEntry(leader.FSM) || a.Applied < a.Entry {
			t.Errorf("the leader says %+v", a)
		}
		if !a.Time.Equal(time.Now()) {
			t.Errorf("its clock is %v", a.Time)
		}
		if a := stateOf(t, other, leader.ID); a.Leads || a.Entry != keyring.LastEntry(leader.FSM) {
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
		var gates gates
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: gates.app})
		leader := keyringtest.Ready(t, c)
		asker := keyringtest.Follower(c).ID
		keyringtest.AwaitKeys(t, c)
		open := gates.shut(leader.ID)
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
		var gates gates
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3, App: gates.app})
		leader := keyringtest.Ready(t, c)
		asker := keyringtest.Follower(c).ID
		open := gates.shut(leader.ID)
		leader.Raft.Apply([]byte("slow"), 0)
		time.AfterFunc(10*time.Second, open)
		began := time.Now()
		ask := func(request peer.Request) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if b, err := leader.Keyring.ServePeer(ctx, asker, must(request.Encode())); !errors.Is(err, context.DeadlineExceeded) {
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
