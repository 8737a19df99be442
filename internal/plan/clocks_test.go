package plan_test

import (
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
)

const year = 365 * day

// A clock that was wrong for a while, at any time, and then is right: keys rotate as often as before, nobody waits for
// what lies years ahead, and no key was retired before it was activated.
func TestRotationGoesOnAfterAClockWasWrong(t *testing.T) {
	for _, by := range []time.Duration{-year, -day, -5 * time.Second, 5 * time.Second, day, year} {
		for _, at := range []time.Duration{time.Hour, 28 * day, 29*day + time.Hour, 30*day - time.Second, 30*day + time.Second} {
			for _, while := range []time.Duration{time.Second, time.Minute, 10 * time.Minute, day} {
				t.Run(fmt.Sprintf("%v at %v for %v", by, at, while), func(t *testing.T) {
					w := newWorld(t, "a", "b", "c")
					w.run(at)
					w.step(by)
					w.run(while)
					w.step(-by)
					for range 6 {
						w.lead("b") // memories of its term are gone
						w.run(20 * day)
					}
					if n := len(w.ring.Keys); n < 4 || n > 8 {
						t.Errorf("%d keys:\n%s", n, w.events.String())
					}
					for _, k := range w.ring.Keys {
						if !k.Retired.IsZero() && k.Retired.Before(k.Activated) {
							t.Errorf("%s was retired at %v and activated at %v", name(k.ID), k.Retired, k.Activated)
						}
					}
				})
			}
		}
	}
}

// A server that restarts all the time goes by what it was not there to see.
func TestSightGoesByOtherTimesOfTheKey(t *testing.T) {
	now, far := start.Add(100*day), start.Add(500*day)
	first := map[time.Time]mono.Time{far: ticks(now.Add(-3 * day)), far.Add(1): ticks(now.Add(-time.Hour))}
	key := func(n int, state meta.State, created, publish, activated, retired time.Time) *meta.Key {
		return &meta.Key{ID: keyID(n), State: state, Created: created, Publish: publish, Activated: activated, Retired: retired}
	}
	scheduled := func(k *meta.Key) *meta.Key { k.Scheduled = true; return k }
	before := now.Add(-10 * day)
	for _, tt := range []struct {
		name                                 string
		keys                                 []*meta.Key
		created, publish, activated, retired time.Time // of the first
	}{
		{name: "all is right", keys: []*meta.Key{key(1, meta.StateActive, before, time.Time{}, now, time.Time{})}, created: before, activated: now},
		{name: "by less than the leeway", keys: []*meta.Key{key(1, meta.StateActive, before, time.Time{}, now.Add(time.Minute), time.Time{})}, created: before, activated: now.Add(time.Minute)},
		{name: "activated, by hand", keys: []*meta.Key{key(1, meta.StateActive, before, time.Time{}, far, time.Time{})}, created: before, activated: before},
		{name: "activated, by schedule", keys: []*meta.Key{scheduled(key(1, meta.StateActive, before, before.Add(day), far, time.Time{}))}, created: before, publish: before.Add(day), activated: before.Add(day)},
		{name: "created and activated", keys: []*meta.Key{key(1, meta.StateActive, far, time.Time{}, far.Add(1), time.Time{})}, created: now.Add(-3 * day), activated: now.Add(-time.Hour)},
		{name: "created, by schedule", keys: []*meta.Key{scheduled(key(1, meta.StatePrepublished, far, far.Add(day), time.Time{}, time.Time{}))}, created: now.Add(-3 * day), publish: now.Add(-2 * day)},
		{name: "an operator's time", keys: []*meta.Key{key(1, meta.StatePrepublished, before, far, time.Time{}, time.Time{})}, created: before, publish: far},
		{
			name: "retired", keys: []*meta.Key{
				key(1, meta.StateInactive, before, time.Time{}, before, far.Add(1)), key(2, meta.StateActive, before.Add(day), time.Time{}, far.Add(1), time.Time{}),
			},
			created: before, activated: before, retired: before.Add(day),
		},
		{name: "adopted", keys: []*meta.Key{key(1, meta.StateInactive, before, time.Time{}, time.Time{}, far)}, created: before, retired: now.Add(-3 * day)},
		{name: "never seen before", keys: []*meta.Key{key(1, meta.StateInactive, before, time.Time{}, time.Time{}, far.Add(2))}, created: before, retired: now},
	} {
		s := plan.RingClock{Now: now, Mono: ticks(now), Leeway: time.Minute, First: first}
		r := &meta.Ring{Keys: tt.keys}
		was := *tt.keys[0]
		got := s.Correct(r).Key(keyID(1))
		if !got.Created.Equal(tt.created) || !got.Publish.Equal(tt.publish) || !got.Activated.Equal(tt.activated) || !got.Retired.Equal(tt.retired) {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if !reflect.DeepEqual(*tt.keys[0], was) {
			t.Errorf("%s: the ring itself was changed", tt.name)
		}
	}
}

// Files of a removed key are unlinked so long after the removal was seen, if its time can't be right.
func TestUndoEndsAfterAClockWasAhead(t *testing.T) {
	gone, removed := keyID(1), start.Add(year)
	r := &meta.Ring{Removed: []meta.Tombstone{{ID: gone, Removed: removed}}}
	leftovers := []plan.Leftover{{ID: gone, Aside: true}}
	s := plan.RingClock{Now: start, Mono: ticks(start), Leeway: time.Minute}
	s.First = s.Remember(removed)
	s.Now, s.Mono = start.Add(7*day-1), ticks(start.Add(7*day-1))
	if b := plan.CleanUp(r, true, leftovers, 7*day, s); len(b.Unlink) > 0 || !b.Next.Equal(start.Add(7*day)) {
		t.Errorf("before the end: %+v", b)
	}
	s.Now, s.Mono = start.Add(7*day), ticks(start.Add(7*day))
	if b := plan.CleanUp(r, true, leftovers, 7*day, s); len(b.Unlink) != 1 {
		t.Errorf("at the end: %+v", b)
	}
	s.Now = removed.Add(day) // this server's clock was behind
	if b := plan.CleanUp(r, true, leftovers, 7*day, s); len(b.Unlink) > 0 || len(s.Remember()) > 0 {
		t.Errorf("a day after the removal: %+v", b)
	}
}

func TestClocksOfMostServersAreRight(t *testing.T) {
	const h = time.Hour
	for _, tt := range []struct {
		name       string
		ahead      map[string]time.Duration
		wrong      bool
		right      string
		correction time.Duration
	}{
		{"alone", nil, false, "[]", 0},
		{"one of two", map[string]time.Duration{"b": h}, false, "[]", 0},
		{"within the leeway", map[string]time.Duration{"b": time.Minute, "c": -time.Minute}, false, "[b c]", 0},
		{"another of three", map[string]time.Duration{"b": h, "c": 0}, false, "[c]", 0},
		{"this of three", map[string]time.Duration{"b": h, "c": h + time.Minute}, true, "[b c]", h + time.Minute},
		{"all three", map[string]time.Duration{"b": h, "c": -h}, true, "[]", 0},
		{"this of five, one is silent", map[string]time.Duration{"b": -h, "c": -h, "d": -h}, true, "[b c d]", -h},
		{"two of four", map[string]time.Duration{"b": -h, "c": -h, "d": 0}, false, "[]", 0},
		{"two of five", map[string]time.Duration{"b": -h, "c": -h, "d": 0, "e": 0}, false, "[d e]", 0},
	} {
		c := plan.Clocks{Ahead: tt.ahead, Leeway: time.Minute}
		if got := fmt.Sprint(c.Right()); c.Wrong() != tt.wrong || got != tt.right || c.Correction() != tt.correction {
			t.Errorf("%s: wrong %t, right %s, correction %v", tt.name, c.Wrong(), got, c.Correction())
		}
	}
}

// A leader whose clock is wrong does nothing by schedule, and hands over to one whose clock is right, if there is one that
// holds the active key.
func TestLeaderWithAWrongClock(t *testing.T) {
	wrong := map[string]time.Duration{"b": -31 * day, "c": -31 * day}
	w := newWorld(t, "a", "b", "c")
	w.run(time.Hour)
	w.step(31 * day)
	w.ahead, w.skewed = wrong, w.mono()
	if a := w.next(); a.Kind != plan.Compare {
		t.Errorf("before the clocks were compared: %+v", a)
	}
	w.compared = w.mono()
	if a := w.next(); a.Kind != plan.Wait || a.Until != w.mono().Add(10*time.Second) {
		t.Errorf("compared: %+v", a)
	}
	w.run(0)
	w.now = w.now.Add(10 * time.Second)
	if a := w.next(); a.Kind != plan.HandOver || fmt.Sprint(a.Servers) != "[b c]" {
		t.Errorf("a while later: %+v", a)
	}
	old := *w.ring.Active()
	old.ID, old.State, old.Retired = keyID(9), meta.StateInactive, start
	r, s := &meta.Ring{Cluster: w.ring.Cluster, Keys: []*meta.Key{w.ring.Active(), &old}}, w.situation()
	r = r.With(func(*meta.Key) {}) // which finds the active key
	s.Policy, s.Clocks.Compared, s.SkewedSince = plan.Policy{Retain: day}, s.Mono, 0
	if a := plan.Next(r, s); a.Kind != plan.Wait {
		t.Errorf("a key is no longer retained, by a wrong clock: %+v", a)
	}
	if s.Clocks.Ahead = nil; plan.Next(r, s).Kind != plan.Rekey {
		t.Errorf("a key is no longer retained: %+v", plan.Next(r, s))
	}
	w.ahead = map[string]time.Duration{"b": -31 * day, "c": -62 * day}
	if a := w.next(); a.Kind != plan.Wait || a.Until != w.compared.Add(10*time.Minute) {
		t.Errorf("no two clocks agree: %+v", a)
	}
	w.ahead = map[string]time.Duration{"b": -31 * day, "c": 0}
	w.compared = w.mono()
	if a := w.next(); a.Kind != plan.Create {
		t.Errorf("one clock agrees: %+v", a)
	}
}

// A leader goes by no comparison that it made while it followed, and asked its leader alone, or in an earlier term.
func TestNewLeaderComparesClocksItself(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.run(time.Hour)
	w.step(31 * day)
	w.compared = w.mono()
	for _, tt := range []struct {
		compared, leads uint64
		want            plan.Kind
	}{{0, 2, plan.Compare}, {1, 2, plan.Compare}, {2, 2, plan.Create}} {
		s := w.situation()
		s.Clocks.Term, s.Term = tt.compared, tt.leads
		if a := plan.Next(w.believed(), s); a.Kind != tt.want {
			t.Errorf("compared in term %d, leads in %d: %s, want %s", tt.compared, tt.leads, a.Kind, tt.want)
		}
	}
}

// Join tokens end by a clock that was compared and is right, and at once if they are from a snapshot alone.
func TestJoinTokensDoNotEndByAWrongClock(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.run(time.Hour)
	for n := byte(1); n <= 2; n++ {
		w.propose(meta.Command{AddJoinToken: &meta.AddJoinToken{Token: meta.JoinToken{
			ID: meta.TokenID{n}, Server: "d", End: w.now.Add(time.Hour), Key: w.ring.Active().ID, Sealed: make([]byte, meta.SealedTokenSize),
		}}})
	}
	w.step(2 * time.Hour)
	next := func(restored ...meta.TokenID) plan.Action {
		s := w.situation()
		s.Tokens = restored
		return plan.Next(w.believed(), s)
	}
	if a := next(); a.Kind != plan.Compare {
		t.Errorf("before the clocks were compared: %+v", a)
	}
	if a := next(meta.TokenID{2}); a.Kind != plan.End || fmt.Sprint(a.Tokens) != fmt.Sprint([]meta.TokenID{{2}}) {
		t.Errorf("one is from a snapshot alone: %+v", a)
	}
	w.compared, w.ahead = w.mono(), map[string]time.Duration{"b": -2 * time.Hour, "c": -2 * time.Hour}
	if a := next(); a.Kind != plan.Wait || a.Until != w.compared.Add(10*time.Minute) {
		t.Errorf("the clock is wrong: %+v", a)
	}
	w.ahead = nil
	if a := next(); a.Kind != plan.End || len(a.Tokens) != 2 {
		t.Errorf("the clock is right: %+v", a)
	}
}

// Servers that lie about the time have nothing written that lies further away than a clock can be.
func TestNoClockIsCorrectedByACentury(t *testing.T) {
	const first, last, century = time.Duration(math.MinInt64), time.Duration(math.MaxInt64), 100 * year
	for _, tt := range []struct {
		ahead      map[string]time.Duration
		right      string
		correction time.Duration
	}{
		{map[string]time.Duration{"b": first, "c": first}, "[]", 0},
		{map[string]time.Duration{"b": last, "c": last}, "[]", 0},
		{map[string]time.Duration{"b": first, "c": last}, "[]", 0},
		{map[string]time.Duration{"b": first, "c": first + 1, "d": last, "e": 0}, "[]", 0},
		{map[string]time.Duration{"b": century, "c": century}, "[]", 0},
		{map[string]time.Duration{"b": -56 * year, "c": -56 * year}, "[b c]", -56 * year},
		{map[string]time.Duration{"b": 1 - century, "c": 1 - century}, "[b c]", 1 - century},
	} {
		c := plan.NewClocks(tt.ahead, time.Minute)
		if got := fmt.Sprint(c.Right()); got != tt.right || c.Correction() != tt.correction {
			t.Errorf("%v: right %s, correction %v", tt.ahead, got, c.Correction())
		}
		for server, by := range c.Ahead {
			if by.Abs() > century {
				t.Errorf("%v: %s is ahead by %v", tt.ahead, server, by)
			}
		}
	}
	c := plan.NewClocks(map[string]time.Duration{"b": 99 * year, "c": -99 * year, "d": 0}, time.Minute)
	if got := fmt.Sprint(c.Right()); got != "[]" { // this one and d are two of four
		t.Errorf("a century and more apart: right %s", got)
	}
}

func TestToHaveAskedProvesNothing(t *testing.T) {
	for _, k := range []plan.Kind{plan.SayHello, plan.Ask, plan.Confirm, plan.Compare} {
		if k.Proves() {
			t.Errorf("%s proves that other things work", k)
		}
	}
	for _, k := range []plan.Kind{plan.Mark, plan.Create, plan.End, plan.Forget, plan.Rekey, plan.Remove} {
		if !k.Proves() {
			t.Errorf("%s proves nothing", k)
		}
	}
}
