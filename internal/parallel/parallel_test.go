package parallel_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"example.com/keyring/internal/parallel"
)

// TestDoCallsEachOnce, however many there are.
func TestDoCallsEachOnce(t *testing.T) {
	for _, n := range []int{-1, 0, 1, 2, parallel.Most, parallel.Most + 1, 1000} {
		calls := make([]atomic.Int64, max(n, 0))
		parallel.Do(n, func(i int) { calls[i].Add(1) })
		for i := range calls {
			if got := calls[i].Load(); got != 1 {
				t.Errorf("of %d: item %d was done %d times", n, i, got)
			}
		}
	}
}

// TestDoWorksOnMostAtATime, and on no more.
func TestDoWorksOnMostAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var working atomic.Int64
		release := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			parallel.Do(10*parallel.Most, func(int) {
				working.Add(1)
				<-release
			})
		}()
		for round := range int64(10) {
			synctest.Wait()
			if got, want := working.Load(), (round+1)*parallel.Most; got != want {
				t.Errorf("round %d: %d have begun, not %d", round, got, want)
			}
			for range parallel.Most {
				release <- struct{}{}
			}
		}
		<-done
	})
}
