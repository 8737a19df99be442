package peer_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/peer"
)

func TestTurnsAreGivenInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := peer.NewTurns(2)
		order := make(chan int, 6)
		for i := range 6 {
			go func() {
				done, ok := turns.Take(t.Context(), "a")
				if !ok {
					t.Errorf("%d has got none", i)
					return
				}
				order <- i
				time.Sleep(time.Minute + time.Duration(i)*time.Second)
				done()
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, ok := turns.Take(ctx, "a"); ok || len(order) != 2 {
			t.Errorf("%d have a turn", len(order))
		}
		done, ok := turns.Take(t.Context(), "b")
		if !ok {
			t.Error("another has none")
		}
		done()
		time.Sleep(time.Hour)
		if n := turns.Known(); n != 0 {
			t.Errorf("%d are remembered", n)
		}
		for i := range 6 {
			if n := <-order; n != i {
				t.Errorf("%d has its turn where %d should", n, i)
			}
		}
	})
}
