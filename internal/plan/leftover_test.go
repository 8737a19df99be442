package plan_test

import (
	"reflect"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// both are keys with a file, and one that was set aside.
func both(ids ...meta.KeyID) (leftovers []plan.Leftover) {
	for _, id := range ids {
		leftovers = append(leftovers, plan.Leftover{ID: id, File: true, Aside: true})
	}
	return leftovers
}

func TestCleanUpTouchesOnlyRemovedKeysAndUnlinksAfterTheUndoTime(t *testing.T) {
	const undo = 7 * 24 * time.Hour
	t0 := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	gone, now, late, live, orphan := meta.KeyID{1}, meta.KeyID{2}, meta.KeyID{3}, meta.KeyID{4}, meta.KeyID{5}
	r := &meta.Ring{
		Keys: []*meta.Key{{ID: live, State: meta.StateInactive}},
		Removed: []meta.Tombstone{
			{ID: gone, Removed: t0}, {ID: now, Removed: t0, Now: true}, {ID: late, Removed: t0.Add(time.Hour)},
		},
	}
	for name, tt := range map[string]struct {
		leftovers []plan.Leftover
		undo      time.Duration
		after     time.Duration
		want      plan.Cleanup
	}{
		"no leftovers": {undo: undo},
		"a key in the ring and one that nobody knows": {leftovers: both(live, orphan), undo: undo, after: 9 * undo},
		"at once": {
			leftovers: both(gone, now, late), undo: undo,
			want: plan.Cleanup{SetAside: []meta.KeyID{gone, now, late}, Unlink: []meta.KeyID{now}, Next: t0.Add(undo)},
		},
		"set aside already": {
			leftovers: []plan.Leftover{{ID: gone, Aside: true}}, undo: undo,
			want: plan.Cleanup{Next: t0.Add(undo)},
		},
		"nothing set aside yet": {
			leftovers: []plan.Leftover{{ID: gone, File: true}}, undo: undo, after: 2 * undo,
			want: plan.Cleanup{SetAside: []meta.KeyID{gone}},
		},
		"just before": {
			leftovers: []plan.Leftover{{ID: gone, Aside: true}}, undo: undo, after: undo - 1,
			want: plan.Cleanup{Next: t0.Add(undo)},
		},
		"the first is due": {
			leftovers: []plan.Leftover{{ID: gone, Aside: true}, {ID: late, Aside: true}}, undo: undo, after: undo,
			want: plan.Cleanup{Unlink: []meta.KeyID{gone}, Next: t0.Add(undo + time.Hour)},
		},
		"the later one first": {
			leftovers: []plan.Leftover{{ID: late, Aside: true}, {ID: gone, Aside: true}}, undo: undo,
			want: plan.Cleanup{Next: t0.Add(undo)},
		},
		"no undo time": {
			leftovers: []plan.Leftover{{ID: gone, Aside: true}}, undo: -1,
			want: plan.Cleanup{Unlink: []meta.KeyID{gone}},
		},
	} {
		if got := plan.CleanUp(r, true, tt.leftovers, tt.undo, plan.RingClock{Now: t0.Add(tt.after)}); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
		if got := plan.CleanUp(r, false, tt.leftovers, tt.undo, plan.RingClock{Now: t0.Add(tt.after)}); !reflect.DeepEqual(got, plan.Cleanup{}) {
			t.Errorf("%s: a server that has not caught up does %+v", name, got)
		}
	}
}
