package plan_test

import (
	"slices"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// TestRetiredKeysLeave when nothing is sealed under them, or when the policy does not retain them.
func TestRetiredKeysLeave(t *testing.T) {
	retired := start.Add(100 * day)
	for _, tt := range []struct {
		state  meta.State
		remove bool
		retain time.Duration
		now    time.Time
		retry  time.Time
		want   plan.Kind
		at     time.Time
	}{
		{state: meta.StateInactive, now: retired.Add(1000 * day), want: plan.Nothing},
		{state: meta.StateInactive, retain: 30 * day, now: retired.Add(29 * day), want: plan.Wait, at: retired.Add(30 * day)},
		{state: meta.StateInactive, retain: 30 * day, now: retired.Add(30 * day), want: plan.Rekey},
		{state: meta.StateInactive, retain: 30 * day, now: retired.Add(30 * day), retry: retired.Add(31 * day), want: plan.Wait, at: retired.Add(31 * day)},
		{state: meta.StateRekeying, remove: true, retain: 30 * day, now: retired.Add(40 * day), want: plan.Nothing},
		{state: meta.StateDeprecated, now: retired.Add(1000 * day), want: plan.Nothing},
		{state: meta.StateDeprecated, remove: true, now: retired, want: plan.Remove},
		{state: meta.StateDeprecated, remove: true, now: retired, retry: retired.Add(day), want: plan.Wait, at: retired.Add(day)},
		{state: meta.StateDeprecated, retain: 30 * day, now: retired.Add(29 * day), want: plan.Wait, at: retired.Add(30 * day)},
		{state: meta.StateDeprecated, retain: 30 * day, now: retired.Add(30 * day), want: plan.Remove},
	} {
		ring := *newProtocol(budgets{}).ring
		k := *ring.Active()
		k.ID[15]++
		k.State, k.Retired, k.Remove = tt.state, retired, tt.remove
		ring.Keys = append(slices.Clone(ring.Keys), &k)
		s := plan.Situation{
			Now: tt.now, Mono: ticks(tt.now), Policy: plan.Policy{Retain: tt.retain}, Voters: []string{"a"}, Servers: []string{"a", "b", "c"}, HelloFrom: []string{"a", "b", "c"},
			Has: func(meta.KeyID) bool { return true }, Retry: ticks(tt.retry),
			Clocks: plan.Clocks{Compared: ticks(tt.now)},
		}
		if got := plan.Next(&ring, s); got.Kind != tt.want || got.Until != ticks(tt.at) || tt.at.IsZero() && got.Kind != plan.Nothing && got.Key != k.ID {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
}
