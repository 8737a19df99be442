package local

// How long a call waits for a leader.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"example.com/keyring/internal/mono"
)

// leaderPatience is how long a call waits whose context has no deadline while there is no leader: 30 seconds, or longer
// where raft itself takes its time. No election takes that long.
func (s *Server) leaderPatience() time.Duration { return max(30*time.Second, s.LostAfter()) }

// NoLeader is the error of a call that has waited for a leader. It matches ErrNoLeader.
func NoLeader(waited time.Duration) error {
	return fmt.Errorf("waited %v: %w", waited.Round(time.Second), ErrNoLeader)
}

// WhileLed runs a call that waits for what a leader does. If ctx has no deadline, the call ends when this server has been
// without a leader for leaderPatience, counted from the begin of the call at the earliest, with an error that matches
// ErrNoLeader.
func WhileLed[T any](ctx context.Context, s *Server, call func(context.Context) (T, error)) (T, error) {
	if _, bounded := ctx.Deadline(); bounded {
		return call(ctx)
	}
	ctx, end := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end(nil)
	watching.Go(func() { s.endWithoutLeader(ctx, end) })
	v, err := call(ctx)
	if why := context.Cause(ctx); err != nil && errors.Is(why, ErrNoLeader) && !errors.Is(err, ErrNoLeader) {
		err = fmt.Errorf("%w: %w", why, err)
	}
	return v, err
}

// endWithoutLeader waits until this server has been without a leader for too long, and ends what waits for one.
func (s *Server) endWithoutLeader(ctx context.Context, end context.CancelCauseFunc) {
	most, begun := s.leaderPatience(), mono.Now()
	for {
		quiet := min(s.Silence(), mono.Now().Sub(begun))
		if quiet >= most {
			end(NoLeader(quiet))
			return
		}
		if Sleep(ctx, mono.Now().Add(max(most-quiet, time.Second))) != nil {
			return
		}
	}
}
