package plan

import (
	"cmp"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// Clocks is what a server knows about the clocks of the others. The zero value knows nothing.
type Clocks struct {
	Ahead    map[string]time.Duration // by server that has answered, corrected for the time that the answer took
	Leeway   time.Duration            // by how much two clocks may differ
	Compared mono.Time                // when the servers were last asked
	Term     uint64                   // in which this server led and asked them all; zero if it asked only its leader
}

// MaxAhead is the largest difference between two clocks that is believed, ahead or behind: a clock that was never set
// shows 1970. A clock that is said to be that far away is wrong, however many agree with it, and no clock is
// corrected by that much. The sum of two such readings does not overflow.
const MaxAhead = 100 * 365 * 24 * time.Hour

// NewClocks returns what these readings tell, each limited to MaxAhead.
func NewClocks(ahead map[string]time.Duration, leeway time.Duration) Clocks {
	c := Clocks{Ahead: map[string]time.Duration{}, Leeway: leeway}
	for server, by := range ahead {
		c.Ahead[server] = max(-MaxAhead, min(MaxAhead, by))
	}
	return c
}

// The leader acts by schedule only while most servers agree with its clock.
const (
	compared     = time.Minute      // how long a comparison of clocks is valid
	compareAgain = 10 * time.Minute // when to compare again if the clock was wrong
)

// differ reports whether clocks are further apart than they may be.
func (c Clocks) differ(by time.Duration) bool { return by > c.Leeway || by < -c.Leeway }

// Differ returns the servers whose clocks differ from this one's by more than they may.
func (c Clocks) Differ() (servers []string) {
	for s, by := range c.Ahead {
		if c.differ(by) {
			servers = append(servers, s)
		}
	}
	slices.Sort(servers)
	return servers
}

// Wrong reports whether this server's clock differs from those of most servers that have answered, itself included.
func (c Clocks) Wrong() bool { return 2*len(c.Differ()) > len(c.Ahead)+1 }

// Right returns the servers whose clocks agree with those of most servers that have answered, and are less than
// MaxAhead away.
func (c Clocks) Right() (servers []string) {
	for s, by := range c.Ahead {
		if by.Abs() >= MaxAhead {
			continue
		}
		agree := 1 // with itself
		for other, b := range c.Ahead {
			if other != s && !c.differ(b-by) {
				agree++
			}
		}
		if !c.differ(by) {
			agree++ // with this server
		}
		if 2*agree > len(c.Ahead)+1 {
			servers = append(servers, s)
		}
	}
	slices.Sort(servers)
	return servers
}

// Correction is what has to be added to this server's clock to agree with most others, less than MaxAhead. It is zero
// if the clock agrees with them, or they do not agree with each other.
func (c Clocks) Correction() time.Duration {
	right := c.Right()
	if !c.Wrong() || len(right) == 0 {
		return 0
	}
	slices.SortFunc(right, func(a, b string) int { return cmp.Compare(c.Ahead[a], c.Ahead[b]) })
	return c.Ahead[right[len(right)/2]]
}

// onceClockIsRight puts off a scheduled action until the clocks have been compared, and while this server's clock is
// wrong. The first key is not put off, because nothing works without one.
func (s Situation) onceClockIsRight(r *meta.Ring, a Action, at mono.Time) (Action, mono.Time) {
	switch {
	case at > s.Mono || r.Active() == nil || len(s.Servers) < 2:
		return a, at
	case s.compareNow():
		return Action{Kind: Compare}, at
	case s.Clocks.Wrong():
		return a, s.Clocks.Compared.Add(compareAgain)
	}
	return a, at
}

// compareNow reports whether the last comparison is too old, or from before this server led, when it may have asked one
// server only.
func (s Situation) compareNow() bool {
	return s.Clocks.Compared == 0 || s.Clocks.Term != s.Term || s.Clocks.Compared.Add(compared) <= s.Mono
}

// handOver is when a leader whose clock is wrong hands leadership to a voter whose clock is right and which holds the
// active key. Others may refuse the tokens that such a leader signs, and it does nothing by schedule.
func handOver(r *meta.Ring, s Situation) (Action, mono.Time) {
	active := r.Active()
	if active == nil || s.SkewedSince == 0 || !s.Clocks.Wrong() {
		return Action{}, never
	}
	to := slices.DeleteFunc(s.Clocks.Right(), func(server string) bool {
		return !slices.Contains(s.Voters, server) || !active.HeldBy(server)
	})
	if len(to) == 0 {
		return Action{}, never
	}
	at := max(s.SkewedSince.Add(patience), s.Retry)
	if at <= s.Mono && s.compareNow() {
		return Action{Kind: Compare}, at
	}
	return Action{Kind: HandOver, Servers: to}, at
}
