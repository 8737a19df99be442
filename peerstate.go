package keyring

import (
	"context"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// state is what this server is and knows now. If asked to confirm, a leader waits until a majority of the
// voters has taken an entry from it. The error is that ctx has ended.
func (k *Keyring) state(ctx context.Context, q peer.StateRequest) (*peer.StateAnswer, error) {
	term := k.term.Load() // first: what is read after it has at least what the barrier of that term had
	leads := k.leads(term) && k.fsm.complete() == nil
	a := &peer.StateAnswer{
		Term:          k.raft.CurrentTerm(),
		Entry:         k.fsm.entry.Load(),
		Applied:       k.raft.AppliedIndex(),
		Configuration: k.fsm.configAt.Load(),
	}
	known := a.Entry > 0 || k.fsm.ring.Load().Cluster == (meta.ClusterID{})
	if q.Confirm && leads && known { // after Entry was read
		err := k.confirmLeads(ctx)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		a.Leads = err == nil && k.leads(term)
	}
	a.Time = k.now()
	return a, nil
}
