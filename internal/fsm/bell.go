package fsm

// How everything that waits learns that something may have changed.

import (
	"sync"
)

// Bell tells all who wait that something may have changed: look. It does not say what, and may ring for
// less. So a waiter takes the channel first, then looks at the state, then waits: no change is
// missed. The zero value is ready for use.
type Bell struct {
	mu sync.Mutex // guards below
	ch chan struct{}
}

// Wait returns a channel that is closed when the bell rings next.
func (b *Bell) Wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

// Ring wakes all who wait now.
func (b *Bell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}
