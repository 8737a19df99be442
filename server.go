package keyring

// server: what every part of a keyring knows about this server.

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// server is what every part of a Keyring knows: who this server is, what raft has told it, what it holds, and
// whom it can ask. It is the same from Open to Close.
type server struct {
	cfg      Config
	raft     *raft.Raft
	fsm      *FSM
	store    *keystore.Store
	keks     *kek.Set
	peers    peer.Calls // what this server asks the others
	toLeader peer.Calls // what the leader answers only after most of the voters have confirmed that it leads
	gate     gate.Gate  // of the calls that may block
	openedAt time.Time

	term    atomic.Uint64 // the term whose barrier this leader has applied
	barrier atomic.Uint64 // what had been applied then
}

// leads reports whether this server is the leader of that term, as far as it knows: a
// leader that was cut off knows within the leader lease.
func (s *server) leads(term uint64) bool {
	return s.raft.State() == raft.Leader && s.raft.CurrentTerm() == term
}

// mayLead reports whether this server is a leader that has applied the barrier of its term.
func (s *server) mayLead() error {
	switch {
	case s.gate.Err() != nil:
		return s.gate.Err()
	case s.raft.State() != raft.Leader:
		return notLeader(s.raft)
	case !s.leads(s.term.Load()):
		return ErrNotReady
	}
	return s.fsm.fed(s.raft)
}

// silence is how long this server has heard from no leader; zero if it leads.
func (s *server) silence() time.Duration {
	if s.raft.State() == raft.Leader { // it steps down when its lease ends
		return 0
	}
	heard := s.raft.LastContact()
	if heard.Before(s.openedAt) {
		heard = s.openedAt
	}
	return max(0, time.Since(heard))
}

// lostAfter is a time that no election takes: ten seconds, with raft's usual timeouts.
func (s *server) lostAfter() time.Duration {
	conf := s.raft.ReloadableConfig()
	return max(10*time.Second, 5*(conf.HeartbeatTimeout+conf.ElectionTimeout))
}

// isLost reports whether a silence is longer than an election takes.
func (s *server) isLost(silence time.Duration) bool { return silence > s.lostAfter() }

// held tells plan which keys of the ring this server holds.
func (s *server) held(ring *meta.Ring) func(KeyID) bool {
	return func(id KeyID) bool { return s.store.Holds(ring.Key(id)) }
}

// now is the time of the wall clock as the ring wants it. It is for times in the ring, in tokens and in files, and
// for what is compared with them. Waits in memory go by the monotonic clock, which nobody can set: mono.Now.
func (s *server) now() time.Time { return s.cfg.clock().UTC().Round(0) }

// lookAgain is how long a loop waits, at most, for a time of the wall clock: that may be set, and the machine may
// sleep, without a timer noticing.
const lookAgain = 10 * time.Minute

// whenShown is when the wall clock will show a time, if nobody sets it, but not later than it is to be looked at
// again. Zero is never.
func (s *server) whenShown(at time.Time) mono.Time {
	if at.IsZero() {
		return 0
	}
	return mono.Now().Add(min(lookAgain, at.Sub(s.now())))
}

// unheardPatience is how long a server that follows may not have heard of what the leader has told it.
const unheardPatience = time.Minute

// awaitRing waits until the ring is as wanted, or can't be any more. While known is false it does so for
// unheardPatience.
func (s *server) awaitRing(ctx context.Context, known *bool, wanted func(*meta.Ring) (bool, error)) error {
	ctx, done, err := s.gate.Enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	unheard := time.NewTimer(unheardPatience)
	defer unheard.Stop()
	for {
		changed := s.fsm.bell.wait()
		if done, err := wanted(s.fsm.ring.Load()); done || err != nil {
			return err
		}
		late := unheard.C
		if *known {
			late = nil
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("the leader has done its part, and this server has not heard of it in %v", unheardPatience)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
