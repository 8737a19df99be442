package keyring

import (
	"context"
	"errors"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// state is what this server is and knows now. Whether it leads is confirmed by a majority of the
// voters, so on a leader it takes a round of raft's heartbeats.
func (k *Keyring) state() *peer.StateAnswer {
	term := k.term.Load() // first: what is read after it has at least what the barrier of that term had
	leads := k.leads(term) && k.fsm.whole() == nil
	a := &peer.StateAnswer{
		Term:          k.raft.CurrentTerm(),
		Entry:         k.fsm.entry.Load(),
		Applied:       k.raft.AppliedIndex(),
		Configuration: k.fsm.configAt.Load(),
	}
	known := a.Entry > 0 || k.fsm.ring.Load().Cluster == (meta.ClusterID{})
	// The majority is asked after Entry was read: if another server had led by then, and applied more,
	// it would not confirm this one.
	if leads && known && k.raft.VerifyLeader().Error() == nil {
		a.Leads = k.leads(term)
	}
	a.Time = k.now()
	return a
}

// askState asks another server what it is and knows now. A build that does not know the question
// refuses it: see unsupported.
func (k *Keyring) askState(ctx context.Context, server string) (*peer.StateAnswer, error) {
	request, err := peer.Request{State: &peer.StateRequest{}}.Encode()
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
