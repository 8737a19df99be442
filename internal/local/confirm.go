package local

// How a leader has a majority confirm that it leads.

import (
	"context"
	"errors"
	"sync"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// Confirming has a majority confirm that this server leads. All who ask before a confirmation begins share
// it, and there is one at a time: a server that asks often has no more entries written than that.
type Confirming struct {
	*Server
	asked chan struct{} // has one when somebody asks

	mu   sync.Mutex    // guards below
	next *confirmation // of those who ask now; nil if nobody does
}

// NewConfirming confirms nothing before Run.
func NewConfirming(s *Server) *Confirming {
	return &Confirming{Server: s, asked: make(chan struct{}, 1)}
}

// confirmation is one entry in raft's log. err can be read when done is closed.
type confirmation struct {
	done chan struct{}
	err  error
}

// Confirm returns nil once a majority of the voters has taken an entry from this server that it wrote
// after the call, and its FSM has had all before that entry: no other server has led and got anything
// committed that this one had not applied then. raft's VerifyLeader won't do, for it counts the answers to
// heartbeats that were sent before the call. It ends with ctx.
func (c *Confirming) Confirm(ctx context.Context) error {
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
func (c *Confirming) join() *confirmation {
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
func (c *Confirming) take() *confirmation {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.next
	c.next = nil
	return next
}

// Run confirms for those who ask, until ctx ends. One who no longer waits is asked for all the same: others
// may have joined.
func (c *Confirming) Run(ctx context.Context) {
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
func (c *Confirming) barrierTaken(ctx context.Context) error {
	for {
		err := c.Raft.Barrier(fsm.ProposeTimeout).Error()
		if err == nil {
			return nil
		}
		if !errors.Is(err, raft.ErrEnqueueTimeout) || ctx.Err() != nil {
			return c.FSM.Outcome(c.Raft, err)
		}
	}
}

// State is what this server is and knows now. If asked to confirm, a leader waits until a majority of the
// voters has taken an entry from it. The error is that ctx has ended.
func (c *Confirming) State(ctx context.Context, q peer.StateRequest) (*peer.StateAnswer, error) {
	term := c.Term.Load() // first: what is read after it has at least what the barrier of that term had
	leads := c.Leads(term) && c.FSM.Complete() == nil
	a := &peer.StateAnswer{
		Term:          c.Raft.CurrentTerm(),
		Entry:         c.FSM.Entry(),
		Applied:       c.Raft.AppliedIndex(),
		Configuration: c.FSM.ConfigurationAt(),
	}
	known := a.Entry > 0 || c.FSM.Ring().Cluster == (meta.ClusterID{})
	if q.Confirm && leads && known { // after Entry was read
		err := c.Confirm(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		a.Leads = err == nil && c.Leads(term)
	}
	if q.Files {
		a.Files = c.FSM.Build().ReadsFiles()
	}
	if q.Policies {
		a.Policies = c.Policies
	}
	a.Time = c.Now()
	return a, nil
}
