package keyring

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// clocks is what this server knows of the time beyond what its own clock shows.
type clocks struct {
	mu     sync.Mutex              // guards below
	ring   *meta.Ring              // the one that latest is of
	latest time.Time               // time in its keys
	first  map[time.Time]mono.Time // see plan.Sight; replaced whole

	others   map[string]clockReading // by server that has answered; replaced whole
	compared mono.Time               // when the others were last asked
	term     uint64                  // in which this server led then; zero if it did not
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

// sight is how this server sees the times in the ring, and those given. It remembers which lie ahead.
func (k *Keyring) sight(ring *meta.Ring, times ...time.Time) plan.Sight {
	c := &k.clocks
	c.mu.Lock()
	defer c.mu.Unlock()
	s := plan.Sight{Now: k.now(), Mono: mono.Now(), Leeway: k.cfg.Tokens.Leeway, First: c.first}
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

// knownClocks is what plan wants to know of the others' clocks.
func (k *Keyring) knownClocks() plan.Clocks {
	k.clocks.mu.Lock()
	others, compared, term := k.clocks.others, k.clocks.compared, k.clocks.term
	k.clocks.mu.Unlock()
	known := k.clocksBy(others)
	known.Compared, known.Term = compared, term
	return known
}

// clocksBy is what readings say of the others' clocks now.
func (k *Keyring) clocksBy(readings map[string]clockReading) plan.Clocks {
	now, at := k.now(), mono.Now()
	ahead := map[string]time.Duration{}
	for server, r := range readings {
		ahead[server] = r.ahead(now, at)
	}
	return plan.NewClocks(ahead, k.cfg.Tokens.Leeway)
}

// comparedAsLeader reports whether this server has asked all others since it leads, if there are any.
func (k *Keyring) comparedAsLeader() bool {
	return k.knownClocks().Term == k.term.Load() || len(servers(k.raft)) < 2
}

// timeToWrite is the time for the ring: what the clock shows, or what most servers' clocks show if this one's is wrong.
// A rotation by hand does not wait until it is right. Whether it is wrong is asked anew, for a while: all clocks may have
// been set, and a new leader may have asked one server alone.
func (k *Keyring) timeToWrite(ctx context.Context) time.Time {
	if k.knownClocks().Wrong() || k.wrongClock(ctx) {
		ctx, cancel := context.WithTimeout(ctx, compareFor)
		defer cancel()
		k.compareClocks(ctx, nil)
	}
	return k.now().Add(k.knownClocks().Correction())
}

// wrongClock reports whether this leader's clock is wrong. It asks first, for a while, if it has not asked since it leads.
func (k *Keyring) wrongClock(ctx context.Context) bool {
	if !k.comparedAsLeader() {
		ctx, cancel := context.WithTimeout(ctx, compareFor)
		defer cancel()
		k.compareWithMost(ctx)
	}
	return k.knownClocks().Wrong()
}

// activationTime is the time to write for an activation.
func (k *Keyring) activationTime(ctx context.Context) time.Time {
	now := k.timeToWrite(ctx)
	return plan.ActivateAt(k.fsm.ring.Load(), now)
}

// removalTime is the time to write for the removal of a key.
func (k *Keyring) removalTime(ctx context.Context, id KeyID) time.Time {
	now := k.timeToWrite(ctx)
	return plan.RemoveAt(k.fsm.ring.Load(), id, now)
}

const (
	compareEvery = 6 * time.Hour   // between two comparisons of clocks, if nothing asks for one
	compareLate  = lookAgain       // until servers that have not answered are asked again
	compareWrong = time.Minute     // while a clock is wrong: that it is right again is soon seen
	compareFor   = 5 * time.Second // at most, for a time to write
)

// watchClocks asks other servers for their time: when there is a leader, when it is another one, when servers come or go,
// and seldom otherwise. It runs until Close.
func (k *Keyring) watchClocks() {
	for {
		changed := k.fsm.bell.wait()
		wait := k.compareIn()
		if wait <= 0 {
			k.compareClocks(k.ctx, nil)
			wait = k.compareIn()
		}
		if !pause(k.ctx, changed, max(0, wait)) {
			return
		}
	}
}

// compareIn is how long it is until the clocks are to be compared.
func (k *Keyring) compareIn() time.Duration {
	_, leader := k.raft.LeaderWithID()
	others := k.whoseClocks(leader)
	if leader == "" || len(others) == 0 {
		return idle
	}
	wrong := len(k.knownClocks().Differ()) > 0
	k.clocks.mu.Lock()
	defer k.clocks.mu.Unlock()
	if k.clocks.compared == 0 || k.clocks.leader != string(leader) || !slices.Equal(k.clocks.servers, others) {
		return 0
	}
	every := compareEvery
	if len(k.clocks.others) < len(others) {
		every = compareLate
	}
	if wrong {
		every = min(every, compareWrong)
	}
	return mono.Until(k.clocks.compared.Add(every))
}

// whoseClocks are the servers that this one asks for their time: a leader all, another one the leader.
func (k *Keyring) whoseClocks(leader raft.ServerID) []string {
	return slices.DeleteFunc(servers(k.raft), func(s string) bool {
		return s == string(k.cfg.ID) || leader != k.cfg.ID && s != string(leader)
	})
}

// compareClocks asks for the time, until the answers are enough.
func (k *Keyring) compareClocks(ctx context.Context, enough func(plan.Clocks) bool) {
	_, leader := k.raft.LeaderWithID()
	asked, term := k.whoseClocks(leader), uint64(0)
	if leader == k.cfg.ID {
		term = k.raft.CurrentTerm()
	}
	answers := peer.All(ctx, asked, func(ctx context.Context, server string) (clockReading, error) {
		began := mono.Now()
		a, err := k.peers.State(ctx, server, peer.StateRequest{})
		if err != nil {
			return clockReading{}, err
		}
		half := mono.Now().Sub(began) / 2
		return clockReading{a.Time, began.Add(half), half}, nil
	}, func(answers map[string]clockReading) bool {
		return enough != nil && enough(k.clocksBy(answers))
	})
	k.clocks.mu.Lock()
	if k.clocks.leader == string(leader) {
		for server, r := range k.clocks.others { // those of which there was no need to wait for
			if _, answered := answers[server]; !answered && enough != nil && slices.Contains(asked, server) {
				answers[server] = r
			}
		}
	}
	k.clocks.others, k.clocks.compared, k.clocks.leader, k.clocks.servers = answers, mono.Now(), string(leader), asked
	k.clocks.term = term
	k.clocks.mu.Unlock()
	k.fsm.bell.ring()
}

// compareWithMost asks every server for its time. If most of them agree with this one, the others are not waited for.
func (k *Keyring) compareWithMost(ctx context.Context) {
	all := len(servers(k.raft))
	k.compareClocks(ctx, func(c plan.Clocks) bool {
		return 2*(len(c.Ahead)+1) > all && len(c.Differ()) == 0
	})
}

// handOver hands leadership to a server whose clock is right.
func (l *leader) handOver(to []string) error {
	for _, server := range l.raft.GetConfiguration().Configuration().Servers {
		if !slices.Contains(to, string(server.ID)) {
			continue
		}
		l.cfg.Logger.Warn("the clock of this server, which leads, is wrong: it hands over", "to", server.ID, "wrong by", l.knownClocks().Correction())
		if err := l.raft.LeadershipTransferToServer(server.ID, server.Address).Error(); err != nil {
			return outcome(l.raft, err)
		}
		return notLeader(l.raft)
	}
	return fmt.Errorf("servers %q have left", to)
}

// clocksStatus is what this server knows of the time at one moment.
type clocksStatus struct {
	known plan.Clocks // the clocks of the others
	sight plan.Sight  // of the times in the ring
}

func (k *Keyring) clocksStatus(ring *meta.Ring) clocksStatus {
	return clocksStatus{k.knownClocks(), k.sight(ring)}
}
