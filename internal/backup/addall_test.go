package backup_test

import (
	"slices"
	"testing"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/meta"
)

// TestAddAllSaysWhatIsNotHere: nothing, or another key's material, is here under the ID of one of the keys.
func TestAddAllSaysWhatIsNotHere(t *testing.T) {
	a, _, _, keys := small(t, "", 0)
	if missing, leftOut := a.AddAll(among(keys)); len(missing)+len(leftOut) > 0 || a.UpTo() != 9 {
		t.Errorf("all are here: missing %v, left out %v, up to %d", missing, leftOut, a.UpTo())
	}
	a.Close()
	for i := range keys {
		for _, state := range []meta.State{meta.StateInactive, meta.StatePrepublished} {
			for _, other := range []bool{false, true} {
				a, _, _, keys := small(t, "", 0)
				key := a.Ring.Keys[i]
				key.State = state
				if keys[i].Check[0]++; !other {
					keys[i].ID = meta.KeyID{}
				}
				missing, leftOut := a.AddAll(among(keys))
				want, upTo := [2][]meta.KeyID{{key.ID}, nil}, uint64(9)
				if state == meta.StatePrepublished {
					want, upTo = [2][]meta.KeyID{nil, {key.ID}}, key.CreateIndex-1
				}
				if !slices.Equal(missing, want[0]) || !slices.Equal(leftOut, want[1]) || a.UpTo() != upTo {
					t.Errorf("%s, %t: missing %v, left out %v, want %v; up to %d, want %d", state, other, missing, leftOut, want, a.UpTo(), upTo)
				}
				a.Close()
			}
		}
	}
}

// among returns what finds material by its ID.
func among(keys []backup.Material) func(meta.KeyID) (backup.Material, bool) {
	return func(id meta.KeyID) (backup.Material, bool) {
		i := slices.IndexFunc(keys, func(k backup.Material) bool { return k.ID == id })
		if i < 0 {
			return backup.Material{}, false
		}
		return keys[i], true
	}
}

// TestSignerCacheAsksOnceForEachKey, and again while the key is not here.
func TestSignerCacheAsksOnceForEachKey(t *testing.T) {
	a, _, _, keys := small(t, "", 0)
	defer a.Close()
	var cache backup.SignerCache
	key := a.Ring.Active()
	want, err := backup.SignerOf(key.ID, keys[slices.Index(a.Ring.Keys, key)].Secret)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for i, here := range []bool{false, true, true} {
		got, err := cache.Of(key, func(id meta.KeyID) (backup.Material, bool) {
			if asked++; !here {
				return backup.Material{}, false
			}
			return among(keys)(id)
		})
		if err != nil || here != (got == want) || !here && got != (backup.Signer{}) {
			t.Errorf("ask %d: %v, %v", i, got, err)
		}
	}
	if asked != 2 {
		t.Errorf("the material was asked for %d times, want 2", asked)
	}
}
