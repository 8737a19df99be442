package keyring

// What a server knows of the others: their clocks, who does not answer, who is behind.

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

// watch is what a leader knows of the other servers, for Status: who does not answer raft, who gets no
// further in its log, and who lacks the active key. It is of the leader's term, and forgotten after it.
type watch struct {
	*server

	mu sync.Mutex // guards below
	watchStatus
}

// silence is since when a server has not answered raft's heartbeats.
type silence struct {
	heard time.Time // the last answer, or the begin of the term
	since mono.Time // the first failure
}

// observed takes in what raft tells of its heartbeats, in a goroutine of raft's.
func (w *watch) observed(data any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch o := data.(type) {
	case raft.FailedHeartbeatObservation:
		if _, known := w.silent[string(o.PeerID)]; !known {
			w.silent = set(w.silent, string(o.PeerID), silence{o.LastContact.UTC().Round(0), mono.Now()})
		}
	case raft.ResumedHeartbeatObservation:
		delete(w.silent, string(o.PeerID))
	case raft.PeerObservation:
		delete(w.silent, string(o.Peer.ID))
		delete(w.progress, string(o.Peer.ID))
		delete(w.lacks, string(o.Peer.ID))
	case raft.RaftState: // a new term, or none
		w.silent, w.progress, w.lacks = nil, nil, nil
	}
}

// answers reports whether a server answers raft's heartbeats, as far as this leader knows.
func (w *watch) answers(server string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, silent := w.silent[server]
	return !silent
}

// holders takes in which of the servers hold the active key, by the ring.
func (w *watch) holders(ring *meta.Ring, servers []string) {
	active := ring.Active()
	if active == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if active.ID != w.active {
		w.active, w.lacks = active.ID, nil
	}
	for _, s := range servers {
		switch since := w.lacks[s]; {
		case active.HeldBy(s):
			delete(w.lacks, s)
		case since == 0:
			w.lacks = set(w.lacks, s, mono.Now())
		}
	}
}

// heard takes in a server's answer.
func (w *watch) heard(server string, applied, committed uint64, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress = set(w.progress, server, w.progress[server].Heard(applied, committed, at))
}

// every is the time between two questions to the other servers how far they are: a minute, or more where
// raft itself takes its time.
func (w *watch) every() time.Duration {
	return max(time.Minute, 60*w.raft.ReloadableConfig().HeartbeatTimeout)
}

// run asks the other servers now and then how far they are, while this server leads.
func (w *watch) run(ctx context.Context) {
	ticks := time.NewTicker(w.every())
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
		if w.leading() == nil {
			w.askOthers(ctx)
		}
	}
}

func (w *watch) askOthers(ctx context.Context) {
	term := w.term.Load()
	others := slices.DeleteFunc(servers(w.raft), func(s string) bool { return s == string(w.cfg.ID) })
	answers := peer.All(ctx, others, func(ctx context.Context, server string) (*peer.StateAnswer, error) {
		return w.peers.State(ctx, server, peer.StateRequest{})
	}, nil)
	committed := w.raft.CommitIndex()
	if !w.leads(term) {
		return
	}
	for server, a := range answers {
		w.heard(server, a.Applied, committed, w.now())
	}
}

// watchStatus is what a leader knows of the other servers at one moment, by server.
type watchStatus struct {
	silent   map[string]silence
	progress map[string]plan.Progress
	active   KeyID                // the active key
	lacks    map[string]mono.Time // since when a server has not been among its holders
}

func (w *watch) status() watchStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return watchStatus{maps.Clone(w.silent), maps.Clone(w.progress), w.active, maps.Clone(w.lacks)}
}

// clocks is what this server knows of the time beyond what its own clock shows.
type clocks struct {
	*server

	mu     sync.Mutex              // guards below
	ring   *meta.Ring              // the one that latest is of
	latest time.Time               // time in its keys
	first  map[time.Time]mono.Time // see plan.RingClock; replaced whole

	others   map[string]clockReading // by server that has answered; replaced whole
	compared mono.Time               // when the others were last asked
	ledTerm  uint64                  // in which this server led then; zero if it did not
	leader   string                  // at that time
	servers  []string                // at that time
}

// clockReading is what another server's clock showed. From what this server's clock shows by then follows by how much it is
// ahead, also after this server's clock was set.
type clockReading struct {
	time  time.Time
	at    mono.Time     // half way between the question and the answer
	doubt time.Duration // how far from it the clock may have been read
}

// ahead is by how much the other's clock is ahead, less the doubt.
func (r clockReading) ahead(now time.Time, at mono.Time) time.Duration {
	by := r.time.Add(at.Sub(r.at)).Sub(now)
	if by < 0 {
		return min(0, by+r.doubt)
	}
	return max(0, by-r.doubt)
}

// ringClock is how this server sees the times in the ring, and those given. It remembers which lie ahead.
func (c *clocks) ringClock(ring *meta.Ring, times ...time.Time) plan.RingClock {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := plan.RingClock{Now: c.now(), Mono: mono.Now(), Leeway: c.cfg.Tokens.Leeway, First: c.first}
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

// known is what plan wants to know of the others' clocks.
func (c *clocks) known() plan.Clocks {
	c.mu.Lock()
	others, compared, term := c.others, c.compared, c.ledTerm
	c.mu.Unlock()
	known := c.by(others)
	known.Compared, known.Term = compared, term
	return known
}

// by is what readings say of the others' clocks now.
func (c *clocks) by(readings map[string]clockReading) plan.Clocks {
	now, at := c.now(), mono.Now()
	ahead := map[string]time.Duration{}
	for server, r := range readings {
		ahead[server] = r.ahead(now, at)
	}
	return plan.NewClocks(ahead, c.cfg.Tokens.Leeway)
}

// comparedAsLeader reports whether this server has asked all others since it leads, if there are any.
func (c *clocks) comparedAsLeader() bool {
	return c.known().Term == c.term.Load() || len(servers(c.raft)) < 2
}

// timeToWrite is the time for the ring: what the clock shows, or what most servers' clocks show if this one's is wrong.
// A rotation by hand does not wait until it is right. Whether it is wrong is asked again, for a while: all clocks may have
// been set, and a new leader may have asked one server alone.
func (c *clocks) timeToWrite(ctx context.Context) time.Time {
	if c.known().Wrong() || c.wrongClock(ctx) {
		ctx, cancel := context.WithTimeout(ctx, compareFor)
		defer cancel()
		c.compare(ctx, nil)
	}
	return c.now().Add(c.known().Correction())
}

// wrongClock reports whether this leader's clock is wrong. It asks first, for a while, if it has not asked since it leads.
func (c *clocks) wrongClock(ctx context.Context) bool {
	if !c.comparedAsLeader() {
		ctx, cancel := context.WithTimeout(ctx, compareFor)
		defer cancel()
		c.compareWithMost(ctx)
	}
	return c.known().Wrong()
}

// activationTime is the time to write for an activation.
func (c *clocks) activationTime(ctx context.Context) time.Time {
	now := c.timeToWrite(ctx)
	return plan.ActivateAt(c.fsm.Ring(), now)
}

// removalTime is the time to write for the removal of a key.
func (c *clocks) removalTime(ctx context.Context, id KeyID) time.Time {
	now := c.timeToWrite(ctx)
	return plan.RemoveAt(c.fsm.Ring(), id, now)
}

const (
	compareEvery = 6 * time.Hour   // between two comparisons of clocks, if nothing asks for one
	compareLate  = lookAgain       // until servers that have not answered are asked again
	compareWrong = time.Minute     // while a clock is wrong: that it is right again is soon seen
	compareFor   = 5 * time.Second // at most, for a time to write
)

// run asks other servers for their time: when there is a leader, when it is another one, when servers come or go,
// and seldom otherwise. It runs until Close.
func (c *clocks) run(ctx context.Context) {
	for {
		changed := c.fsm.Changed()
		wait := c.compareIn()
		if wait <= 0 {
			c.compare(ctx, nil)
			wait = c.compareIn()
		}
		if !pause(ctx, changed, max(0, wait)) {
			return
		}
	}
}

// compareIn is how long it is until the clocks are to be compared.
func (c *clocks) compareIn() time.Duration {
	_, leader := c.raft.LeaderWithID()
	others := c.whoseClocks(leader)
	if leader == "" || len(others) == 0 {
		return idle
	}
	wrong := len(c.known().Differ()) > 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.compared == 0 || c.leader != string(leader) || !slices.Equal(c.servers, others) {
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
func (c *clocks) whoseClocks(leader raft.ServerID) []string {
	return slices.DeleteFunc(servers(c.raft), func(s string) bool {
		return s == string(c.cfg.ID) || leader != c.cfg.ID && s != string(leader)
	})
}

// compare asks for the time, until the answers are enough.
func (c *clocks) compare(ctx context.Context, enough func(plan.Clocks) bool) {
	_, leader := c.raft.LeaderWithID()
	asked, term := c.whoseClocks(leader), uint64(0)
	if leader == c.cfg.ID {
		term = c.raft.CurrentTerm()
	}
	answers := peer.All(ctx, asked, func(ctx context.Context, server string) (clockReading, error) {
		began := mono.Now()
		a, err := c.peers.State(ctx, server, peer.StateRequest{})
		if err != nil {
			return clockReading{}, err
		}
		half := mono.Now().Sub(began) / 2
		return clockReading{a.Time, began.Add(half), half}, nil
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
	c.others, c.compared, c.leader, c.servers = answers, mono.Now(), string(leader), asked
	c.ledTerm = term
	c.mu.Unlock()
	c.fsm.Notify()
}

// compareWithMost asks every server for its time. If most of them agree with this one, the others are not waited for.
func (c *clocks) compareWithMost(ctx context.Context) {
	all := len(servers(c.raft))
	c.compare(ctx, func(by plan.Clocks) bool {
		return 2*(len(by.Ahead)+1) > all && len(by.Differ()) == 0
	})
}

// clocksStatus is what this server knows of the time at one moment.
type clocksStatus struct {
	known     plan.Clocks    // the clocks of the others
	ringClock plan.RingClock // of the times in the ring
}

func (c *clocks) status(ring *meta.Ring) clocksStatus {
	return clocksStatus{c.known(), c.ringClock(ring)}
}
