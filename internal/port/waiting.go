package port

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/go-hclog"
)

// joinRetry is how long a server waits before it asks again those that did not answer, and joinRetryMost after
// joinHurry: a cluster that elects a leader or removes what was here before needs seconds.
const (
	joinRetry     = 250 * time.Millisecond
	joinHurry     = 30 * time.Second
	joinRetryMost = 2 * time.Second
)

// sayAgain is when the log has what a start waits for again, though nothing has changed. It grows to sayAgainMost.
const (
	sayAgain     = 15 * time.Second
	sayAgainMost = 10 * time.Minute
)

// Waiting is what a start waits for: the last reason why each of the other servers was of no use. The log has a line for
// each new cause, and then seldom.
type Waiting struct {
	log  hclog.Logger
	why  map[string]error // by server
	said map[string]bool  // servers and causes that the log has, since the last line that had nothing new
	next mono.Time        // when it is said again
	gap  time.Duration    // after which it was

	waited time.Duration // between rounds
}

// NewWaiting returns one that waits for nothing yet.
func NewWaiting(log hclog.Logger) *Waiting {
	return &Waiting{log: log, why: map[string]error{}, said: map[string]bool{}, gap: sayAgain}
}

// Failed notes why a server was of no use. When ctx ends, all that are being asked fail for that: what was known before
// says more.
func (w *Waiting) Failed(ctx context.Context, server string, err error) {
	if _, known := w.why[server]; !known || ctx.Err() == nil {
		w.why[server] = err
	}
}

// Helped notes that a server was of use.
func (w *Waiting) Helped(server string) { delete(w.why, server) }

// Err is why each of the servers was of no use, or nil if all were.
func (w *Waiting) Err() error {
	var all []error
	for _, server := range slices.Sorted(maps.Keys(w.why)) {
		all = append(all, fmt.Errorf("%s: %w", server, w.why[server]))
	}
	if len(all) == 0 {
		return nil
	}
	return reasons{all}
}

// Say tells the log what is waited for, if that is new or was not said for a while.
func (w *Waiting) Say(what string) {
	now, news := mono.Now(), w.next == 0
	if now >= w.next {
		clear(w.said)
		if !news {
			w.gap = min(2*w.gap, sayAgainMost)
		}
		w.next = now.Add(w.gap)
	}
	for server, err := range w.why {
		if key := server + ": " + peer.CauseOf(err); !w.said[key] {
			news, w.said[key] = true, true
		}
	}
	if err := w.Err(); news && err != nil {
		w.log.Warn(what, "error", err)
	}
}

// Again waits until the servers are to be asked again, and reports whether they are: false when ctx has ended.
func (w *Waiting) Again(ctx context.Context) bool {
	pause := joinRetry
	if w.waited >= joinHurry {
		pause = joinRetryMost
	}
	w.waited += pause
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}

// reasons are errors on one line.
type reasons struct{ all []error }

// Error implements error.
func (r reasons) Error() string {
	var all []string
	for _, err := range r.all {
		all = append(all, err.Error())
	}
	return strings.Join(all, "; ")
}

// Unwrap returns the errors.
func (r reasons) Unwrap() []error { return r.all }
