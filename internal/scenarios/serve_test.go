package scenarios_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// refusalOf is what a server refuses a request with that comes from that ID, or nil.
func refusalOf(t *testing.T, s *keyringtest.Server, from raft.ServerID, request []byte) *peer.Refusal {
	t.Helper()
	b, err := s.Keyring.ServePeer(t.Context(), from, request)
	if err != nil {
		t.Fatal(err)
	}
	_, err = peer.DecodeAnswer[peer.AskAnswer](b)
	refusal := (*peer.Refusal)(nil)
	errors.As(err, &refusal)
	return refusal
}

// TestServePeerAnswersMembersAlone, whichever way a host's Transport has let the others in.
func TestServePeerAnswersMembersAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		s := keyringtest.Ready(t, c)
		active := keyringtest.Ring(s.FSM).Active().ID
		pull, err := peer.NewFetch([]peer.ID{peer.ID(active)})
		if err != nil {
			t.Fatal(err)
		}
		requests := map[string][]byte{
			"garbage": []byte("garbage"), "a key": pull.Request(),
			"whether it is held": encoded(t, peer.Request{Ask: &peer.AskRequest{IDs: []peer.ID{peer.ID(active)}}}),
		}
		kinds := reflect.TypeFor[peer.Request]()
		for i := range kinds.NumField() {
			kind, _, _ := strings.Cut(kinds.Field(i).Tag.Get("json"), ",")
			requests[kind] = []byte(`{"version":1,"` + kind + `":{}}`)
		}
		for what, request := range requests {
			for _, nonMember := range []raft.ServerID{"s9", "", "S1", "s1 "} {
				if r := refusalOf(t, s, nonMember, request); r == nil || r.Code != peer.NotMember {
					t.Errorf("%s, asked by %q: %v", what, nonMember, r)
				}
			}
			if r := refusalOf(t, s, "s2", request); r != nil && r.Code == peer.NotMember {
				t.Errorf("%s, asked by a member: %v", what, r)
			}
		}
	})
}

// TestOfferIsTheLeadersAlone: another member makes nobody write a key, though it has one to give.
func TestOfferIsTheLeadersAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 3})
		keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		id := keyring.KeyID{7}
		file, material := keyringtest.NewKeyFile(t, id, keyring.InlineKEK())
		s, other, leader := c.Server("s1"), c.Server("s2"), c.Server("s3")
		for _, from := range []*keyringtest.Server{other, leader} { // both find the file when they start
			c.Stop(from)
			from.Disk.Plant(nks.FileName(id), 0o600, file)
			c.Start(from)
			keyringtest.Ready(t, c)
		}
		keyringtest.MakeLeader(t, c, leader)
		offer := encoded(t, peer.Request{Offer: &peer.OfferRequest{
			ID: peer.ID(id), Algorithm: "EdDSA", Check: material.Check(id, "EdDSA"), Created: time.Now().UTC(),
		}})
		for _, from := range []*keyringtest.Server{other, leader} {
			r := refusalOf(t, s, from.ID, offer)
			if leads := from == leader; leads != (r == nil) || !leads && r.Code != peer.NotLeader {
				t.Errorf("offered by %s, which leads: %t: %v", from.ID, leads, r)
			}
			if got := keyringtest.FilesOf(s, id); (from == leader) != (len(got) == 1) {
				t.Errorf("offered by %s: files %v", from.ID, got)
			}
		}
	})
}

// TestRemovalIsConfirmedByALeaderThatIsOne: for as long as its lease a leader that is cut off takes itself
// for one, and a restore may have brought the key back where it is not.
func TestRemovalIsConfirmedByALeaderThatIsOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true, Now: true})
		leader := c.Leader()
		asker := keyringtest.Follower(c).ID
		request := encoded(t, peer.Request{Removed: &peer.RemovedRequest{IDs: []peer.ID{peer.ID(old)}}})
		if r := refusalOf(t, leader, asker, request); r != nil {
			t.Fatal(r)
		}
		synctest.Wait() // no answer of a follower's is on its way
		c.Partition(leader)
		if leader.Raft.State() != raft.Leader {
			t.Fatal("it knows already")
		}
		if r := refusalOf(t, leader, asker, request); r == nil || r.Code != peer.NotLeader {
			t.Errorf("cut off, it confirms: %v", r)
		}
	})
}

// TestRemovalIsNotConfirmedByAnAnswerFromBeforeTheQuestion: others may have led since a heartbeat was sent.
func TestRemovalIsNotConfirmedByAnAnswerFromBeforeTheQuestion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true, Now: true})
		leader := c.Leader()
		asker := keyringtest.Follower(c).ID
		request := encoded(t, peer.Request{Removed: &peer.RemovedRequest{IDs: []peer.ID{peer.ID(old)}}})
		held := make(chan struct{})
		c.OnEvent(func(e keyringtest.Event) keyringtest.Reply {
			if e.Server != leader && e.Kind == "log" {
				<-held // raft answers no heartbeat meanwhile
			}
			return keyringtest.Reply{}
		})
		leader.Raft.Barrier(0)
		time.Sleep(300 * time.Millisecond) // each follower has been sent one
		c.Partition(leader)
		time.AfterFunc(50*time.Millisecond, func() { close(held) })
		if leader.Raft.State() != raft.Leader {
			t.Fatal("it knows already")
		}
		if r := refusalOf(t, leader, asker, request); r == nil || r.Code != peer.NotLeader {
			t.Errorf("cut off, it confirms: %v", r)
		}
	})
}
