package plan_test

import (
	"slices"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"pgregory.net/rapid"
)

// record is what makes a server a permanent non-voter, in the ring.
func record(id string) meta.Command { return meta.Command{Nonvoter: &meta.Nonvoter{Server: id}} }

func TestPromotableAreMembersWithoutAVote(t *testing.T) {
	ring, err := (&meta.Ring{}).Apply(1, []meta.Command{{Init: &meta.Init{Cluster: meta.ClusterID{1}}}, record("replica"), record("elsewhere")})
	if err != nil {
		t.Fatal(err)
	}
	servers := []string{"a", "new", "replica", "b", "newer"}
	if got := plan.Promotable(ring, servers, []string{"a", "b"}); !slices.Equal(got, []string{"new", "newer"}) {
		t.Errorf("%q are to be promoted", got)
	}
	if got := plan.Promotable(&meta.Ring{}, servers, servers); len(got) > 0 {
		t.Errorf("%q are, and all of them vote", got)
	}
}

// TestRecordsOfFormerNonvotersEnd: of a server that votes, and of one that is no member. That of a member without a vote stays.
func TestRecordsOfFormerNonvotersEnd(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.run(time.Minute)
	w.join("d", false)
	w.propose(record("b"), record("d"), record("gone"))
	w.retry = w.mono().Add(time.Minute)
	if a := w.next(); a.Kind != plan.Wait || a.Until != w.retry {
		t.Errorf("after a step has failed: %+v", a)
	}
	w.retry = 0
	if a := w.next(); a.Kind != plan.EndNonvoters || !slices.Equal(a.Servers, []string{"b", "gone"}) {
		t.Errorf("%+v", a)
	}
	w.run(time.Minute)
	if !slices.Equal(w.ring.Nonvoters, []string{"d"}) {
		t.Errorf("%q are recorded", w.ring.Nonvoters)
	}
	w.server("d").voter = true
	w.run(time.Minute)
	if len(w.ring.Nonvoters) > 0 {
		t.Errorf("%q are recorded", w.ring.Nonvoters)
	}
}

// endNonvoters ends records, if plan has chosen the right ones.
func (w *world) endNonvoters(servers []string) {
	w.Helper()
	for _, id := range servers {
		if i := slices.IndexFunc(w.servers, func(s *server) bool { return s.id == id && !s.departed && !s.voter }); i >= 0 {
			w.Fatalf("%s ends the record of %s, a member without a vote", w.clock(), id)
		}
		w.propose(meta.Command{Nonvoter: &meta.Nonvoter{Server: id, End: true}})
	}
}

// some is any member.
func (w *world) some(t *rapid.T) *server {
	s := rapid.SampledFrom(w.servers).Draw(t, "server index")
	if s.departed {
		t.Skip("departed")
	}
	return s
}

// votes are what happens to the votes of a cluster. A server that was demoted is promoted by name alone.
func votes(w *world) map[string]func(*rapid.T) {
	some := w.some
	canRecord := func(t *rapid.T) {
		if !w.majority() || w.ring.Cluster == (meta.ClusterID{}) {
			t.Skip("nothing can be recorded")
		}
	}
	return map[string]func(*rapid.T){
		"demote": func(t *rapid.T) {
			canRecord(t)
			if s := some(t); s != w.leader {
				w.propose(record(s.id))
				s.voter, s.permanent = false, true
			}
		},
		"record alone": func(t *rapid.T) { // the leader has crashed then
			canRecord(t)
			w.propose(record(rapid.SampledFrom([]string{some(t).id, "z"}).Draw(t, "server")))
		},
		"promote by name": func(t *rapid.T) {
			s := some(t)
			s.voter, s.permanent = true, false
		},
		"promote all": func(t *rapid.T) {
			voters, servers := w.configuration()
			for _, id := range plan.Promotable(w.ring, servers, voters) {
				if w.server(id).voter = true; w.server(id).permanent {
					t.Fatalf("%s is promoted, and nobody has named it", id)
				}
			}
		},
	}
}

// checkNonvoters wants those recorded to be members without a vote, and all that were demoted to be recorded.
func (w *world) checkNonvoters() {
	w.Helper()
	for _, id := range w.ring.Nonvoters {
		if s := w.server(id); s.departed || s.voter {
			w.Fatalf("%s is recorded as a permanent non-voter: it votes: %t, it has left: %t", id, s.voter, s.departed)
		}
	}
	for _, s := range w.servers {
		if s.permanent && !s.voter && !s.departed && !w.ring.IsNonvoter(s.id) {
			w.Fatalf("%s was demoted, and is not recorded", s.id)
		}
	}
}
