package lead

import (
	"slices"
	"testing"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// TestReportsOfOneServerAreBounded: while raft takes nothing, what a server reports over and over fills
// neither the memory nor the place of the others.
func TestReportsOfOneServerAreBounded(t *testing.T) {
	var r reports
	long := make([]meta.KeyID, peer.MaxIDs)
	for range 5000 {
		r.add(meta.Hold{Server: "a", Gained: long})
		r.add(meta.Hold{Server: "b"})
	}
	r.add(meta.Hold{Server: "c", Gained: long[:1]})
	r.add(meta.Hold{Server: "d", Gained: slices.Concat(long, long, long)})
	r.add(meta.Hold{Server: "e", Gained: long})
	ids, holds := map[string]int{}, map[string]int{}
	for together := r.take(); len(together) > 0; together = r.take() {
		n := 0
		for i, h := range together {
			if ids[h.Server] += len(h.Gained); i < len(together)-1 {
				n += len(h.Gained)
			}
			holds[h.Server]++
		}
		if n > 2*peer.MaxIDs { // but for the last one
			t.Errorf("%d IDs go into one log entry", n)
		}
	}
	if ids["a"] != peer.MaxIDs || holds["b"] != 5000 {
		t.Errorf("%d IDs of one server wait, and %d reports of another", ids["a"], holds["b"])
	}
	if ids["c"] != 1 || ids["d"] != 3*peer.MaxIDs || ids["e"] != peer.MaxIDs {
		t.Errorf("those who have nothing waiting are not heard: %v", ids)
	}
	if r.add(meta.Hold{Server: "a", Gained: long}); len(r.take()) != 1 {
		t.Error("after what waited was taken, a server is not heard again")
	}
}
