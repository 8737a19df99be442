package local

// Whether this server knows what was committed before its start.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// A server that has just started has the ring of its last snapshot, or none, until a leader tells it
// what was committed meanwhile. Until then it can't say that a key is unknown, that a file is an
// orphan, or which keys verify tokens, and nothing is renamed or unlinked by what its ring says.
//
// CaughtUp says whether that time is over: whether the FSM has, since Open, had everything that a leader
// had applied at some moment after Open. On a leader the barrier of its term proves that. A follower
// asks the leader for the index of the last entry of the keyring's, and waits for it.
//
// It never becomes false again: what the FSM has had it has, and what replaces it comes later in the
// log, a restored snapshot too. How old it may have become since is what silence tells.
type CaughtUp struct {
	*Server
	hadLog uint64 // the last index of raft's log at Open

	done atomic.Bool
	last atomic.Pointer[error] // why the last question to a leader was of no use; nil if there was none, or it was
}

// NewCaughtUp is for a server that has just opened its keyring: it has not caught up.
func NewCaughtUp(s *Server) *CaughtUp {
	return &CaughtUp{Server: s, hadLog: s.Raft.LastIndex()}
}

func (c *CaughtUp) load() bool { return c.done.Load() }

// Err is why this server has not caught up.
func (c *CaughtUp) Err() error {
	err := errors.New("this server has not caught up with a leader since its start")
	if last := c.last.Load(); last != nil {
		return fmt.Errorf("%w: %w", err, *last)
	}
	return err
}

// View is the ring and what may be concluded from it. Whether the server has caught up is read first:
// read after the ring, it could speak of a later one.
type View struct {
	CaughtUp bool
	Ring     *meta.Ring
}

// View returns the ring, and whether this server had caught up just before it was read.
func (c *CaughtUp) View() View {
	v := View{CaughtUp: c.load()}
	v.Ring = c.FSM.Ring()
	return v
}

// Set says that this server has caught up. The leader's loop calls it, and Run.
func (c *CaughtUp) Set() {
	if c.done.CompareAndSwap(false, true) {
		c.FSM.Notify()
	}
}

// Run ends when this server has caught up, or with ctx.
func (c *CaughtUp) Run(ctx context.Context) {
	reached := c.findGoal(ctx)
	c.last.Store(nil)
	for reached != nil && !c.load() {
		changed := c.FSM.Changed()
		if c.FSM.Complete() == nil && reached() {
			c.Set()
			return
		}
		// raft notes the index of a snapshot that was restored a little later than the FSM hears of it.
		if !Pause(ctx, changed, time.Second) {
			return
		}
	}
}

// findGoal asks each leader that comes up until one has told how far this server has to come, and
// returns what reports that it has. It is nil if that is of no use any more.
func (c *CaughtUp) findGoal(ctx context.Context) func() bool {
	var asked raft.ServerID // the leader that gave no answer of use
	var again time.Time     // when it is asked again
	for tries := 0; !c.load(); {
		changed := c.FSM.Changed()
		_, leader := c.Raft.LeaderWithID()
		wait := Idle
		switch {
		case leader == "" || leader == c.ID: // the leader's loop sees to it when this server leads
		case leader == asked && time.Until(again) > 0:
			wait = time.Until(again)
		default:
			reached, err := c.askGoal(ctx, leader)
			if err == nil {
				return reached
			}
			if leader != asked {
				tries = 0
			}
			c.Logger.Debug("could not ask the leader for its commit index", "leader", leader, "error", err)
			c.last.Store(&err)
			wait = plan.Backoff(tries, rand.Float64())
			asked, again = leader, time.Now().Add(wait)
			tries++
		}
		if !Pause(ctx, changed, wait) {
			return nil
		}
	}
	return nil
}

// askGoal asks the leader how far this server has to come.
func (c *CaughtUp) askGoal(ctx context.Context, leader raft.ServerID) (func() bool, error) {
	a, err := c.ToLeader.State(ctx, string(leader), peer.StateRequest{Confirm: true})
	if peer.Refused(err, peer.Unsupported) { // its build does not know the question
		return c.localGoal()
	}
	if err != nil {
		return nil, err
	}
	if !a.Leads {
		return nil, errors.New("it is not confirmed as the leader, or has no entry of its own yet")
	}
	reached := func() bool { return plan.Reached(c.FSM.Ring(), a.Entry, c.FSM.Position(c.Raft)) }
	if a.Entry == 0 && !reached() { // the first entry came meanwhile, or this ring is yet to be replaced
		return nil, errors.New("it had no entry of the keyring's yet, and this server has one")
	}
	if a.Entry == 0 {
		return func() bool { return true }, nil
	}
	return reached, nil
}

// localGoal is for a leader of a build that does not know the question, and less: the server has been told
// what the leader knew to be committed, and has handed that to the FSM. One that was behind by more than a
// leader sends at a time may have more to come.
//
// A heartbeat tells who leads and nothing of what is committed, of which raft knows nothing after a start.
// So there is no goal before as much is committed as was in the log at Open. What was there and not
// committed may have been replaced by less: then what is in the log now is enough.
func (c *CaughtUp) localGoal() (func() bool, error) {
	commit := c.Raft.CommitIndex()
	if commit == 0 || commit < min(c.hadLog, c.Raft.LastIndex()) {
		return nil, errors.New("its build does not know the question, and it has not said yet what is committed")
	}
	return func() bool { return c.Raft.AppliedIndex() >= commit }, nil
}

// Behind is why there may be a key that this server does not know, or nil. It matches ErrNotReady. Ask
// it before the ring is read.
func (c *CaughtUp) Behind() error {
	if err := c.Outdated(); err != nil {
		return err
	}
	if silence := c.Silence(); c.IsLost(silence) {
		return LostLeader(silence)
	}
	return nil
}

// LostLeader is the error of a server that has heard from no leader for so long. It matches ErrNotReady.
func LostLeader(silence time.Duration) error {
	return fmt.Errorf("%w: this server has heard from no leader for %v", fsm.ErrNotReady, silence.Round(time.Second))
}

// Outdated is why this server may never have known a key that others have, or nil. It matches ErrNotReady.
func (c *CaughtUp) Outdated() error {
	if !c.load() {
		return fmt.Errorf("%w: %w", fsm.ErrNotReady, c.Err())
	}
	if err := c.FSM.Complete(); err != nil {
		return fmt.Errorf("%w: %w", fsm.ErrNotReady, err)
	}
	return nil
}
