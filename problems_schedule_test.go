package keyring

import (
	"errors"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
)

// TestBackupsByScheduleAreAProblemWhenTheyAreLate, or fail for a while; not a key that is newer than the last, for the next one
// comes by itself.
func TestBackupsByScheduleAreAProblemWhenTheyAreLate(t *testing.T) {
	fails := func(ago time.Duration) func(*overview) {
		return func(o *overview) {
			o.Ring.Backup.Time = o.now
			o.schedule.Attempts = &local.Failure{Err: errors.New("no space"), Since: o.at.Add(-ago)}
		}
	}
	last := func(ago time.Duration) func(*overview) {
		return func(o *overview) { o.Ring.Backup = meta.Backup{Index: 4, Time: o.now.Add(-ago)} } // a key is newer
	}
	never := func(used time.Duration) func(*overview) {
		return func(o *overview) { o.Ring.Backup, o.Ring.Keys[0].Activated = meta.Backup{}, o.now.Add(-used) }
	}
	for name, tt := range map[string]struct {
		is   func(*overview)
		want []string
	}{
		"on time, and a key is newer":   {last(29 * time.Hour), nil},
		"late":                          {last(31 * time.Hour), []string{"the last backup is of 2025-12-31 20:04:05 UTC", "every 24h0m0s"}},
		"the first is soon":             {never(5 * time.Hour), nil},
		"the first is late":             {never(7 * time.Hour), []string{"there is no backup: 1 key is in none", "every 24h0m0s"}},
		"an attempt fails":              {fails(9 * time.Minute), nil},
		"attempts fail":                 {fails(11 * time.Minute), []string{"s1 has failed to make one for 11m0s: no space"}},
		"it is not known how far":       {func(o *overview) { last(99 * time.Hour)(o); o.CaughtUp = false }, nil},
		"there is no schedule":          {func(o *overview) { last(99 * time.Hour)(o); o.every = 0 }, nil},
		"late, and the clock was ahead": {last(-99 * time.Hour), nil},
	} {
		o := goodOverview()
		o.every = 24 * time.Hour
		tt.is(&o)
		var got []string
		for _, p := range o.status().Problems {
			if p.Kind == ProblemSchedule {
				got = append(got, p.Detail)
			} else if p.Kind == ProblemBackup && o.every > 0 {
				t.Errorf("%s: %v", name, p)
			}
		}
		if len(got) != min(1, len(tt.want)) {
			t.Errorf("%s: %q", name, got)
		}
		for _, want := range tt.want {
			if !strings.Contains(strings.Join(got, ""), want) {
				t.Errorf("%s: %q has no %q", name, got, want)
			}
		}
	}
}
