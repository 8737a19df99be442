package keyringtest

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// Versus benchmarks subject against limit, on one core and on all. Both are called once a
// goroutine, for an operation with its own buffers. Batches of many operations of the one and
// the other take turns, and x-limit is the median of the ratios of neighbours: a slow second
// on a shared machine hits both. One iteration is one batch of each.
func Versus(b *testing.B, name string, many int, limit, subject func() func()) {
	for _, procs := range []int{1, runtime.GOMAXPROCS(0)} {
		b.Run(fmt.Sprintf("%s/procs=%d", name, procs), func(b *testing.B) {
			lim, sub := onCores(procs, limit), onCores(procs, subject)
			lim(many)
			sub(many)
			var ratios, costs, limits []float64
			for even := false; b.Loop(); even = !even {
				var l, s float64
				if even { // so that neither always runs on the other's warm caches
					l, s = lim(many), sub(many)
				} else {
					s, l = sub(many), lim(many)
				}
				ratios, costs, limits = append(ratios, s/l), append(costs, s), append(limits, l)
			}
			b.ReportMetric(0, "ns/op") // of a batch: nothing anyone wants to know
			b.ReportMetric(Median(costs), "ns/msg")
			b.ReportMetric(Median(limits), "ns/limit")
			b.ReportMetric(Median(ratios), "x-limit")
		})
	}
}

// onCores returns a function that runs many operations on each core at once, and returns
// the nanoseconds one of them took.
func onCores(procs int, operation func() func()) func(many int) float64 {
	ops := make([]func(), procs)
	for i := range ops {
		ops[i] = operation()
	}
	return func(many int) float64 {
		var wg sync.WaitGroup
		start := time.Now()
		for _, op := range ops[1:] {
			wg.Go(func() { repeat(many, op) })
		}
		repeat(many, ops[0])
		wg.Wait()
		return float64(time.Since(start).Nanoseconds()) / float64(many)
	}
}

func repeat(many int, op func()) {
	for range many {
		op()
	}
}

// Median sorts x and returns what is in its middle.
func Median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}
