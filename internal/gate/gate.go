// Package gate is how calls that may block end with their contexts, and how what they belong to is closed.
//
// Every exported call of the keyring that takes a context returns within [Grace] of its end, whatever it
// waits for: raft, whose log store may hang, a KEK, the Transport, Config.Data or a disk. Most end with their
// context by themselves, and say what has become of what they were asked for. One that does not is left
// behind: it goes on in its goroutine, finds its context ended when what it waits for comes back, and ends
// then.
package gate

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Grace is how much longer than its context a call may take.
const Grace = 250 * time.Millisecond

// ErrLeft is matched by the error of a call that was left behind.
var ErrLeft = errors.New("raft, a KEK, the transport, the host's data or a disk does not answer")

// Gate is what every call that may block enters, and what knows those that are under way. The zero value is
// open.
type Gate struct {
	mu     sync.Mutex // guards below
	closed error      // why no call may enter; nil while the gate is open
	under  map[*context.CancelCauseFunc]struct{}
	calls  sync.WaitGroup // those under way; Add only under mu and while the gate is open
}

// Enter begins a call. The context it returns ends with the caller's and with Close; done ends the call.
// There is no context.AfterFunc in it: its goroutine could outlive Close.
func (g *Gate) Enter(ctx context.Context) (inside context.Context, done func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		return nil, nil, g.closed
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if g.under == nil {
		g.under = map[*context.CancelCauseFunc]struct{}{}
	}
	g.under[&cancel] = struct{}{}
	g.calls.Add(1)
	return ctx, func() {
		cancel(nil)
		g.mu.Lock()
		delete(g.under, &cancel)
		g.mu.Unlock()
		g.calls.Done()
	}, nil
}

// Close ends the contexts of the calls under way, with that cause, and refuses all others with it. It does
// not wait: see Wait.
func (g *Gate) Close(why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = why
	for end := range g.under {
		(*end)(why)
	}
}

// Wait waits for the calls that were under way when Close was called, those that were left behind too.
func (g *Gate) Wait() { g.calls.Wait() }

// Err is what Close was called with, or nil while the gate is open.
func (g *Gate) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// Through is Await for a call that enters a gate. The context that it has ends with the caller's and with
// Close.
func Through[T any](ctx context.Context, g *Gate, call func(context.Context) (T, error)) (T, error) {
	ctx, done, err := g.Enter(ctx)
	if err != nil {
		var none T
		return none, err
	}
	return await(ctx, func() (T, error) { return call(ctx) }, func(T) {}, done)
}

// Await runs a call that is to end with ctx, and leaves it behind if it does not. A panic of the call is the
// caller's.
func Await[T any](ctx context.Context, call func() (T, error)) (T, error) {
	return AwaitOr(ctx, call, func(T) {})
}

// AwaitOr is Await that hands to late what a call returns, without an error, after it was left behind.
func AwaitOr[T any](ctx context.Context, call func() (T, error), late func(T)) (T, error) {
	return await(ctx, call, late, func() {})
}

// result is what a call returns, or its panic.
type result[T any] struct {
	v        T
	err      error
	panicked any
}

// await calls ended when the call has ended, left behind or not.
func await[T any](ctx context.Context, call func() (T, error), late func(T), ended func()) (T, error) {
	answer, left := make(chan result[T]), make(chan struct{})
	go func() {
		defer ended()
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
			if r.err == nil {
				late(r.v)
			}
		}()
		r.v, r.err = call()
	}()
	r, answered := receive(ctx, answer)
	if !answered {
		close(left)
		r.err = fmt.Errorf("%w: %w", context.Cause(ctx), ErrLeft)
	}
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.v, r.err
}

// receive waits for an answer until ctx has ended, and Grace more.
func receive[A any](ctx context.Context, answer <-chan A) (a A, answered bool) {
	select {
	case a = <-answer:
		return a, true
	case <-ctx.Done():
	}
	timer := time.NewTimer(Grace)
	defer timer.Stop()
	select {
	case a = <-answer:
		return a, true
	case <-timer.C:
		return a, false
	}
}
