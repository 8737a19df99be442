package peer_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/peer"
)

func TestLimitsAreFirstComeFirstServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		limits := peer.NewLimits(2)
		order := make(chan int, 6)
		for i := range 6 {
			go func() {
				release, ok := limits.Acquire(t.Context(), "a")
				if !ok {
					t.Errorf("%d has got none", i)
					return
				}
				order <- i
				time.Sleep(time.Minute + time.Duration(i)*time.Second)
				release()
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, ok := limits.Acquire(ctx, "a"); ok || len(order) != 2 {
			t.Errorf("%d have a place", len(order))
		}
		release, ok := limits.Acquire(t.Context(), "b")
		if !ok {
			t.Error("another key has none")
		}
		release()
		time.Sleep(time.Hour)
		if n := limits.Known(); n != 0 {
			t.Errorf("%d are remembered", n)
		}
		for i := range 6 {
			if n := <-order; n != i {
				t.Errorf("%d has its place where %d should", n, i)
			}
		}
	})
}
