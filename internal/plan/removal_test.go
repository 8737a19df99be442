package plan_test

import (
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// TestDecideRemoval has a key in every state, and every way to ask for its removal.
func TestDecideRemoval(t *testing.T) {
	id := meta.KeyID{15: 7}
	in := func(s meta.State) *meta.Ring { return &meta.Ring{Keys: []*meta.Key{{ID: id, State: s}}} }
	leaving := &meta.Ring{Keys: []*meta.Key{{ID: id, State: meta.StateRekeying, Remove: true}}}
	removed := &meta.Ring{Removed: []meta.Tombstone{{ID: id}}}
	gone := &meta.Ring{Removed: []meta.Tombstone{{ID: id, Now: true}}}
	other := &meta.Ring{Keys: []*meta.Key{{ID: meta.KeyID{15: 8}, State: meta.StateInactive}}}

	plain, data := plan.RemoveOptions{}, plan.RemoveOptions{HasData: true}
	force, forceData := plan.RemoveOptions{Force: true}, plan.RemoveOptions{Force: true, HasData: true}
	now, nowData := plan.RemoveOptions{Now: true}, plan.RemoveOptions{Now: true, HasData: true}
	all := plan.RemoveOptions{Force: true, Now: true, HasData: true}

	for _, tt := range []struct {
		name    string
		ring    *meta.Ring
		options []plan.RemoveOptions
		want    plan.Removal
		from    meta.State
	}{
		{"no such key", other, []plan.RemoveOptions{plain, data, force, now, all}, plan.RefusedUnknown, ""},
		{"active", in(meta.StateActive), []plan.RemoveOptions{plain, data, force, now, all}, plan.RefusedActive, ""},

		{"prepublished", in(meta.StatePrepublished), []plan.RemoveOptions{plain, data, force, now, all}, plan.RemovalAtOnce, meta.StatePrepublished},

		{"inactive", in(meta.StateInactive), []plan.RemoveOptions{data, nowData}, plan.RemovalRekey, ""},
		{"inactive, no data", in(meta.StateInactive), []plan.RemoveOptions{plain, now}, plan.RefusedNoData, ""},
		{"inactive, force", in(meta.StateInactive), []plan.RemoveOptions{force, forceData, all}, plan.RemovalWithLoss, meta.StateInactive},

		{"rekeying", in(meta.StateRekeying), []plan.RemoveOptions{data, nowData}, plan.RemovalRekey, ""},
		{"rekeying, no data", in(meta.StateRekeying), []plan.RemoveOptions{plain, now}, plan.RefusedNoData, ""},
		{"rekeying, force", in(meta.StateRekeying), []plan.RemoveOptions{force, forceData, all}, plan.RemovalWithLoss, meta.StateRekeying},
		{"rekeying, removal asked for", leaving, []plan.RemoveOptions{data, nowData}, plan.RemovalRekeying, ""},
		{"rekeying, removal asked for, no data", leaving, []plan.RemoveOptions{plain, now}, plan.RefusedNoData, ""},
		{"rekeying, removal asked for, force", leaving, []plan.RemoveOptions{force, forceData, all}, plan.RemovalWithLoss, meta.StateRekeying},

		{"deprecated", in(meta.StateDeprecated), []plan.RemoveOptions{data, nowData}, plan.RemovalIfUnused, meta.StateDeprecated},
		{"deprecated, no data", in(meta.StateDeprecated), []plan.RemoveOptions{plain, now}, plan.RemovalAtOnce, meta.StateDeprecated},
		{"deprecated, force", in(meta.StateDeprecated), []plan.RemoveOptions{force, forceData, all}, plan.RemovalAtOnce, meta.StateDeprecated},

		{"removed", removed, []plan.RemoveOptions{plain, data, force, forceData}, plan.RemovalDone, ""},
		{"removed, now", removed, []plan.RemoveOptions{now, nowData, all}, plan.RemovalEndUndo, "removed"},
		{"removed for good", gone, []plan.RemoveOptions{plain, data, force, now, all}, plan.RemovalDone, ""},
	} {
		for _, o := range tt.options {
			if got := plan.DecideRemoval(tt.ring, id, o); got != tt.want {
				t.Errorf("%s, %+v: %q, want %q", tt.name, o, got, tt.want)
			}
			if tt.from == "" {
				continue
			}
			at := time.Unix(1, 0).UTC()
			want := meta.Remove{ID: id, From: tt.from, Force: o.Force, Now: o.Now, Time: at}
			if c := plan.RemoveCommand(tt.ring, id, o, at); *c.Remove != want {
				t.Errorf("%s, %+v: %+v, want %+v", tt.name, o, *c.Remove, want)
			}
		}
	}
}

func TestRemovalThatMovesDataWaitsForIt(t *testing.T) {
	for x, want := range map[plan.Removal]bool{
		plan.RemovalDone: false, plan.RemovalEndUndo: false, plan.RemovalAtOnce: false, plan.RemovalIfUnused: false,
		plan.RemovalWithLoss: false, plan.RemovalRekey: true, plan.RemovalRekeying: true,
		plan.RefusedUnknown: false, plan.RefusedActive: false, plan.RefusedNoData: false,
	} {
		if x.Moves() != want {
			t.Errorf("%s: %v", x, !want)
		}
	}
}

// TestRemoveCommandsAreApplied applies what RemoveCommand makes of the decision, from every state.
func TestRemoveCommandsAreApplied(t *testing.T) {
	ring := newProtocol(budgets{}).ring
	at := ring.Active().Activated.Add(time.Hour)
	for _, s := range []meta.State{meta.StatePrepublished, meta.StateInactive, meta.StateRekeying, meta.StateDeprecated} {
		r := ring.With(func(*meta.Key) {})
		k := *r.Active()
		k.ID[15]++
		k.State, k.Retired = s, at
		if s == meta.StatePrepublished {
			k.Activated, k.Retired = time.Time{}, time.Time{}
		}
		r.Keys = append(r.Keys, &k)
		o := plan.RemoveOptions{Force: true}
		after, err := r.Apply(100, []meta.Command{plan.RemoveCommand(r, k.ID, o, at)})
		if err != nil || !after.WasRemoved(k.ID) {
			t.Errorf("%s: %v", s, err)
			continue
		}
		o.Now = true
		final, err := after.Apply(101, []meta.Command{plan.RemoveCommand(after, k.ID, o, at)})
		if err != nil {
			t.Errorf("%s, then now: %v", s, err)
			continue
		}
		if x := plan.DecideRemoval(final, k.ID, o); x != plan.RemovalDone {
			t.Errorf("%s, then now: %s", s, x)
		}
	}
}
