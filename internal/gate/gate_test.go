package gate_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/gate"
)

var errClosed = errors.New("closed")

// TestCallEndsWithItsCallerAndWithClose, and none enters after that.
func TestCallEndsWithItsCallerAndWithClose(t *testing.T) {
	var g gate.Gate
	caller, cancel := context.WithCancel(t.Context())
	first, done, err := g.Enter(caller)
	if err != nil || g.Err() != nil {
		t.Fatal(err, g.Err())
	}
	defer done()
	second, doneToo, err := g.Enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer doneToo()
	cancel()
	if !errors.Is(context.Cause(first), context.Canceled) || second.Err() != nil {
		t.Errorf("after the end of the first caller: %v, and the other call: %v", context.Cause(first), second.Err())
	}
	g.Close(errClosed)
	if context.Cause(second) != errClosed || g.Err() != errClosed {
		t.Errorf("after Close: %v, the gate says %v", context.Cause(second), g.Err())
	}
	if _, _, err := g.Enter(t.Context()); err != errClosed {
		t.Errorf("Enter after Close: %v", err)
	}
	if _, err := gate.Through(t.Context(), &g, func(context.Context) (int, error) { return 1, nil }); err != errClosed {
		t.Errorf("Through after Close: %v", err)
	}
}

// TestWaitWaitsForACallThatWasLeftBehind, which the caller no longer does.
func TestWaitWaitsForACallThatWasLeftBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g gate.Gate
		hangs := make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := gate.Through(ctx, &g, func(context.Context) (int, error) { <-hangs; return 1, nil })
		if took := time.Since(began); took != time.Second+gate.Grace || !errors.Is(err, gate.ErrLeft) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", took, err)
		}
		g.Close(errClosed)
		waited := make(chan struct{})
		go func() { g.Wait(); close(waited) }()
		synctest.Wait()
		select {
		case <-waited:
			t.Error("Wait has returned, and the call goes on")
		default:
		}
		close(hangs)
		<-waited
	})
}

// TestCallThatIsLateWithinTheGraceIsNotLeftBehind: it may say what has become of what it was asked for.
func TestCallThatIsLateWithinTheGraceIsNotLeftBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		v, err := gate.Await(ctx, func() (int, error) {
			<-ctx.Done()
			time.Sleep(gate.Grace - 1) // virtual
			return 7, errClosed
		})
		if v != 7 || err != errClosed {
			t.Errorf("%d, %v", v, err)
		}
	})
}

// TestWhatACallThatWasLeftBehindReturnsIsGivenToLate, but for what comes with an error.
func TestWhatACallThatWasLeftBehindReturnsIsGivenToLate(t *testing.T) {
	t.Parallel()
	for _, fails := range []error{nil, errClosed} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			hangs, late := make(chan struct{}), make(chan int, 1)
			_, err := gate.AwaitOr(ctx, func() (int, error) { <-hangs; return 7, fails }, func(v int) { late <- v })
			if !errors.Is(err, gate.ErrLeft) {
				t.Errorf("AwaitOr: %v", err)
			}
			close(hangs)
			synctest.Wait()
			if got := len(late) == 1; got != (fails == nil) {
				t.Errorf("with error %v: late was called: %t", fails, got)
			}
		})
	}
}

// TestPanicIsTheCallers, and so is the end of the goroutine.
func TestPanicIsTheCallers(t *testing.T) {
	var g gate.Gate
	func() {
		defer func() {
			if p := recover(); p != "the host's" {
				t.Errorf("recovered %v", p)
			}
		}()
		gate.Through(t.Context(), &g, func(context.Context) (int, error) { panic("the host's") })
	}()
	if _, err := gate.Await(t.Context(), func() (int, error) { runtime.Goexit(); return 0, nil }); err == nil {
		t.Error("a call whose goroutine was ended has no error")
	}
	g.Close(errClosed)
	g.Wait() // for a call that has panicked too
}
