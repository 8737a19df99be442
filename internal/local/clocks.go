package local

// What a server knows of the time, by the clocks of the others.

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Clocks is what this server knows of the time beyond what its own clock shows.
type Clocks struct {
	*Server

	mu     sync.Mutex              // guards below
	ring   *meta.Ring              // the one that latest is of
	latest time.Time               // time in its keys
	first  map[time.Time]mono.Time // see plan.RingClock; replaced whole

	others   map[string]clockReading // by server that has answered; replaced whole
	compared mono.Time               // when the others were last asked
	term     uint64                  // at that time
	leader   string                  // at that time
	servers  []string                // at that time
}

// NewClocks knows of no other clock yet: see Run.
func NewClocks(s *Server) *Clocks { return &Clocks{Server: s} }

// clockReading is what another server's clock showed. From what this server's clock shows by then follows by how much it is
// ahead, also after this server's clock was set.
type clockReading struct {
	time  time.Time
	at    mono.Time     // half way between the question and the answer
	doubt time.Duration // how far from it the clock may have been read

	policies map[string]string // that the server told with it
}

// ahead is by how much the other's clock is ahead, less the doubt.
func (r clockReading) ahead(now time.Time, at mono.Time) time.Duration {
	by := r.time.Add(at.Sub(r.at)).Sub(now)
	if by < 0 {
		return min(0, by+r.doubt)
	}
	return max(0, by-r.doubt)
}

// RingClock is how this server sees the times in the ring, and those given. It remembers which lie ahead.
func (c *Clocks) RingClock(ring *meta.Ring, times ...time.Time) plan.RingClock {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := plan.RingClock{Now: c.Now(), Mono: mono.Now(), Leeway: c.Tokens.Leeway, First: c.first}
	if c.ring != ring {
		c.ring, c.latest = ring, plan.Latest(ring)
	}
	if s.Ahead(c.latest) {
		times = append(times, plan.Times(ring)...)
	}
	if len(s.First) > 0 || slices.ContainsFunc(times, s.Ahead) {
		s.First = s.Remember(times...)
		c.first = s.First
	}
	return s
}

// Known is what plan wants to know of the others' clocks.
func (c *Clocks) Known() plan.Clocks {
	c.mu.Lock()
	others, compared, term := c.others, c.compared, c.term
	if c.leader != string(c.ID) {
		term = 0 // of which this server was no leader
	}
	c.mu.Unlock()
	known := c.by(others)
	known.Compared, known.Term = compared, term
	return known
}

// by is what readings say of the others' clocks now.
func (c *Clocks) by(readings map[string]clockReading) plan.Clocks {
	now, at := c.Now(), mono.Now()
	ahead := map[string]time.Duration{}
	for server, r := range readings {
		ahead[server] = r.ahead(now, at)
	}
	return plan.NewClocks(ahead, c.Tokens.Leeway)
}

// ComparedAsLeader reports whether this server has asked all others since it leads, if there are any.
func (c *Clocks) ComparedAsLeader() bool {
	return c.Known().Term == c.Term.Load() || len(ServerIDs(c.Raft)) < 2
}

// TimeToWrite is the time for the ring: what the clock shows, or what most servers' clocks show if this one's is wrong.
// A rotation by hand does not wait until it is right. Whether it is wrong is asked again, for a while: all clocks may have
// been set, and a new leader may have asked one server alone.
func (c *Clocks) TimeToWrite(ctx context.Context) time.Time {
	if c.Known().Wrong() || c.WrongClock(ctx) {
		ctx, cancel := context.WithTimeout(ctx, compareFor)
		defer cancel()
		c.compare(ctx, nil)
	}
	return c.Now().Add(c.Known().Correction())
}

// WrongClock reports whether this leader's clock is wrong. It asks first, for a while, if it has not asked since it leads.
func (c *Clocks) WrongClock(ctx context.Context) bool {
	if !c.ComparedAsLeader() {
		ctx, cancel := context.WithTimeout(ctx, compareFor)
		defer cancel()
		c.CompareWithMost(ctx)
	}
	return c.Known().Wrong()
}

// ActivationTime is the time to write for an activation.
func (c *Clocks) ActivationTime(ctx context.Context) time.Time {
	now := c.TimeToWrite(ctx)
	return plan.ActivateAt(c.FSM.Ring(), now)
}

// RemovalTime is the time to write for the removal of a key.
func (c *Clocks) RemovalTime(ctx context.Context, id meta.KeyID) time.Time {
	now := c.TimeToWrite(ctx)
	return plan.RemoveAt(c.FSM.Ring(), id, now)
}

const (
	compareEvery = 6 * time.Hour   // between two comparisons of clocks, if nothing asks for one
	compareLate  = LookAgain       // until servers that have not answered are asked again
	compareWrong = time.Minute     // while a clock is wrong: that it is right again is soon seen
	compareFor   = 5 * time.Second // at most, for a time to write
)

// Run asks other servers for their time: when there is a leader, after each election, when servers come or go, and
// seldom otherwise. The same leader in a new term may have been restarted, with another clock or other policies. It runs
// until Close.
func (c *Clocks) Run(ctx context.Context) {
	for {
		changed := c.FSM.Changed()
		wait := c.compareIn()
		if wait <= 0 {
			c.compare(ctx, nil)
			wait = c.compareIn()
		}
		if !Pause(ctx, changed, max(0, wait)) {
			return
		}
	}
}

// compareIn is how long it is until the clocks are to be compared.
func (c *Clocks) compareIn() time.Duration {
	term := c.Raft.CurrentTerm() // before the leader: of a newer one they are compared again
	_, leader := c.Raft.LeaderWithID()
	others := c.whoseClocks(leader)
	if leader == "" || len(others) == 0 {
		return Idle
	}
	wrong := len(c.Known().Differ()) > 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.compared == 0 || c.term != term || c.leader != string(leader) || !slices.Equal(c.servers, others) {
		return 0
	}
	every := compareEvery
	if len(c.others) < len(others) {
		every = compareLate
	}
	if wrong {
		every = min(every, compareWrong)
	}
	return mono.Until(c.compared.Add(every))
}

// whoseClocks are the servers that this one asks for their time: a leader all, another one the leader.
func (c *Clocks) whoseClocks(leader raft.ServerID) []string {
	return slices.DeleteFunc(ServerIDs(c.Raft), func(s string) bool {
		return s == string(c.ID) || leader != c.ID && s != string(leader)
	})
}

// compare asks for the time, until the answers are enough.
func (c *Clocks) compare(ctx context.Context, enough func(plan.Clocks) bool) {
	term := c.Raft.CurrentTerm() // before the leader, as in compareIn
	_, leader := c.Raft.LeaderWithID()
	asked := c.whoseClocks(leader)
	answers := peer.All(ctx, asked, func(ctx context.Context, server string) (clockReading, error) {
		_, r, err := c.ask(ctx, server)
		return r, err
	}, func(answers map[string]clockReading) bool {
		return enough != nil && enough(c.by(answers))
	})
	c.mu.Lock()
	if c.leader == string(leader) {
		for server, r := range c.others { // those of which there was no need to wait for
			if _, answered := answers[server]; !answered && enough != nil && slices.Contains(asked, server) {
				answers[server] = r
			}
		}
	}
	c.others, c.compared, c.term, c.leader, c.servers = answers, mono.Now(), term, string(leader), asked
	c.mu.Unlock()
	c.FSM.Notify()
}

// ask asks a server how far it is, what its clock shows and by which policies it runs.
func (c *Clocks) ask(ctx context.Context, server string) (*peer.StateAnswer, clockReading, error) {
	began := mono.Now()
	a, err := c.Peers.StatePolicies(ctx, server)
	if err != nil {
		return nil, clockReading{}, err
	}
	half := mono.Now().Sub(began) / 2
	return a, clockReading{a.Time, began.Add(half), half, a.Policies}, nil
}

// read takes in what the Watch of the leader of a term has asked, which is more often than the clocks are compared.
func (c *Clocks) read(term uint64, answers map[string]clockReading) {
	before := c.Known().Differ()
	c.mu.Lock()
	if c.term != term || c.leader != string(c.ID) {
		c.mu.Unlock()
		return // compare comes first
	}
	others := maps.Clone(c.others)
	maps.Copy(others, answers)
	c.others = others
	c.mu.Unlock()
	if !slices.Equal(before, c.Known().Differ()) {
		c.FSM.Notify()
	}
}

// CompareWithMost asks every server for its time. If most of them agree with this one, the others are not waited for.
func (c *Clocks) CompareWithMost(ctx context.Context) {
	all := len(ServerIDs(c.Raft))
	c.compare(ctx, func(by plan.Clocks) bool {
		return 2*(len(by.Ahead)+1) > all && len(by.Differ()) == 0
	})
}

// ClocksStatus is what this server knows of the time at one moment.
type ClocksStatus struct {
	Known     plan.Clocks    // the clocks of the others
	RingClock plan.RingClock // of the times in the ring

	Policies map[string]map[string]string // of the servers that were asked for their time: the leader, or by the leader all
}

// Status is what is known now.
func (c *Clocks) Status(ring *meta.Ring) ClocksStatus {
	s := ClocksStatus{Known: c.Known(), RingClock: c.RingClock(ring, ring.Backup.Time), Policies: map[string]map[string]string{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	for server, r := range c.others {
		s.Policies[server] = r.policies
	}
	return s
}
