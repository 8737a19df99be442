package members

// How the leader hands over to another server.

import (
	"context"
	"errors"
	"fmt"

	"example.com/keyring/internal/fsm"
	"github.com/hashicorp/raft"
)

// Transfer hands over to the voter of that ID or, if it is empty, to any other voter. It needs no barrier: a leader that is
// not ready can hand over too.
func (m Members) Transfer(ctx context.Context, id raft.ServerID) error {
	if m.Raft.State() != raft.Leader {
		return m.FSM.NotLeader(m.Raft)
	}
	if id == m.ID {
		return nil
	}
	others := m.otherVoters()
	if len(others) == 0 {
		return errors.New("transfer leadership: there is no other voter")
	}
	if id == "" {
		return m.handOver(ctx, others)
	}
	s, known := m.ServerOf(id)
	switch {
	case !known:
		return m.NotMember("transfer leadership:", id)
	case s.Suffrage != raft.Voter:
		return fmt.Errorf("transfer leadership: server %s has no vote", id)
	}
	return m.handOverTo(ctx, s)
}

// otherVoters are the voters but for this server.
func (m Members) otherVoters() (others []raft.Server) {
	for _, s := range m.Raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter && s.ID != m.ID {
			others = append(others, s)
		}
	}
	return others
}

// handOver hands over to the voter of raft's choice. That may be one that has just gone: then it tries each of the others.
func (m Members) handOver(ctx context.Context, others []raft.Server) error {
	err := m.handOverTo(ctx, raft.Server{})
	for _, s := range others {
		if err == nil || ctx.Err() != nil || m.Raft.State() != raft.Leader {
			break
		}
		err = m.handOverTo(ctx, s)
	}
	if err != nil && m.Raft.State() != raft.Leader {
		return nil // it has lost the leadership otherwise
	}
	return err
}

// handOverTo hands over to a server, or to one of raft's choice if that has no ID. Raft gives up after its election timeout.
func (m Members) handOverTo(ctx context.Context, s raft.Server) error {
	m.Logger.Info("transferring leadership", "to", s.ID, "by", fsm.Actor(ctx))
	var f raft.Future
	if s.ID == "" {
		f = m.Raft.LeadershipTransfer()
	} else {
		f = m.Raft.LeadershipTransferToServer(s.ID, s.Address)
	}
	if err := f.Error(); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	return nil
}
