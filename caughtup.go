package keyring

// Whether this server knows what was committed before its start, and how a leader has that confirmed.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
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
// caughtUp says whether that time is over: whether the FSM has, since Open, had everything that a leader
// had applied at some moment after Open. On a leader the barrier of its term proves that. A follower
// asks the leader for the index of the last entry of the keyring's, and waits for it.
//
// It never becomes false again: what the FSM has had it has, and what replaces it comes later in the
// log, a restored snapshot too. How old it may have become since is what silence tells.
type caughtUp struct {
	*server
	hadLog uint64 // the last index of raft's log at Open

	done atomic.Bool
	last atomic.Pointer[error] // why the last question to a leader was of no use; nil if there was none, or it was
}

func (c *caughtUp) load() bool { return c.done.Load() }

// err is why this server has not caught up.
func (c *caughtUp) err() error {
	err := errors.New("this server has not caught up with a leader since its start")
	if last := c.last.Load(); last != nil {
		return fmt.Errorf("%w: %w", err, *last)
	}
	return err
}

// view is the ring and what may be concluded from it. Whether the server has caught up is read first:
// read after the ring, it could speak of a later one.
type view struct {
	caughtUp bool
	ring     *meta.Ring
}

func (c *caughtUp) view() view {
	v := view{caughtUp: c.load()}
	v.ring = c.fsm.Ring()
	return v
}

// set is called by the leader's loop and by run.
func (c *caughtUp) set() {
	if c.done.CompareAndSwap(false, true) {
		c.fsm.Notify()
	}
}

// run ends when this server has caught up, or with ctx.
func (c *caughtUp) run(ctx context.Context) {
	reached := c.findGoal(ctx)
	c.last.Store(nil)
	for reached != nil && !c.load() {
		changed := c.fsm.Changed()
		if c.fsm.Complete() == nil && reached() {
			c.set()
			return
		}
		// raft notes the index of a snapshot that was restored a little later than the FSM hears of it.
		if !pause(ctx, changed, time.Second) {
			return
		}
	}
}

// findGoal asks each leader that comes up until one has told how far this server has to come, and
// returns what reports that it has. It is nil if that is of no use any more.
func (c *caughtUp) findGoal(ctx context.Context) func() bool {
	var asked raft.ServerID // the leader that gave no answer of use
	var again time.Time     // when it is asked again
	for tries := 0; !c.load(); {
		changed := c.fsm.Changed()
		_, leader := c.raft.LeaderWithID()
		wait := idle
		switch {
		case leader == "" || leader == c.cfg.ID: // the leader's loop sees to it when this server leads
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
			c.cfg.Logger.Debug("ask the leader how far it is", "leader", leader, "error", err)
			c.last.Store(&err)
			wait = plan.Backoff(tries, rand.Float64())
			asked, again = leader, time.Now().Add(wait)
			tries++
		}
		if !pause(ctx, changed, wait) {
			return nil
		}
	}
	return nil
}

// askGoal asks the leader how far this server has to come.
func (c *caughtUp) askGoal(ctx context.Context, leader raft.ServerID) (func() bool, error) {
	a, err := c.toLeader.State(ctx, string(leader), peer.StateRequest{Confirm: true})
	if peer.Refused(err, peer.Unsupported) { // its build does not know the question
		return c.localGoal()
	}
	if err != nil {
		return nil, err
	}
	if !a.Leads {
		return nil, errors.New("it is not confirmed as the leader, or has no entry of its own yet")
	}
	reached := func() bool { return plan.Reached(c.fsm.Ring(), a.Entry, c.fsm.Position(c.raft)) }
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
func (c *caughtUp) localGoal() (func() bool, error) {
	commit := c.raft.CommitIndex()
	if commit == 0 || commit < min(c.hadLog, c.raft.LastIndex()) {
		return nil, errors.New("its build does not know the question, and it has yet to tell what is committed")
	}
	return func() bool { return c.raft.AppliedIndex() >= commit }, nil
}

// behind is why there may be a key that this server does not know, or nil. It matches ErrNotReady. Ask
// it before the ring is read.
func (c *caughtUp) behind() error {
	if err := c.outdated(); err != nil {
		return err
	}
	if silence := c.silence(); c.isLost(silence) {
		return lost(silence)
	}
	return nil
}

func lost(silence time.Duration) error {
	return fmt.Errorf("%w: this server has heard from no leader for %v", ErrNotReady, silence.Round(time.Second))
}

// outdated is why this server may never have known a key that others have, or nil. It matches ErrNotReady.
func (c *caughtUp) outdated() error {
	if !c.load() {
		return fmt.Errorf("%w: %w", ErrNotReady, c.err())
	}
	if err := c.fsm.Complete(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return nil
}

// confirming has a majority confirm that this server leads. All who ask before a confirmation begins share
// it, and there is one at a time: a server that asks often has no more entries written than that.
type confirming struct {
	*server
	asked chan struct{} // has one when somebody asks

	mu   sync.Mutex    // guards below
	next *confirmation // of those who ask now; nil if nobody does
}

func newConfirming(s *server) *confirming {
	return &confirming{server: s, asked: make(chan struct{}, 1)}
}

// confirmation is one entry in raft's log. err can be read when done is closed.
type confirmation struct {
	done chan struct{}
	err  error
}

// confirm returns nil once a majority of the voters has taken an entry from this server that it wrote
// after the call, and its FSM has had all before that entry: no other server has led and got anything
// committed that this one had not applied then. raft's VerifyLeader won't do, for it counts the answers to
// heartbeats that were sent before the call. It ends with ctx.
func (c *confirming) confirm(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	next := c.join()
	select {
	case <-next.done:
		return next.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// join returns the confirmation that has yet to begin.
func (c *confirming) join() *confirmation {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = &confirmation{done: make(chan struct{})}
	}
	select {
	case c.asked <- struct{}{}:
	default:
	}
	return c.next
}

// take returns the confirmation that is to begin now: who asks from now on waits for the next one.
func (c *confirming) take() *confirmation {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.next
	c.next = nil
	return next
}

// run confirms for those who ask, until ctx ends. One who no longer waits is asked for all the same: others
// may have joined.
func (c *confirming) run(ctx context.Context) {
	for {
		select {
		case <-c.asked:
		case <-ctx.Done():
			return
		}
		if next := c.take(); next != nil {
			next.err = c.barrierTaken(ctx)
			close(next.done)
		}
	}
}

// barrierTaken waits for a barrier. That raft does not take it for a while, because the FSM has much to
// apply, is no answer.
func (c *confirming) barrierTaken(ctx context.Context) error {
	for {
		err := c.raft.Barrier(fsm.ProposeTimeout).Error()
		if err == nil {
			return nil
		}
		if !errors.Is(err, raft.ErrEnqueueTimeout) || ctx.Err() != nil {
			return c.fsm.Outcome(c.raft, err)
		}
	}
}

// state is what this server is and knows now. If asked to confirm, a leader waits until a majority of the
// voters has taken an entry from it. The error is that ctx has ended.
func (c *confirming) state(ctx context.Context, q peer.StateRequest) (*peer.StateAnswer, error) {
	term := c.term.Load() // first: what is read after it has at least what the barrier of that term had
	leads := c.leads(term) && c.fsm.Complete() == nil
	a := &peer.StateAnswer{
		Term:          c.raft.CurrentTerm(),
		Entry:         c.fsm.Entry(),
		Applied:       c.raft.AppliedIndex(),
		Configuration: c.fsm.ConfigurationAt(),
	}
	known := a.Entry > 0 || c.fsm.Ring().Cluster == (meta.ClusterID{})
	if q.Confirm && leads && known { // after Entry was read
		err := c.confirm(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		a.Leads = err == nil && c.leads(term)
	}
	a.Time = c.now()
	return a, nil
}
