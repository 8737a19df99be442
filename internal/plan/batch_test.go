package plan_test

import (
	"testing"
	"time"

	"example.com/keyring/internal/plan"
	"pgregory.net/rapid"
)

// TestBatchFindsWhatALinkCanDo: whatever an answer costs, as long as one about one key comes within the bound, the keys
// arrive, in a time that is not far from what they take at the least.
func TestBatchFindsWhatALinkCanDo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{64, 4096}).Draw(t, "most")
		fixed := time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "round trip"))
		each := time.Duration(rapid.Int64Range(1, int64(8*time.Second)).Draw(t, "a key"))
		keys := rapid.IntRange(1, 5000).Draw(t, "keys")
		b := plan.NewBatch(64, most)
		var took, lost time.Duration
		for left, late := keys, 0; left > 0; {
			n := min(left, b.Size())
			if n < 1 || n > most || b.Within() < plan.Promptly || b.Within() > plan.AtTheMost {
				t.Fatalf("%d keys within %v", n, b.Within())
			}
			if cost := fixed + time.Duration(n)*each; cost <= b.Within() {
				b.Answered(n, cost)
				took += cost
				left -= n
				late = 0
				continue
			}
			if late++; late > 8 {
				t.Fatalf("%d in a row were late, the last of %d keys within %v", late, n, b.Within())
			}
			lost += b.Within()
			b.Late(n)
		}
		if most := time.Duration(keys)*(fixed+each) + time.Minute; took+lost > most {
			t.Errorf("%v, and %v for nothing, at least: more than %v", took, lost, most)
		}
	})
}

// TestBatchOfFastServersIsFull: where nothing is slow the first requests are as large as ever.
func TestBatchOfFastServersIsFull(t *testing.T) {
	b := plan.NewBatch(64, 64)
	for range 10 {
		if b.Size() != 64 || b.Within() != plan.Promptly {
			t.Fatalf("%d keys within %v", b.Size(), b.Within())
		}
		b.Answered(64, 100*time.Millisecond)
	}
}

// TestBatchDoublesWhileAnswersComeEarly, up to the most. One that comes late, or is about fewer keys, tells nothing of more.
func TestBatchDoublesWhileAnswersComeEarly(t *testing.T) {
	b := plan.NewBatch(64, 1000)
	for _, step := range []struct {
		n     int
		after time.Duration
		want  int
	}{{64, 100 * time.Millisecond, 128}, {128, time.Second, 128}, {5, time.Millisecond, 128}, {128, 500 * time.Millisecond, 256}, {256, 0, 512}, {512, 0, 1000}, {1000, 0, 1000}} {
		if b.Answered(step.n, step.after); b.Size() != step.want {
			t.Errorf("after an answer about %d keys in %v it is %d, want %d", step.n, step.after, b.Size(), step.want)
		}
	}
}
