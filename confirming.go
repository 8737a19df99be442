package keyring

// How a leader makes sure that it still is one.

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// confirmTimeout is for one question to the leader that it answers when it was confirmed: its FSM may have
// much to apply before.
const confirmTimeout = 30 * time.Second

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
		err := c.raft.Barrier(proposeTimeout).Error()
		if err == nil {
			return nil
		}
		if !errors.Is(err, raft.ErrEnqueueTimeout) || ctx.Err() != nil {
			return outcome(c.raft, err)
		}
	}
}

// sendToLeader carries to the leader what it answers when it was confirmed, for server.toLeader. It ends when that
// server no longer leads.
func (s *server) sendToLeader(ctx context.Context, leader string, request []byte) ([]byte, error) {
	ctx, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end()
	watching.Go(func() { s.whileLeads(ctx, raft.ServerID(leader), end) })
	return s.sendWithin(ctx, confirmTimeout, leader, request)
}

// whileLeads ends what waits for a leader that leads no more: it may never answer, and this server may
// lead meanwhile.
func (s *server) whileLeads(ctx context.Context, leader raft.ServerID, end context.CancelFunc) {
	for {
		changed := s.fsm.bell.wait()
		if _, now := s.raft.LeaderWithID(); now != leader {
			end()
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
