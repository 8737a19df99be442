package peer

import (
	"context"
	"sync"
)

// turns has each of many do so many things at a time.
type turns[K comparable] struct {
	most int

	mu sync.Mutex // guards below
	of map[K]*queue
}

// queue is that of one of them.
type queue struct {
	turn  chan struct{} // has one element for each turn that is taken
	users int           // who has a turn or waits for one
}

func newTurns[K comparable](most int) *turns[K] {
	return &turns[K]{most: most, of: make(map[K]*queue)}
}

// take waits for a turn, which done ends, and reports whether it has got one before ctx ended.
// Who waits first is first.
func (t *turns[K]) take(ctx context.Context, id K) (done func(), ok bool) {
	q := t.enter(id)
	select {
	case q.turn <- struct{}{}:
		return func() { <-q.turn; t.leave(id, q) }, true
	case <-ctx.Done():
		t.leave(id, q)
		return nil, false
	}
}

func (t *turns[K]) enter(id K) *queue {
	t.mu.Lock()
	defer t.mu.Unlock()
	q, ok := t.of[id]
	if !ok {
		q = &queue{turn: make(chan struct{}, t.most)}
		t.of[id] = q
	}
	q.users++
	return q
}

func (t *turns[K]) leave(id K, q *queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(t.of, id)
	}
}
