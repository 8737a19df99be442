package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const workers = 4

// writers put secrets. Each has its own, so it knows what is there: what it put last.
type writers struct {
	*demo
	values []string // of the secrets, by number; worker i writes each workers-th from the i-th on

	mu   sync.Mutex // guards below
	done int        // puts of overwrite
	slow time.Duration
	last uint64 // log index of the newest put
}

func newWriters(d *demo, secrets int) *writers {
	return &writers{demo: d, values: make([]string, secrets)}
}

func path(n int) string { return fmt.Sprintf("/v1/secrets/apps/%d/password", n) }

// fill puts each secret once.
func (w *writers) fill(ctx context.Context) error {
	return each(func(worker int) error {
		for n := worker; n < len(w.values); n += workers {
			if err := w.put(ctx, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// overwrite puts secrets at random until rest is closed. What it has begun to put then, it puts.
func (w *writers) overwrite(ctx context.Context, rest <-chan struct{}) error {
	return each(func(worker int) error {
		for {
			select {
			case <-rest:
				return nil
			default:
			}
			began := time.Now()
			if err := w.put(ctx, worker+workers*rand.IntN(len(w.values)/workers)); err != nil {
				return err
			}
			w.mu.Lock()
			w.done, w.slow = w.done+1, max(w.slow, time.Since(began))
			w.mu.Unlock()
		}
	})
}

// each runs all workers and waits for them.
func each(work func(worker int) error) error {
	ended := make(chan error, workers)
	for i := range workers {
		go func() { ended <- work(i) }()
	}
	var errs []error
	for range workers {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

func (w *writers) puts() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done
}

func (w *writers) longest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.slow
}

func (w *writers) newest() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// put puts a new value. After an error nobody knows whether it is there: it is put again, at
// another server, until one says that it is. A server that is killed is the common reason.
func (w *writers) put(ctx context.Context, n int) error {
	w.values[n] = fmt.Sprintf("password %d of app %d", rand.Uint32(), n)
	last := errors.New("there is no server")
	for {
		views, changed := w.look()
		var out struct{ Version uint64 }
		for id := range views { // in no order
			if last = w.call(ctx, id, "PUT", path(n), map[string]string{"value": w.values[n]}, &out); last == nil {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.last = max(w.last, out.Version)
				return nil
			}
			break
		}
		select {
		case <-changed:
		case <-time.After(callTime):
			return fmt.Errorf("no server takes %s: %w", path(n), last)
		case <-ctx.Done():
			return fmt.Errorf("put %s: %w: %w", path(n), context.Cause(ctx), last)
		}
	}
}

// check reads every secret from what one server has, and returns how many are as they were put.
func (w *writers) check(ctx context.Context, id string) (good int, err error) {
	for n, value := range w.values {
		var out struct{ Value string }
		if err := w.call(ctx, id, "GET", path(n)+"?stale", nil, &out); err != nil {
			return good, err
		}
		if out.Value != value {
			return good, fmt.Errorf("%s is not the value that was put last", path(n))
		}
		good++
	}
	return good, nil
}
