package plan

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// Rekeying returns the keys whose data is being moved to the active key, in the order of their retirement. The data of a
// key that only a newer build can use is moved when that leads.
func Rekeying(r *meta.Ring) []*meta.Key {
	var keys []*meta.Key
	for _, k := range r.Keys {
		if k.State == meta.StateRekeying && k.Newer() == "" {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b *meta.Key) int {
		return cmp.Or(a.Retired.Compare(b.Retired), cmp.Compare(a.CreateIndex, b.CreateIndex), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return keys
}

// ScanFrom is the earliest start of a scan that counts as proof that nothing is sealed under the key: by then, writers
// that no fence stops have had their time. Zero is at any time.
func ScanFrom(k *meta.Key, grace time.Duration) time.Time {
	if grace <= 0 {
		return time.Time{}
	}
	return k.Retired.Add(grace)
}

// nextForRetired is what the leader does of its own accord with a retired key, and when: it has the data of a key moved
// that the policy no longer retains, and removes a key that is to be removed once nothing is sealed under it. No
// key is removed without a clean scan.
func nextForRetired(r *meta.Ring, k *meta.Key, s Situation) (Action, mono.Time) {
	at := never
	if s.Policy.Retain > 0 && !k.Retired.IsZero() {
		at = s.mono(k.Retired.Add(s.Policy.Retain))
	}
	a := Action{Key: k.ID}
	switch k.State {
	case meta.StateInactive:
		a.Kind = Rekey
	case meta.StateDeprecated:
		if a.Kind = Remove; k.Remove {
			at = s.Mono
		}
	default:
		return Action{}, never
	}
	if at = max(at, s.Retry); k.Remove && k.State == meta.StateDeprecated {
		return a, at // it was asked for
	}
	return s.onceClockIsRight(r, a, at)
}
