package plan_test

import (
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// TestLeaderAsksWhoHoldsAKeyThatCameWithASnapshot: at once, then later each time, and at once again when
// the ring has another holder. Meanwhile it goes on with all the rest.
func TestLeaderAsksWhoHoldsAKeyThatCameWithASnapshot(t *testing.T) {
	p := newProtocol(budgets{})
	active := p.ring.Active()
	s := p.situation()
	if a := plan.Next(p.ring, s); a.Kind != plan.Nothing {
		t.Errorf("a key that was activated here: %+v", a)
	}
	s.Unconfirmed = true
	if a := plan.Next(p.ring, s); a.Kind != plan.Confirm || a.Key != active.ID {
		t.Errorf("%+v", a)
	}
	probe := plan.Probe{}
	for range 3 {
		probe = probe.Again(active, plan.Verdict{}, s.Mono, 0)
	}
	s.Probes = map[meta.KeyID]plan.Probe{active.ID: probe}
	if a := plan.Next(p.ring, s); a.Kind != plan.Wait || a.Until != s.Mono.Add(400*time.Millisecond) {
		t.Errorf("after three failures: %+v", a)
	}
	s.Servers = []string{"b", "c"} // a has left
	if a := plan.Next(p.ring, s); a.Kind != plan.Forget {
		t.Errorf("meanwhile: %+v", a)
	}
	s.Servers = s.Voters
	p.apply(meta.Command{Hold: &meta.Hold{Server: "c", Keystore: p.keystore(2), Lost: []meta.KeyID{active.ID}}})
	if a := plan.Next(p.ring, s); a.Kind != plan.Confirm {
		t.Errorf("after a change of the holders: %+v", a)
	}
}

func TestKeyIsConfirmedByAMajorityOfTheVoters(t *testing.T) {
	id := keyID(1)
	holds := plan.Answer{Held: []meta.KeyID{id}}
	for name, tt := range map[string]struct {
		answers map[string]plan.Answer
		want    bool
	}{
		"nobody":         {nil, false},
		"one of three":   {map[string]plan.Answer{"a": holds, "b": {}, "c": {}}, false},
		"two of three":   {map[string]plan.Answer{"a": holds, "c": holds}, true},
		"one no voter":   {map[string]plan.Answer{"a": holds, "d": holds}, false},
		"of another key": {map[string]plan.Answer{"a": holds, "b": {Held: []meta.KeyID{keyID(2)}}}, false},
	} {
		if got := plan.Confirmed(id, []string{"a", "b", "c"}, tt.answers); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// TestLeaderMakesAnEntryThatOthersCanCatchUpWith, where there are others, and a ring.
func TestLeaderMakesAnEntryThatOthersCanCatchUpWith(t *testing.T) {
	p := newProtocol(budgets{})
	s := p.situation()
	s.Unmarked = true
	if a := plan.Next(p.ring, s); a.Kind != plan.Mark {
		t.Errorf("%+v", a)
	}
	s.Retry = s.Mono.Add(time.Minute)
	if a := plan.Next(p.ring, s); a.Kind != plan.Wait || a.Until != s.Retry {
		t.Errorf("after a failure: %+v", a)
	}
	s.Retry = 0
	s.Servers = []string{"a"}
	if a := plan.Next(p.ring, s); a.Kind == plan.Mark {
		t.Errorf("alone: %+v", a)
	}
	s.Servers = s.Voters
	if a := plan.Next(&meta.Ring{}, s); a.Kind == plan.Mark {
		t.Errorf("before there is a ring: %+v", a)
	}
}
