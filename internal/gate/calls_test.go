package gate_test

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/mono"
)

// TestCallsThatDoNotReturnAreNamed once they have run for longer than they may, with when the earliest began, and as long as they
// run.
func TestCallsThatDoNotReturnAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls gate.Calls
		began := time.Now()
		want := func(what string, names ...string) {
			t.Helper()
			slow := calls.Slow(mono.Now())
			if got := slices.Sorted(maps.Keys(slow)); !slices.Equal(got, names) {
				t.Errorf("%s: slow are %q, want %q", what, got, names)
			}
			for name, since := range slow {
				if !since.Equal(began) {
					t.Errorf("%s: %s since %v, want %v", what, name, since, began)
				}
			}
		}
		back := make(chan struct{})
		hang := func() { <-back }
		go calls.Watch("a", 10*time.Second, hang)
		go calls.Watch("b", time.Minute, hang)
		again := calls.New("c", time.Second)
		time.Sleep(9 * time.Second)
		go calls.Watch("a", 10*time.Second, hang)
		want("9 seconds later")
		if got := calls.Names(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("%q run", got)
		}
		time.Sleep(time.Second)
		want("10 seconds later", "a")
		time.Sleep(time.Minute)
		want("a minute later", "a", "b")
		close(back)
		synctest.Wait()
		want("they have returned")
		began = time.Now()
		again.Enter()
		time.Sleep(time.Second)
		want("one that is called again and again", "c")
		again.Leave()
		want("it has returned")
		again.Enter()
		calls.Forget(again)
		if time.Sleep(time.Second); len(calls.Names()) > 0 {
			t.Errorf("forgotten: %q", calls.Names())
		}
	})
}
