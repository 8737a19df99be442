package keyring

// How everything that waits learns that something may have changed.

import (
	"context"
	"sync"
	"time"
)

// bell tells all who wait that something may have changed: look. It does not say what, and may ring for
// less. So a waiter takes the channel first, then looks at the state, then waits: no change is
// missed. The zero value is ready for use.
type bell struct {
	mu sync.Mutex // guards below
	ch chan struct{}
}

// wait returns a channel that is closed when the bell rings next.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// ring wakes all who wait now.
func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

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
