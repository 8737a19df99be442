package plan_test

import (
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// TestLeaderWithoutTheActiveKeyResigns when it has not come for a while, unless there is nobody to take
// over. After a failure it waits, and goes on with all the rest.
func TestLeaderWithoutTheActiveKeyResigns(t *testing.T) {
	const patience = 10 * time.Second
	began := start.Add(100 * day)
	for _, tt := range []struct {
		name    string
		voters  []string
		lacking time.Time
		now     time.Time
		retry   time.Time
		want    plan.Kind
		at      time.Time
	}{
		{name: "has it", voters: []string{"a", "b"}, now: began, want: plan.Nothing},
		{name: "just now", voters: []string{"a", "b"}, lacking: began, now: began, want: plan.Wait, at: began.Add(patience)},
		{name: "too long", voters: []string{"a", "b"}, lacking: began, now: began.Add(patience), want: plan.Resign},
		{name: "alone", voters: []string{"a"}, lacking: began, now: began.Add(patience), want: plan.Nothing},
		{name: "failed", voters: []string{"a", "b"}, lacking: began, now: began.Add(patience), retry: began.Add(time.Minute), want: plan.Wait, at: began.Add(time.Minute)},
	} {
		ring := newProtocol(budgets{}).ring
		s := plan.Situation{
			Now: tt.now, Mono: ticks(tt.now), Voters: tt.voters, Servers: []string{"a", "b", "c"}, HelloFrom: []string{"a", "b", "c"}, Retry: ticks(tt.retry), LackingSince: ticks(tt.lacking),
			Has: func(meta.KeyID) bool { return tt.lacking.IsZero() },
		}
		got := plan.Next(ring, s)
		if got.Kind != tt.want || got.Until != ticks(tt.at) || tt.want == plan.Resign && got.Key != ring.Active().ID {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}
