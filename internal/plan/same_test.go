package plan_test

import (
	"cmp"
	"reflect"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

func TestSameRotation(t *testing.T) {
	now := start.Add(time.Hour)
	past, later := start, now.Add(time.Hour)
	a, b := keyID(1), keyID(2)
	for _, tt := range []struct {
		name string
		key  meta.Key
		add  meta.Add
		want bool
	}{
		{"plain", meta.Key{}, meta.Add{}, true},
		{"active already", meta.Key{State: meta.StateActive}, meta.Add{}, false},
		{"scheduled", meta.Key{Scheduled: true}, meta.Add{}, false},
		{"another algorithm", meta.Key{Algorithm: "RS256"}, meta.Add{}, false},
		{"on the same day", meta.Key{Publish: later}, meta.Add{Publish: later}, true},
		{"in another zone", meta.Key{Publish: later}, meta.Add{Publish: later.In(time.FixedZone("", 3600))}, true},
		{"on another day", meta.Key{Publish: later}, meta.Add{Publish: later.Add(1)}, false},
		{"later and at once", meta.Key{Publish: later}, meta.Add{}, false},
		{"past and at once", meta.Key{Publish: past}, meta.Add{}, true},
		{"at once and past", meta.Key{}, meta.Add{Publish: past}, true},
		{"full", meta.Key{Full: true}, meta.Add{Full: true}, true},
		{"full and not", meta.Key{Full: true}, meta.Add{}, false},
		{"not and full", meta.Key{}, meta.Add{Full: true}, false},
		{"compromised", meta.Key{Full: true, Compromised: true}, meta.Add{Full: true, Compromised: true}, true},
		{"compromised and full", meta.Key{Full: true}, meta.Add{Full: true, Compromised: true}, false},
		{"full and compromised", meta.Key{Full: true, Compromised: true}, meta.Add{Full: true}, false},
		{"revokes the same", meta.Key{Revoke: []meta.KeyID{a, b}}, meta.Add{Revoke: []meta.KeyID{b, a, a}}, true},
		{"revokes less", meta.Key{Revoke: []meta.KeyID{a, b}}, meta.Add{Revoke: []meta.KeyID{a}}, false},
		{"revokes others", meta.Key{Revoke: []meta.KeyID{a}}, meta.Add{Revoke: []meta.KeyID{b}}, false},
	} {
		k := tt.key
		k.ID, k.State = keyID(9), cmp.Or(k.State, meta.StatePrepublished)
		k.Algorithm = cmp.Or(k.Algorithm, "EdDSA")
		got := plan.SameRotation(&meta.Ring{Keys: []*meta.Key{&k}}, tt.add, "EdDSA", now)
		if (len(got) == 1) != tt.want {
			t.Errorf("%s: %d keys", tt.name, len(got))
		}
	}
	const known = 6 // Key, Publish, Scheduled, Full, Revoke, Compromised
	if n := reflect.TypeFor[meta.Add]().NumField(); n != known {
		t.Errorf("an Add has %d members, and %d are compared or need not be: a new one needs a row here", n, known)
	}
	first, second := &meta.Key{ID: keyID(9), CreateIndex: 1}, &meta.Key{ID: keyID(8), CreateIndex: 2}
	first.State, second.State = meta.StatePrepublished, meta.StatePrepublished
	if got := plan.SameRotation(&meta.Ring{Keys: []*meta.Key{second, first}}, meta.Add{}, "", now); len(got) != 2 || got[0] != second {
		t.Errorf("of two the newest is not the first: %v", got)
	}
}
