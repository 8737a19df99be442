package keyring

import (
	"context"
	"errors"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// state is what this server is and knows now. If asked to confirm, a leader waits until a majority of the
// voters has taken an entry from it. The error is that ctx has ended.
func (k *Keyring) state(ctx context.Context, q *peer.StateRequest) (*peer.StateAnswer, error) {
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

// askState asks another server what it is and knows now. A build that does not know the question
// refuses it: see unsupported. Only the leader is asked to confirm.
func (k *Keyring) askState(ctx context.Context, server string, q peer.StateRequest) (*peer.StateAnswer, error) {
	request, err := peer.Request{State: &q}.Encode()
	if err != nil {
		return nil, err
	}
	if q.Confirm {
		return callLeader[peer.StateAnswer](ctx, k, raft.ServerID(server), request)
	}
	return call[peer.StateAnswer](ctx, k, server, request)
}

// unsupported reports whether a server refused a request because its build does not know it.
func unsupported(err error) bool {
	refusal, ok := errors.AsType[*peer.Refusal](err)
	return ok && refusal.Code == peer.Unsupported
}
