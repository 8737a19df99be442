package gate

// Functions that the library calls and does not own: which of them have not returned, and since when.

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/mono"
)

// Calls are the calls of such functions. The zero value has none. It is safe for concurrent use.
type Calls struct {
	mu  sync.Mutex // guards below
	all map[*Call]struct{}
}

// Call is one call at a time of a function. While it is not entered nothing of it counts.
type Call struct {
	name     string
	patience time.Duration
	since    atomic.Pointer[callTime] // nil while the function does not run
}

type callTime struct {
	at   mono.Time
	wall time.Time
}

// Enter notes that the function runs, until Leave.
func (c *Call) Enter() { c.since.Store(&callTime{mono.Now(), time.Now()}) }

// Leave notes that it does not run.
func (c *Call) Leave() { c.since.Store(nil) }

// New adds a Call of the function of that name, which is slow once it has run for longer than patience. It is not entered yet, and
// is there until Forget.
func (c *Calls) New(name string, patience time.Duration) *Call {
	call := &Call{name: name, patience: patience}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[*Call]struct{}{}
	}
	c.all[call] = struct{}{}
	return call
}

// Forget takes a Call out.
func (c *Calls) Forget(call *Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, call)
}

// Watch calls a function, and notes it while it runs.
func (c *Calls) Watch(name string, patience time.Duration, call func()) {
	noted := c.New(name, patience)
	defer c.Forget(noted)
	noted.Enter()
	call()
}

// Begin notes that a function runs, until end. It calls changed when the function has become slow, and end calls it once more
// after that.
func (c *Calls) Begin(name string, patience time.Duration, changed func()) (end func()) {
	noted := c.New(name, patience)
	noted.Enter()
	told := make(chan struct{})
	timer := time.AfterFunc(patience, func() { defer close(told); changed() })
	return func() {
		c.Forget(noted)
		if !timer.Stop() {
			<-told
			changed()
		}
	}
}

// Slow are the functions that have not returned in time, by name, with when the earliest call began.
func (c *Calls) Slow(now mono.Time) map[string]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	slow := map[string]time.Time{}
	for call := range c.all {
		since := call.since.Load()
		if since == nil || now.Sub(since.at) < call.patience {
			continue
		}
		if first, named := slow[call.name]; !named || since.wall.Before(first) {
			slow[call.name] = since.wall
		}
	}
	return slow
}

// Names are the functions that run, sorted.
func (c *Calls) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[string]bool{}
	for call := range c.all {
		if call.since.Load() != nil {
			names[call.name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
