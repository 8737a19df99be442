package keyring

// How everything that waits learns that something may have changed.

import (
	"context"
	"time"
)

// pause waits for a bell, and no longer than d. It reports whether there is a reason to go on: false when
// ctx has ended.
func pause(ctx context.Context, rung <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-rung:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}
