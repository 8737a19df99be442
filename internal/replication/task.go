package replication

// Work on the directory that is done beside the loop.

import (
	"context"
	"math/rand/v2"

	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
)

// backgroundTask is work on the directory that is done beside the loop, by one goroutine at a time:
// disks and KEKs take their time.
type backgroundTask struct {
	running bool
	due     mono.Time // not before; zero while there is nothing to do
	tries   int
	more    bool // it is to go on at once; its goroutine's until that has ended
	paused  bool // it is to go on when a KEK may answer again; likewise
}

// idle is for when there is nothing to do.
func (t *backgroundTask) idle() { t.due, t.tries = 0, 0 }

// expedite has it due at a time, if it was to be later.
func (t *backgroundTask) expedite(at mono.Time) {
	t.due, t.tries = min(t.due, at), 0
}

// wait reports whether the task can't be started now, and when to look again: zero if its
// goroutine is running, whose end wakes the loop.
func (t *backgroundTask) wait(now mono.Time) (wake mono.Time, wait bool) {
	if t.running {
		return 0, true
	}
	return t.due, now < t.due
}

// fresh reports whether the task has not been done since it was last expedited.
func (t *backgroundTask) fresh() bool { return t.tries == 0 || t.running && t.tries == 1 }

// start does a task. If there is more to do after it, it is due again after a while.
func (r *Replicator) start(ctx context.Context, t *backgroundTask, do func()) {
	t.running = true
	t.due = mono.Now().Add(min(scanRetry, plan.Backoff(t.tries, rand.Float64())))
	t.tries++
	r.calls.Go(func() {
		do()
		select {
		case r.ended <- t:
		case <-ctx.Done():
		}
	})
}
