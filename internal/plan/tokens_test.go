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
		if got := plan.MaxAge(tt.ring, plan.Policy{Every: tt.every, Lead: tt.lead}); got != tt.want {
			t.Errorf("every %v, lead %v, active %t: %v, want %v", tt.every, tt.lead, tt.ring.Active() != nil, got, tt.want)
		}
	}
}
