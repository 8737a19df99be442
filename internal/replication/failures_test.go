package replication

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// TestFailureEndsWithWhatShowsThatItIsOver: any answer, if there was none; the right material of the same keys, if it was wrong.
func TestFailureEndsWithWhatShowsThatItIsOver(t *testing.T) {
	k1, k2, k3 := meta.KeyID{1}, meta.KeyID{2}, meta.KeyID{3}
	of := func(err error, wrong []meta.KeyID, ids ...meta.KeyID) fetched {
		return fetched{plan.Fetch{Peer: "s1", IDs: ids}, wrong, err}
	}
	failed := errors.New("failed")
	ids := func(ids ...meta.KeyID) []meta.KeyID { return ids }
	for name, tt := range map[string]struct {
		steps []fetched
		cured bool // by the last one
		again []meta.KeyID
	}{
		"no answer":                   {[]fetched{of(failed, nil, k1, k2)}, false, ids(k1)},
		"any answer":                  {[]fetched{of(failed, nil, k1, k2), of(nil, nil, k3)}, true, nil},
		"other keys":                  {[]fetched{of(failed, ids(k2), k1, k2), of(nil, nil, k1, k3)}, false, ids(k2)},
		"the same key":                {[]fetched{of(failed, ids(k2), k1, k2), of(nil, nil, k2)}, true, nil},
		"one of two":                  {[]fetched{of(failed, ids(k2, k1), k1, k2), of(nil, nil, k2)}, false, ids(k1)},
		"two, and then no answer":     {[]fetched{of(failed, ids(k2), k2), of(failed, ids(k1), k1, k2), of(failed, nil, k3)}, false, ids(k1, k2)},
		"two, one after the other":    {[]fetched{of(failed, ids(k2, k1), k1, k2), of(nil, nil, k2), of(nil, nil, k1)}, true, nil},
		"nothing had failed":          {[]fetched{of(nil, nil, k1)}, false, nil},
		"wrong again while it is due": {[]fetched{of(failed, ids(k2), k2), of(failed, ids(k2), k2)}, false, ids(k2)},
	} {
		synctest.Test(t, func(t *testing.T) {
			var f failures
			var cured bool
			for _, step := range tt.steps {
				cured = f.note(step)
			}
			time.Sleep(time.Hour) // virtual
			ring := &meta.Ring{Keys: []*meta.Key{{ID: k1}, {ID: k2}, {ID: k3}}}
			if again, _ := f.due(ring, []string{"s1"}, func(string) bool { return true }); again != nil {
				t.Errorf("%s: it is asked %v beside another fetch", name, again)
			}
			var got []meta.KeyID
			again, _ := f.due(ring, []string{"s1"}, func(string) bool { return false })
			for _, a := range again {
				got = append(got, a.IDs...)
			}
			if cured != tt.cured || !slices.Equal(got, tt.again) {
				t.Errorf("%s: cured %v, and it is asked for %v", name, cured, got)
			}
		})
	}
}
