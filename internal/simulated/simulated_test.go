package simulated_test

import (
	"path/filepath"
	"testing"
	"time"

	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/simulated"
)

// TestOnlyWhatATestSetsIsSimulated: a host's Open has its directory and the right time.
func TestOnlyWhatATestSetsIsSimulated(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "keystore")
	fsys, err := simulated.OpenDir(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	if simulated.Disk(ctx) != nil || time.Until(simulated.Clock(ctx)()).Abs() > time.Minute {
		t.Error("a disk or a clock is simulated that no test has set")
	}

	disk, err := keyringtest.NewDisk().Open()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1, 0)
	ctx = simulated.WithClock(simulated.WithDisk(ctx, disk), func() time.Time { return at })
	if got, err := simulated.OpenDir(ctx, path); got != disk || err != nil {
		t.Errorf("opened %v, %v", got, err)
	}
	if got := simulated.Clock(ctx)(); got != at {
		t.Errorf("the clock shows %v", got)
	}
}
