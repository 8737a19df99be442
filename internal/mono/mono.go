// Package mono reads the monotonic clock. Its times have a type of their own, so that they can't be confused with times of
// the wall clock, which can be set while the monotonic clock can't.
//
// Waits, pauses and deadlines in memory use the times of this package. Times in the ring, in tokens and in files are those
// of the wall clock, and so are the times that are compared with them.
package mono

import (
	"math"
	"time"
)

// Time is a moment by the monotonic clock of this process, in nanoseconds. It means nothing to another
// process. Times are compared with < and >. The zero Time is before all others.
type Time int64

var start = time.Now() // with its monotonic reading

// origin is the Time of start. In a bubble of testing/synctest there is no monotonic reading, and the bubble's clock
// begins decades before start: even so Now is far from zero.
const origin = Time(100 * 365 * 24 * time.Hour)

// Now returns the present moment. It is never zero.
func Now() Time { return origin.Add(time.Since(start)) }

// Until returns how long it is until t; negative if t has passed.
func Until(t Time) time.Duration { return t.Sub(Now()) }

// Add returns t+d, or the first or last Time that there is.
func (t Time) Add(d time.Duration) Time {
	sum := t + Time(d)
	switch {
	case d > 0 && sum < t:
		return math.MaxInt64
	case d < 0 && sum > t:
		return math.MinInt64
	}
	return sum
}

// Sub returns t-u, or the longest Duration of that sign.
func (t Time) Sub(u Time) time.Duration {
	d := time.Duration(t - u)
	switch {
	case t > u && d < 0:
		return math.MaxInt64
	case t < u && d > 0:
		return math.MinInt64
	}
	return d
}

// Earliest returns the first of the moments, without those that are zero.
func Earliest(times ...Time) (first Time) {
	for _, t := range times {
		if t != 0 && (first == 0 || t < first) {
			first = t
		}
	}
	return first
}
