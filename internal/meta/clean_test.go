package meta_test

import (
	"testing"

	"example.com/keyring/internal/meta"
)

// TestDeprecateTakesTheLastScanAlone: another leader may have found something since the first one, and
// recorded nothing until it found nothing again.
func TestDeprecateTakesTheLastScanAlone(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	h.rotate(2, func(a *meta.Add) { a.Full = true })
	h.do(meta.Command{Clean: &meta.Clean{ID: id(1)}})
	first := h.index
	h.do(meta.Command{Clean: &meta.Clean{ID: id(1)}})
	last := h.index
	for _, index := range []uint64{first, last - 1, last + 1} {
		h.refused(meta.ErrCommandRefused, deprecate(1, index))
	}
	h.wantState(1, "rekeying")
	h.do(deprecate(1, last))
	h.wantState(1, "deprecated")
}

// TestCleanScanOfAKeyThatIsNotRekeyingCannotBe: it would let the key be deprecated once it is rekeying,
// whatever is sealed under it by then.
func TestCleanScanOfAKeyThatIsNotRekeyingCannotBe(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	h.rotate(2)
	h.prepublish(3)
	for n := 1; n <= 3; n++ {
		h.refused(meta.ErrCommandRefused, meta.Command{Clean: &meta.Clean{ID: id(n)}})
		altered := *h.ring.Key(id(n))
		altered.Clean = h.index
		ring := *h.ring
		ring.Keys = nil
		for _, k := range h.ring.Keys {
			if k.ID == id(n) {
				k = &altered
			}
			ring.Keys = append(ring.Keys, k)
		}
		if err := ring.Check(); err == nil {
			t.Errorf("a clean scan of a key that is %s", altered.State)
		}
	}
}
