package plan_test

import (
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
)

// TestBackupIsDueAfterTheLastOne, by the ring and a clock that is right; before there is a key none is.
func TestBackupIsDueAfterTheLastOne(t *testing.T) {
	now := start.Add(100 * day)
	three := []string{"a", "b", "c"}
	right := plan.NewClocks(map[string]time.Duration{"b": 0, "c": 0}, time.Minute)
	right.Compared, right.Term = ticks(now), 3
	wrong := plan.NewClocks(map[string]time.Duration{"b": time.Hour, "c": time.Hour}, time.Minute)
	wrong.Compared, wrong.Term = ticks(now), 3
	first := map[time.Time]mono.Time{now.Add(year): ticks(now.Add(-23 * time.Hour))}
	for _, tt := range []struct {
		name    string
		noKey   bool
		last    time.Time
		servers []string
		clocks  plan.Clocks
		retry   time.Duration // from now
		want    plan.Kind
		in      time.Duration // of Wait
	}{
		{name: "no key", noKey: true, want: plan.Nothing},
		{name: "no backup", want: plan.Backup},
		{name: "the last is recent", last: now.Add(-day + time.Second), want: plan.Wait, in: time.Second},
		{name: "the last is old", last: now.Add(-day), want: plan.Backup},
		{name: "a leader that was without raft for long", last: now.Add(-50 * day), want: plan.Backup},
		{name: "an attempt has failed", last: now.Add(-2 * day), retry: time.Minute, want: plan.Wait, in: time.Minute},
		{name: "an attempt has failed long ago", last: now.Add(-2 * day), retry: -time.Minute, want: plan.Backup},
		{name: "no backup, and an attempt has failed", retry: time.Minute, want: plan.Wait, in: time.Minute},
		{name: "the last lies ahead, by less than the leeway", last: now.Add(time.Minute), want: plan.Wait, in: day + time.Minute},
		{name: "the last lies a year ahead, and is seen now", last: now.Add(year + 1), want: plan.Wait, in: day},
		{name: "the last lies a year ahead, and was seen 23 hours ago", last: now.Add(year), want: plan.Wait, in: time.Hour},
		{name: "of three", servers: three, clocks: right, last: now.Add(-2 * day), want: plan.Backup},
		{name: "clocks not compared", servers: three, last: now.Add(-2 * day), want: plan.Compare},
		{name: "clocks not compared, and not due", servers: three, last: now, want: plan.Wait, in: day},
		{name: "a wrong clock", servers: three, clocks: wrong, last: now.Add(-2 * day), want: plan.Wait, in: 10 * time.Minute},
	} {
		r := &meta.Ring{Keys: []*meta.Key{{ID: keyID(1), State: meta.StateActive}}}
		if tt.noKey {
			r.Keys[0].State = meta.StatePrepublished
		}
		if !tt.last.IsZero() {
			r.Backup = meta.Backup{Index: 7, Time: tt.last}
		}
		r = r.With(func(*meta.Key) {}) // which notes the active key
		s := plan.Situation{Now: now, Mono: ticks(now), Servers: tt.servers, Clocks: tt.clocks, Term: 3}
		if tt.retry != 0 {
			s.Retry = ticks(now.Add(tt.retry))
		}
		a := plan.NextBackup(r, s, plan.RingClock{Now: now, Mono: s.Mono, Leeway: time.Minute, First: first}, day)
		if a.Kind != tt.want || tt.want == plan.Wait && a.Until.Sub(s.Mono) != tt.in {
			t.Errorf("%s: %+v, want %s in %v", tt.name, a, tt.want, tt.in)
		}
	}
}

func TestBackupIsLateAQuarterOfThePeriodAfterItIsDue(t *testing.T) {
	now := start.Add(100 * day)
	c := plan.RingClock{Now: now, Leeway: time.Minute}
	for _, tt := range []struct{ last, used, want time.Time }{
		{last: now.Add(-day), used: now.Add(-99 * day), want: now.Add(6 * time.Hour)},
		{used: now.Add(-day), want: now.Add(-18 * time.Hour)},
		{last: now.Add(year), want: now.Add(30 * time.Hour)},
		{},
	} {
		r := &meta.Ring{}
		if !tt.last.IsZero() {
			r.Backup = meta.Backup{Index: 1, Time: tt.last}
		}
		if got := c.BackupLate(r, tt.used, day); !got.Equal(tt.want) {
			t.Errorf("last %v, in use since %v: late at %v, want %v", tt.last, tt.used, got, tt.want)
		}
	}
}

func TestBackupRetry(t *testing.T) {
	for attempt, most := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		most *= time.Minute
		if got := plan.BackupRetry(attempt, day, 0); got != most {
			t.Errorf("attempt %d: %v, want %v", attempt, got, most)
		}
		if got := plan.BackupRetry(attempt, day, 0.999999); got < most/2 || got > most/2+most/1000 {
			t.Errorf("attempt %d: %v, want half of %v", attempt, got, most)
		}
	}
	if got := plan.BackupRetry(1000, time.Hour, 0); got != time.Hour/8 {
		t.Errorf("every hour: %v", got)
	}
	if got := plan.BackupRetry(0, time.Nanosecond, 0.999999); got < time.Second/2 {
		t.Errorf("never less than a moment: %v", got)
	}
}
