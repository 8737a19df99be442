package local

// How long loops and calls wait, and for what.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// Pause waits for a bell, and no longer than d. It reports whether there is a reason to go on: false when
// ctx has ended.
func Pause(ctx context.Context, rung <-chan struct{}, d time.Duration) bool {
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

// Now is the time of the wall clock as the ring wants it. It is for times in the ring, in tokens and in files, and
// for what is compared with them. Waits in memory go by the monotonic clock, which nobody can set: mono.Now.
func (s *Server) Now() time.Time { return s.Clock().UTC().Round(0) }

// LookAgain is how long a loop waits, at most, for a time of the wall clock: that may be set, and the machine may
// sleep, without a timer noticing.
const LookAgain = 10 * time.Minute

// WhenShown is when the wall clock will show a time, if nobody sets it, but not later than it is to be looked at
// again. Zero is never.
func (s *Server) WhenShown(at time.Time) mono.Time {
	if at.IsZero() {
		return 0
	}
	return mono.Now().Add(min(LookAgain, at.Sub(s.Now())))
}

// unheardPatience is how long a server that follows may not have heard of what the leader has told it.
const unheardPatience = time.Minute

// AwaitRing waits until the ring is as wanted, or can't be any more. While known is false it does so for
// unheardPatience.
func (s *Server) AwaitRing(ctx context.Context, known *bool, wanted func(*meta.Ring) (bool, error)) error {
	ctx, done, err := s.Gate.Enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	unheard := time.NewTimer(unheardPatience)
	defer unheard.Stop()
	for {
		changed := s.FSM.Changed()
		if done, err := wanted(s.FSM.Ring()); done || err != nil {
			return err
		}
		late := unheard.C
		if *known {
			late = nil
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("the leader has done it, but this server has not heard of it in %v", unheardPatience)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Idle is how long a loop waits when no time is known: a safety net, since changes wake it.
const Idle = time.Hour

// RetryAfter is how soon a leader tries again what raft did not take.
const RetryAfter = 250 * time.Millisecond

// ErrRestored says that what a call waits for is gone.
var ErrRestored = errors.New("raft has restored a snapshot that does not have it")

// Sleep waits until a moment, or returns why ctx ended first.
func Sleep(ctx context.Context, until mono.Time) error {
	timer := time.NewTimer(mono.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
