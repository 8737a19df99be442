// Package boundedtest measures what decoding costs.
package boundedtest

import (
	"runtime"
	"testing"
)

// Memory calls do, and wants it to allocate no more than base bytes and each for every byte of input. What
// other goroutines allocate meanwhile counts too, so what is too much is measured again.
func Memory(t testing.TB, input, base, each int, do func()) {
	t.Helper()
	var used uint64
	for range 3 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		do()
		runtime.ReadMemStats(&after)
		if used = after.TotalAlloc - before.TotalAlloc; used <= uint64(base)+uint64(each)*uint64(input) {
			return
		}
	}
	t.Errorf("%d bytes are allocated for %d of input, at most %d and %d for each are allowed", used, input, base, each)
}
