package keyring

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestBellMissesNoRing that comes after the channel was taken, and wakes all who wait.
func TestBellMissesNoRing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b bell
		b.ring() // nobody waits
		before := b.wait()
		for range 3 {
			go func() { pause(t.Context(), b.wait(), time.Hour) }()
		}
		synctest.Wait()
		began := time.Now()
		b.ring() // between the look and the wait
		if !pause(t.Context(), before, time.Hour) || time.Since(began) > 0 {
			t.Error("a ring was missed")
		}
		if b.wait() == before {
			t.Error("a channel that is closed is given out again")
		}
	})
}

// TestPauseEnds with the time, and says so when the context has ended.
func TestPauseEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b bell
		began := time.Now()
		if !pause(t.Context(), b.wait(), time.Second) || time.Since(began) != time.Second {
			t.Errorf("a pause of a second took %v", time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if pause(ctx, b.wait(), time.Second) {
			t.Error("the context has ended, and there is reason to go on")
		}
	})
}
