package local

// Requests about many keys, in batches that the other server, its disk and the link to it can answer in time.

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"example.com/keyring/internal/plan"
)

// Batches is what was seen of how fast servers answer one kind of request. It is safe for concurrent use.
type Batches struct {
	First, Most int // keys in one request, as in plan.NewBatch

	mu sync.Mutex // guards below
	by map[string]*plan.Batch
}

func (b *Batches) of(server string) *plan.Batch {
	if b.by[server] == nil {
		first := plan.NewBatch(b.First, b.Most)
		b.by = set(b.by, server, &first)
	}
	return b.by[server]
}

// Next is what the next request to a server may be.
func (b *Batches) Next(server string) plan.Batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	return *b.of(server)
}

func (b *Batches) update(server string, do func(*plan.Batch)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	do(b.of(server))
}

// LateError says that the answer about so many keys did not come in time: a smaller question may be answered.
type LateError struct {
	Keys int
	err  error
}

// Error is what the call has said.
func (e LateError) Error() string { return e.err.Error() }

// Unwrap returns what the call has said.
func (e LateError) Unwrap() error { return e.err }

// InBatches asks a server about items, one batch after the other, until one fails. It returns how many were asked about
// before that. The error is a LateError if an answer has not come in time. The context of ask ends then.
func InBatches[T any](ctx context.Context, b *Batches, server string, items []T, ask func(ctx context.Context, batch []T) error) (int, error) {
	done := 0
	for done < len(items) {
		next := b.Next(server)
		batch := items[done:min(len(items), done+next.Size())]
		if err := b.one(ctx, server, len(batch), next.Within(), func(ctx context.Context) error { return ask(ctx, batch) }); err != nil {
			return done, err
		}
		done += len(batch)
	}
	return done, nil
}

func (b *Batches) one(ctx context.Context, server string, n int, within time.Duration, ask func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	began := time.Now()
	err := ask(limited)
	switch {
	case err == nil:
		b.update(server, func(p *plan.Batch) { p.Answered(n, time.Since(began)) })
	case ctx.Err() == nil && (limited.Err() != nil || isTimeout(err)):
		b.update(server, func(p *plan.Batch) { p.Late(n) })
		return LateError{n, err}
	}
	return err
}

// isTimeout is for a host's transport with deadlines of its own.
func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}
