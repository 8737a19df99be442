package plan_test

import (
	"fmt"
	"slices"
	"testing"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// TestReachedMeansThatNothingIsMissing runs through every log of up to six entries, each the keyring's,
// another's or a restored snapshot of nothing, every moment at which the leader answers, and every way in which
// a follower gets there: entry by entry from the log's begin, or from a snapshot at some index. Once it has
// reached the goal, its ring has every entry that the leader's had.
func TestReachedMeansThatNothingIsMissing(t *testing.T) {
	const entries = 6
	for n := range 1 << entries { // bit i: the entry at index i+1 is the keyring's
		ours := func(index int) bool { return n>>(index-1)&1 == 1 }
		last := func(upTo int) (index int) {
			for i := 1; i <= upTo; i++ {
				if ours(i) {
					index = i
				}
			}
			return index
		}
		for leader := range entries + 1 {
			goal := last(leader)
			for snapshot := range entries + 1 {
				reached := false
				for applied := snapshot; applied <= entries; applied++ {
					entry := last(applied)
					if entry <= snapshot {
						entry = 0 // the FSM is not told of what a snapshot has
					}
					ring := &meta.Ring{}
					if last(applied) > 0 {
						ring.Cluster = meta.ClusterID{1}
					}
					if !plan.Reached(ring, uint64(goal), uint64(max(entry, snapshot))) {
						continue
					}
					if reached = true; last(applied) < goal {
						t.Fatalf("log %06b: reached at %d from a snapshot at %d, and the leader had applied %d", n, applied, snapshot, leader)
					}
				}
				if !reached && (goal > 0 || last(entries) == 0) {
					t.Fatalf("log %06b: never reached from a snapshot at %d what the leader had at %d", n, snapshot, leader)
				}
			}
		}
	}
}

// TestEmptyLogIsNotReachedByAnOldRing: the leader was restored from before the keyring's first entry.
func TestEmptyLogIsNotReachedByAnOldRing(t *testing.T) {
	if plan.Reached(&meta.Ring{Cluster: meta.ClusterID{1}}, 0, 100) {
		t.Error("reached with a ring that is yet to be replaced")
	}
}

func TestNothingIsAnOrphanBeforeTheServerHasCaughtUp(t *testing.T) {
	w := newWorld(t, "a")
	w.run(1)
	known, other := w.ring.Keys[0].ID, keyID(99)
	files := []meta.KeyID{known, other}
	if got := plan.Orphans(w.ring, true, files); !slices.Equal(got, []meta.KeyID{other}) {
		t.Errorf("orphans %v", got)
	}
	if got := plan.Orphans(w.ring, false, files); len(got) > 0 {
		t.Errorf("before it has caught up: %v", fmt.Sprint(got))
	}
}
