package mono

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// limitEvery is how often a Limit lets something be done.
const limitEvery = 10 * time.Second

// Limit does things at most once in ten seconds: it is for log lines that another server can cause. The zero Limit
// can be used.
type Limit struct{ next atomic.Int64 } // a Time

// Do calls do, or does nothing.
func (l *Limit) Do(do func()) {
	next, at := l.next.Load(), Now()
	if at >= Time(next) && l.next.CompareAndSwap(next, int64(at.Add(limitEvery))) {
		do()
	}
}

// MaxLimits is how many names Limits tells apart in ten seconds.
const MaxLimits = 64

// Limits is a Limit for each name. Names beyond MaxLimits in ten seconds share one. The zero Limits can be used.
type Limits struct {
	mu     sync.Mutex // guards below
	byName map[string]*Limit
	shared Limit
}

// Do calls do, or does nothing.
func (l *Limits) Do(name string, do func()) { l.of(name).Do(do) }

func (l *Limits) of(name string) *Limit {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.byName[name]; one != nil {
		return one
	}
	if len(l.byName) >= MaxLimits {
		now := int64(Now())
		maps.DeleteFunc(l.byName, func(_ string, one *Limit) bool { return one.next.Load() <= now })
	}
	if len(l.byName) >= MaxLimits {
		return &l.shared
	}
	if l.byName == nil {
		l.byName = map[string]*Limit{}
	}
	one := new(Limit)
	l.byName[name] = one
	return one
}
