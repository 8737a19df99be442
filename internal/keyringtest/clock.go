package keyringtest

import (
	"sync/atomic"
	"time"
)

// Clock is a server's wall clock, which can be set while the server runs. The zero value shows the right
// time. No timer notices that it is set.
type Clock struct{ ahead atomic.Int64 }

// Now is what the clock shows.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// Set sets the clock, so that it is so much ahead of the right time; behind it, if that is negative.
func (c *Clock) Set(ahead time.Duration) { c.ahead.Store(int64(ahead)) }
