package plan_test

import (
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// TestWhichKeysVerify is the table of states in the package documentation, and what takes a key
// out of it.
func TestWhichKeysVerify(t *testing.T) {
	tokens := plan.Tokens{MaxTTL: day, Leeway: time.Minute}
	retired, end, forever := hours(10), hours(34).Add(time.Minute), hours(24*365*1000)
	for _, tt := range []struct {
		state             meta.State
		revoked, dataOnly bool
		until             time.Time
	}{
		{meta.StatePrepublished, false, false, forever},
		{meta.StateActive, false, false, forever},
		{meta.StateInactive, false, false, end},
		{meta.StateRekeying, false, false, end},
		{meta.StateDeprecated, false, false, end},
		{meta.StateInactive, true, false, time.Time{}},
		{meta.StateRekeying, true, false, time.Time{}},
		{meta.StateDeprecated, true, false, time.Time{}},
		{meta.StateInactive, false, true, time.Time{}},
		{meta.StateRekeying, false, true, time.Time{}},
		{meta.StateDeprecated, false, true, time.Time{}},
		{meta.StateInactive, true, true, time.Time{}},
	} {
		k := &meta.Key{State: tt.state, Revoked: tt.revoked, DataOnly: tt.dataOnly}
		if tt.state != meta.StatePrepublished && tt.state != meta.StateActive {
			k.Retired = retired
		}
		got := plan.VerifiesUntil(k, tokens)
		if !got.Equal(tt.until) && !(tt.until.Equal(forever) && got.After(forever)) {
			t.Errorf("%s, revoked %t, for data only %t: until %v, want %v", tt.state, tt.revoked, tt.dataOnly, got, tt.until)
		}
	}
}

func TestMaxAgeIsTheLeadOrFiveMinutes(t *testing.T) {
	w := newWorld(t, "a")
	w.run(time.Hour)
	active := w.ring
	if active.Active() == nil {
		t.Fatal("no active key")
	}
	for _, tt := range []struct {
		ring        *meta.Ring
		every, lead time.Duration
		want        time.Duration
	}{
		{active, 30 * day, day, 5 * time.Minute},
		{active, day, 6 * time.Minute, 5 * time.Minute},
		{active, day, 5 * time.Minute, 5 * time.Minute},
		{active, day, 4 * time.Minute, 4 * time.Minute},
		{active, time.Minute, time.Second, time.Second},
		{active, 0, 0, 5 * time.Minute},
		{active, 0, time.Minute, time.Minute},
		{&meta.Ring{}, 30 * day, day, 0},
	} {
		if got, ok := plan.MaxAge(tt.ring, plan.Policy{Every: tt.every, Lead: tt.lead}, 0); got != tt.want || !ok {
			t.Errorf("every %v, lead %v, active %t: %v, %t, want %v", tt.every, tt.lead, tt.ring.Active() != nil, got, ok, tt.want)
		}
	}
}

// TestNoVerifierHasAnOlderJWKSThanItMay: what a server that hears from nobody has and what a verifier
// keeps of it are together no older than a verifier may keep it elsewhere, for as long as that can be.
func TestNoVerifierHasAnOlderJWKSThanItMay(t *testing.T) {
	w := newWorld(t, "a")
	w.run(time.Hour)
	for _, tt := range []struct {
		lead, silence, want time.Duration
		ok                  bool
	}{
		{day, time.Minute, 4 * time.Minute, true},
		{day, 5 * time.Minute, 0, true},
		{day, time.Hour, 0, true},
		{day, time.Hour + 1, 0, false},
		{10 * time.Minute, 9 * time.Minute, 0, true},
		{10 * time.Minute, 10*time.Minute + 1, 0, false}, // the next key may sign by now
		{time.Second, time.Second, 0, true},
		{0, 59 * time.Minute, 0, true},
	} {
		got, ok := plan.MaxAge(w.ring, plan.Policy{Every: 30 * day, Lead: tt.lead}, tt.silence)
		if got != tt.want || ok != tt.ok {
			t.Errorf("lead %v, silence %v: %v, %t, want %v, %t", tt.lead, tt.silence, got, ok, tt.want, tt.ok)
		}
	}
}
