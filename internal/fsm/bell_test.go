package fsm_test

import (
	"sync"
	"testing"
	"testing/synctest"

	"example.com/keyring/internal/fsm"
)

// TestBellMissesNoRing that comes after the channel was taken, and wakes all who wait.
func TestBellMissesNoRing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b fsm.Bell
		var woken sync.WaitGroup
		b.Ring() // nobody waits
		before := b.Wait()
		for range 3 {
			woken.Go(func() { <-b.Wait() })
		}
		synctest.Wait()
		b.Ring() // between the look and the wait
		select {
		case <-before:
		default:
			t.Error("a ring was missed")
		}
		woken.Wait() // or the bubble has a deadlock
		if b.Wait() == before {
			t.Error("a channel that is closed is given out again")
		}
	})
}
