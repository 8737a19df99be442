package peer

import (
	"context"
	"sync"
)

// limits lets each key, such as a server or an address, do a limited number of things at a time.
type limits[K comparable] struct {
	most int // things of one key at a time

	mu     sync.Mutex // guards below
	limits map[K]*limit
}

// limit is that of one key.
type limit struct {
	places chan struct{} // has one element for each place that is taken
	users  int           // that have a place or wait for one
}

func newLimits[K comparable](most int) *limits[K] {
	return &limits[K]{most: most, limits: make(map[K]*limit)}
}

// acquire waits for a place, first come, first served. ok is false if ctx ended first; otherwise the caller
// has to call release.
func (l *limits[K]) acquire(ctx context.Context, key K) (release func(), ok bool) {
	lim := l.enter(key)
	select {
	case lim.places <- struct{}{}:
		return func() { <-lim.places; l.leave(key, lim) }, true
	case <-ctx.Done():
		l.leave(key, lim)
		return nil, false
	}
}

func (l *limits[K]) enter(key K) *limit {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim, ok := l.limits[key]
	if !ok {
		lim = &limit{places: make(chan struct{}, l.most)}
		l.limits[key] = lim
	}
	lim.users++
	return lim
}

func (l *limits[K]) leave(key K, lim *limit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lim.users--; lim.users == 0 {
		delete(l.limits, key)
	}
}
