package secret_test

import (
	"testing"

	"example.com/keyring/internal/secret"
)

// TestDoCallsOnceAndLetsPanicsOut in every build, also from within itself.
func TestDoCallsOnceAndLetsPanicsOut(t *testing.T) {
	calls := 0
	secret.Do(func() { secret.Do(func() { calls++ }) })
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	defer func() {
		if got := recover(); got != "oops" {
			t.Errorf("recovered %v", got)
		}
	}()
	secret.Do(func() { panic("oops") })
	t.Error("no panic")
}
