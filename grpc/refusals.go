package keyringgrpc

import (
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// maxLines is how many lines others can cause in the log in a second.
const maxLines = 10

// refusals keeps a flood of refused connections and calls from becoming a flood of lines.
type refusals struct {
	to hclog.Logger

	mu    sync.Mutex // guards below
	since time.Time  // a second began
	lines int        // in it
	more  int        // that were left out
}

// note logs a line, or counts it.
func (r *refusals) note(message string, args ...any) {
	r.mu.Lock()
	if now := time.Now(); now.Sub(r.since) >= time.Second {
		r.since, r.lines = now, 0
	}
	if r.lines == maxLines {
		r.more++
		r.mu.Unlock()
		return
	}
	r.lines++
	more := r.more
	r.more = 0
	r.mu.Unlock()
	if more > 0 {
		args = append(args, "unlogged", more)
	}
	r.to.Warn(message, args...)
}
