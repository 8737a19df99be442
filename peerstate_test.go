package keyring_test

import (
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
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, keyringtest.Options{Servers: 3})
		rotateOn(t, c)
		leader, other := ready(t, c), follower(c)
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
