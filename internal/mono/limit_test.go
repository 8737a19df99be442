package mono_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/mono"
)

// TestLimitOfOneNameHidesNoOthers, and names without number have no line each.
func TestLimitOfOneNameHidesNoOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var limits mono.Limits
		lines := map[string]int{}
		ask := func(id string) { limits.Do(id, func() { lines[id]++ }) }
		for range 100 {
			ask("s3")
		}
		ask("s4")
		if lines["s3"] != 1 || lines["s4"] != 1 {
			t.Errorf("lines: %v", lines)
		}
		for i := range 1000 {
			ask(fmt.Sprint("more", i))
		}
		if len(lines) > mono.MaxLimits+1 {
			t.Errorf("%d lines", len(lines))
		}
		time.Sleep(11 * time.Second) // virtual
		ask("s3")
		ask("new")
		if lines["s3"] != 2 || lines["new"] != 1 {
			t.Errorf("later: %d, %d", lines["s3"], lines["new"])
		}
	})
}
