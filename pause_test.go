package keyring

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/fsm"
)

// TestPauseEnds with the time, and says so when the context has ended.
func TestPauseEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b fsm.Bell
		began := time.Now()
		if !pause(t.Context(), b.Wait(), time.Second) || time.Since(began) != time.Second {
			t.Errorf("a pause of a second took %v", time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if pause(ctx, b.Wait(), time.Second) {
			t.Error("the context has ended, and there is reason to go on")
		}
	})
}
