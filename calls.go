package keyring

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Every exported call that takes a context returns within callGrace of its end, whatever it waits for: raft,
// whose log store may hang, a KEK, the Transport, Config.Data or a disk. Most end with their context by
// themselves, and say what has become of what they were asked for. One that does not is left behind: it
// goes on in its goroutine, finds its context ended when what it waits for comes back, and ends then.
const callGrace = 250 * time.Millisecond

// closePatience is how long Close waits for calls that were left behind, and for the loops.
const closePatience = 10 * time.Second

// errLeft is matched by the error of a call that was left behind.
var errLeft = errors.New("raft, a KEK, the transport, the host's data or a disk does not answer")

// result is what a call returns, or its panic.
type result[T any] struct {
	v        T
	err      error
	panicked any
}

// endWith runs a call that is to end with ctx, and leaves it behind if it does not. What a call that was left
// behind returns goes to late; ended, if not nil, is called when it has ended, left behind or not.
func endWith[T any](ctx context.Context, call func() (T, error), late func(T), ended func()) (T, error) {
	answer, left := make(chan result[T]), make(chan struct{})
	go func() {
		if ended != nil {
			defer ended()
		}
		r := result[T]{err: errors.New("the host has ended the goroutine of this call")}
		defer func() {
			r.panicked = recover()
			select {
			case answer <- r:
				return
			case <-left:
			}
			if r.panicked != nil {
				panic(r.panicked)
			}
			if late != nil && r.err == nil {
				late(r.v)
			}
		}()
		r.v, r.err = call()
	}()
	r, answered := await(ctx, answer)
	if !answered {
		close(left)
		r.err = fmt.Errorf("%w: %w", context.Cause(ctx), errLeft)
	}
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.v, r.err
}

// await waits for an answer until ctx has ended, and callGrace more.
func await[A any](ctx context.Context, answer <-chan A) (a A, answered bool) {
	select {
	case a = <-answer:
		return a, true
	case <-ctx.Done():
	}
	timer := time.NewTimer(callGrace)
	defer timer.Stop()
	select {
	case a = <-answer:
		return a, true
	case <-timer.C:
		return a, false
	}
}

// during is endWith for a call of a Keyring. The context that it has ends with the caller's and with
// Close, which waits for the call.
func during[T any](ctx context.Context, k *Keyring, call func(context.Context) (T, error)) (T, error) {
	ctx, done, err := k.enter(ctx)
	if err != nil {
		var none T
		return none, err
	}
	return endWith(ctx, func() (T, error) { return call(ctx) }, nil, done)
}

// do is during for a call that returns no more than an error.
func (k *Keyring) do(ctx context.Context, call func(context.Context) error) error {
	_, err := during(ctx, k, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// enter begins a call that may block. The context it returns ends with the caller's and
// with Close. There is no context.AfterFunc in it: its goroutine could outlive Close.
func (k *Keyring) enter(ctx context.Context) (context.Context, func(), error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, nil, ErrClosed
	}
	ctx, cancel := context.WithCancelCause(ctx)
	k.under[&cancel] = struct{}{}
	k.calls.Add(1)
	return ctx, func() {
		cancel(nil)
		k.mu.Lock()
		delete(k.under, &cancel)
		k.mu.Unlock()
		k.calls.Done()
	}, nil
}

func (k *Keyring) isClosed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.closed
}
