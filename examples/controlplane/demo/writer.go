package main

import (
	"context"
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
}

func newWriters(d *demo, secrets int) *writers {
	return &writers{demo: d, values: make([]string, secrets)}
}

func path(n int) string { return fmt.Sprintf("/v1/secrets/apps/%d/password", n) }

// fill puts each secret once.
func (w *writers) fill(ctx context.Context) error {
	errs := make(chan error, workers)
	for i := range workers {
		go func() {
			var err error
			for n := i; n < len(w.values) && err == nil; n += workers {
				err = w.put(ctx, n)
			}
			errs <- err
		}()
	}
	var err error
	for range workers {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return err
}

// overwrite puts secrets at random until ctx ends.
func (w *writers) overwrite(ctx context.Context) {
	var load sync.WaitGroup
	for i := range workers {
		load.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				// Without the context, so that what it has begun to put is put.
				if n := i + workers*rand.IntN(len(w.values)/workers); w.put(context.WithoutCancel(ctx), n) != nil {
					return
				}
				w.mu.Lock()
				w.done, w.slow = w.done+1, max(w.slow, time.Since(began))
				w.mu.Unlock()
			}
		})
	}
	load.Wait()
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

// put puts a new value. After an error nobody knows whether it is there: it is put again, at
// another server, until one says that it is. A server that is killed is the common reason.
func (w *writers) put(ctx context.Context, n int) error {
	w.values[n] = fmt.Sprintf("password %d of app %d", rand.Uint32(), n)
	for {
		views, changed := w.look()
		var out struct{ Version uint64 }
		for id := range views { // in no order
			if w.call(ctx, id, "PUT", path(n), map[string]string{"value": w.values[n]}, &out) == nil {
				return nil
			}
			break
		}
		select {
		case <-changed:
		case <-time.After(callTime):
			return fmt.Errorf("no server takes %s", path(n))
		case <-ctx.Done():
			return context.Cause(ctx)
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
			return good, fmt.Errorf("%s is not what was put last", path(n))
		}
		good++
	}
	return good, nil
}
