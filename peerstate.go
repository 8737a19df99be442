package keyring

// What a server is and knows now, for the others.

import (
	"context"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// state is what this server is and knows now. If asked to confirm, a leader waits until a majority of the
// voters has taken an entry from it. The error is that ctx has ended.
func (c *confirming) state(ctx context.Context, q peer.StateRequest) (*peer.StateAnswer, error) {
	term := c.term.Load() // first: what is read after it has at least what the barrier of that term had
	leads := c.leads(term) && c.fsm.complete() == nil
	a := &peer.StateAnswer{
		Term:          c.raft.CurrentTerm(),
		Entry:         c.fsm.entry.Load(),
		Applied:       c.raft.AppliedIndex(),
		Configuration: c.fsm.configAt.Load(),
	}
	known := a.Entry > 0 || c.fsm.ring.Load().Cluster == (meta.ClusterID{})
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
