package plan_test

import (
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// TestKeysOfNewerBuildsAreLeftToThem: this build neither activates, joins, fetches nor rekeys them, and goes on with its own.
func TestKeysOfNewerBuildsAreLeftToThem(t *testing.T) {
	for name, change := range map[string]func(*meta.Key){
		"suite":     func(k *meta.Key) { k.Suite = "some-suite" },
		"algorithm": func(k *meta.Key) { k.Algorithm = "ML-DSA-65" },
	} {
		now := start.Add(40 * day)
		key := func(n byte, state meta.State) *meta.Key {
			return &meta.Key{ID: meta.KeyID{15: n}, State: state, Algorithm: "EdDSA", Created: start, CreateIndex: uint64(n), Holders: []string{"a", "b", "c"}}
		}
		active, waits, moves := key(1, meta.StateActive), key(2, meta.StatePrepublished), key(3, meta.StateRekeying)
		active.Activated, moves.Retired = now.Add(-30*day), start
		whole := &meta.Ring{Cluster: meta.ClusterID{1}, Keys: []*meta.Key{active, waits, moves}}
		ring := func(change func(*meta.Key)) *meta.Ring {
			return whole.With(func(k *meta.Key) {
				if k.ID != active.ID {
					change(k)
				}
			})
		}
		s := plan.Situation{
			Now: now, Mono: ticks(now), Policy: plan.Policy{Every: 30 * day, Lead: day},
			Voters: []string{"a", "b", "c"}, Servers: []string{"a", "b", "c"}, Has: func(meta.KeyID) bool { return true },
		}
		none := func(meta.KeyID) bool { return false }
		add := meta.Add{Key: meta.NewKey{Algorithm: "EdDSA"}}
		look := func(r *meta.Ring, want plan.Kind, missing, rekeying, same int) {
			t.Helper()
			if got := plan.Next(r, s); got.Kind != want {
				t.Errorf("%s: next is %+v, want %s", name, got, want)
			}
			if a, b, c := len(plan.Missing(r, none)), len(plan.Rekeying(r)), len(plan.SameRotation(r, add, "EdDSA", now)); a != missing || b != rekeying || c != same {
				t.Errorf("%s: %d missing, %d rekeying, %d joined", name, a, b, c)
			}
		}
		look(ring(func(*meta.Key) {}), plan.Ask, 3, 1, 1)
		look(ring(change), plan.Compare, 1, 0, 0) // before it makes a key by schedule
		s.Now, s.Mono = now.Add(-29*day), ticks(now.Add(-29*day))
		if got := plan.Next(ring(change), s); got.Kind != plan.Wait || got.Until.Sub(s.Mono) < time.Hour {
			t.Errorf("%s: before anything is due: %+v", name, got)
		}
	}
}
