// Package parallel does one thing to many items at a time.
package parallel

import (
	"sync"
	"sync/atomic"
)

// Most is how many items are worked on at a time: enough to keep several requests to a KMS on their way.
const Most = 16

// Do calls do with 0 to n-1, Most at a time, and waits for all of them. The caller is one of the workers, so one
// call needs no goroutine.
func Do(n int, do func(i int)) {
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
			do(i - 1)
		}
	}
	var wg sync.WaitGroup
	for range min(Most, n) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}
