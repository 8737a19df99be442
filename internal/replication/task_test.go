package replication

import (
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/mono"
)

// TestTaskIsFreshUntilItWasDone since it was last expedited: until then what may be set aside on this server is
// asked of no other.
func TestTaskIsFreshUntilItWasDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &Replicator{ended: make(chan *backgroundTask)}
		var task backgroundTask
		check := func(when string, want bool) {
			t.Helper()
			if got := task.fresh(); got != want {
				t.Errorf("%s: fresh is %t", when, got)
			}
		}
		do := func(when string, fresh bool) {
			t.Helper()
			done := make(chan struct{})
			r.start(t.Context(), &task, func() { <-done })
			if wake, wait := task.wait(mono.Now()); !wait || wake != 0 {
				t.Errorf("%s, while it runs: wait %t, wake %v", when, wait, wake)
			}
			check(when+", while it runs", fresh)
			close(done)
			(<-r.ended).running = false // as Run does
			check(when+", after it has ended", false)
		}
		check("before it was done", true)
		do("the first time", true)
		wake, wait := task.wait(mono.Now())
		if !wait || wake <= mono.Now() || wake > mono.Now().Add(scanRetry) {
			t.Errorf("after the first time: wait %t, in %v", wait, mono.Until(wake))
		}
		do("the second time", false)
		task.expedite(mono.Now().Add(time.Second))
		check("expedited", true)
		if wake, wait := task.wait(mono.Now()); !wait || wake > mono.Now().Add(time.Second) {
			t.Errorf("expedited: wait %t, in %v", wait, mono.Until(wake))
		}
		do("expedited", true)
		task.idle()
		check("when there is nothing to do", true)
		r.calls.Wait()
	})
}
