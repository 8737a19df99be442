package kek

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// timeout is how long one call of a KEK may take, and for how long every call of a KEK may fail before it
// counts as down.
const timeout = 10 * time.Second

// health is what is known of how a KEK answers. The zero value is a KEK that does.
type health struct{ current atomic.Pointer[outage] }

// outage is a time in which every call of a KEK fails.
type outage struct {
	since time.Time
	down  error // why the KEK counts as down, or nil while it does not yet
}

// down is why the KEK counts as down, or nil.
func (h *health) down() error {
	if o := h.current.Load(); o != nil {
		return o.down
	}
	return nil
}

// checked notes what came of a call that shows whether the KEK can do its work: an error takes it down at once.
// A call that was given up, because its context has ended, says nothing about the KEK.
func (h *health) checked(ctx context.Context, err error) {
	switch {
	case err == nil:
		h.current.Store(nil)
	case ctx.Err() == nil:
		h.current.Store(&outage{down: err})
	}
}

// failure notes that a file did not open because its KEK has failed, in a call that began at that time. That
// may be because of the file, so one failure says nothing; but there may be thousands of files. So
// the KEK counts as down once all its calls have failed for as long as one may take.
func (h *health) failure(ctx context.Context, began time.Time, err error) {
	if ctx.Err() != nil {
		return
	}
	was := h.current.Load()
	if was != nil {
		began = was.since
	}
	next := &outage{since: began}
	if time.Since(began) >= timeout {
		next.down = err
	}
	h.current.CompareAndSwap(was, next) // or another goroutine has just noted the same
}

// success notes that the KEK has answered for a file. That does not bring back one that is down: only a check
// has it both wrap and unwrap.
func (h *health) success() {
	if was := h.current.Load(); was != nil && was.down == nil {
		h.current.CompareAndSwap(was, nil)
	}
}

// withCause adds to an error why the context has ended, if it has.
func withCause(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}
