package mono_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/mono"
)

func TestNowGoesWithTimers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := mono.Now()
		if began <= 0 {
			t.Errorf("Now is %d", began)
		}
		due := began.Add(time.Hour)
		if d := mono.Until(due); d != time.Hour {
			t.Errorf("an hour from now is in %v", d)
		}
		time.Sleep(100 * 365 * 24 * time.Hour)
		if d := mono.Now().Sub(began); d != 100*365*24*time.Hour {
			t.Errorf("a hundred years took %v", d)
		}
		if d := mono.Until(due); d > 0 {
			t.Errorf("what has passed is in %v", d)
		}
	})
}

func TestSumsAndDifferencesStayInRange(t *testing.T) {
	const longest, shortest = time.Duration(math.MaxInt64), time.Duration(math.MinInt64)
	first, last := mono.Time(math.MinInt64), mono.Time(math.MaxInt64)
	for _, tt := range []struct {
		t    mono.Time
		d    time.Duration
		want mono.Time
	}{{1, longest, last}, {last, 1, last}, {-2, shortest, first}, {first, -1, first}, {5, -7, -2}, {last, shortest, -1}} {
		if got := tt.t.Add(tt.d); got != tt.want {
			t.Errorf("%d + %d = %d", tt.t, tt.d, got)
		}
	}
	for _, tt := range []struct {
		t, u mono.Time
		want time.Duration
	}{{last, -1, longest}, {first, 1, shortest}, {7, 5, 2}, {5, 7, -2}, {last, last, 0}, {first, 0, shortest}} {
		if got := tt.t.Sub(tt.u); got != tt.want {
			t.Errorf("%d - %d = %d", tt.t, tt.u, got)
		}
	}
}
