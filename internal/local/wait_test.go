package local_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
)

// TestPauseEnds with the time, and says so when the context has ended.
func TestPauseEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b fsm.Bell
		began := time.Now()
		if !local.Pause(t.Context(), b.Wait(), time.Second) || time.Since(began) != time.Second {
			t.Errorf("a pause of a second took %v", time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if local.Pause(ctx, b.Wait(), time.Second) {
			t.Error("the context has ended, and there is reason to go on")
		}
	})
}
