package keyring

import (
	"context"
	"errors"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// state is what this server is and knows now. If asked to confirm, a leader waits until a majority of the
// voters has taken an entry from it.
func (k *Keyring) state(q *peer.StateRequest) *peer.StateAnswer {
	term := k.term.Load() // first: what is read after it has at least what the barrier of that term had
	leads := k.leads(term) && k.fsm.whole() == nil
	a := &peer.StateAnswer{
		Term:          k.raft.CurrentTerm(),
		Entry:         k.fsm.entry.Load(),
		Applied:       k.raft.AppliedIndex(),
		Configuration: k.fsm.configAt.Load(),
	}
	known := a.Entry > 0 || k.fsm.ring.Load().Cluster == (meta.ClusterID{})
	// The entry is sent after Entry was read: if another server had led by then, and applied more, no
	// majority would take it. raft's VerifyLeader won't do, for it counts the answers to heartbeats that
	// were sent before.
	if q.Confirm && leads && known && k.raft.Barrier(proposeTimeout).Error() == nil {
		a.Leads = k.leads(term)
	}
	a.Time = k.now()
	return a
}

// askState asks another server what it is and knows now. A build that does not know the question
// refuses it: see unsupported.
func (k *Keyring) askState(ctx context.Context, server string, q peer.StateRequest) (*peer.StateAnswer, error) {
	request, err := peer.Request{State: &q}.Encode()
	if err != nil {
		return nil, err
	}
	return call[peer.StateAnswer](ctx, k, server, request)
}

// unsupported reports whether a server refused a request because its build does not know it.
func unsupported(err error) bool {
	refusal, ok := errors.AsType[*peer.Refusal](err)
	return ok && refusal.Code == peer.Unsupported
}
