package members

// How a server leaves the cluster, whoever leads.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// leaveTimeout is for one question to the leader: it asks live what the others hold, and changes the raft configuration.
const leaveTimeout = 10 * time.Second

// Leave removes this server from the cluster. Another server that leads is asked; this one first hands over if it leads.
// It tries until the leader has answered, or ctx ends.
func (m Members) Leave(ctx context.Context) error {
	for {
		changed := m.FSM.Changed()
		err := m.leave(ctx)
		if err == nil || !errors.Is(err, errAgain) {
			return err
		}
		if !local.Pause(ctx, changed, local.RetryAfter) {
			return fmt.Errorf("leave: %w: %w", context.Cause(ctx), err)
		}
	}
}

// errAgain is matched by the errors after which Leave tries again.
var errAgain = errors.New("no leader has answered")

// leave is one try of Leave.
func (m Members) leave(ctx context.Context) error {
	if all := local.ServerIDs(m.Raft); len(all) > 0 && !m.IsMember(m.ID) {
		return nil // the log has told this server
	}
	if m.Raft.State() == raft.Leader {
		err := m.Remove(ctx, m.ID, RemoveOptions{})
		if errors.Is(err, fsm.ErrNotLeader) || errors.Is(err, fsm.ErrNotReady) {
			return fmt.Errorf("%w: %w", errAgain, err)
		}
		return err
	}
	_, leader := m.Raft.LeaderWithID()
	if leader == "" {
		return fmt.Errorf("%w: %w", errAgain, m.FSM.NotLeader(m.Raft))
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	atRisk, err := m.Patient.Leave(ctx, string(leader), fsm.Actor(ctx))
	switch {
	case peer.Refused(err, peer.NotMember): // an attempt before has removed it, and its answer was lost
		return nil
	case peer.Refused(err, peer.Unsupported), peer.Refused(err, peer.BadRequest):
		return fmt.Errorf("leave: %w", err)
	case err != nil:
		return fmt.Errorf("%w: %w", errAgain, err)
	case atRisk != "":
		return fmt.Errorf("leave: %w: the leader, %s, says: %s", local.ErrNotDurable, leader, atRisk)
	}
	return nil
}

// ServeLeave removes a server that asks for it, by its certificate, or says which keys would be at risk.
func (m Members) ServeLeave(ctx context.Context, from, by string) (atRisk string, err error) {
	ctx = fsm.WithActor(ctx, by)
	m.Logger.Info("a server asks to leave", "id", from, "by", by)
	err = m.Remove(ctx, raft.ServerID(from), RemoveOptions{})
	switch {
	case err == nil, errors.Is(err, local.ErrNotMember):
		return "", nil
	case errors.Is(err, local.ErrNotDurable):
		return err.Error(), nil
	case errors.Is(err, fsm.ErrNotLeader):
		_, leader := m.Raft.LeaderWithID()
		return "", &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	case errors.Is(err, fsm.ErrNotReady):
		return "", &peer.Refusal{Code: peer.NotReady}
	}
	m.Logger.Warn("could not remove a server that asks to leave", "id", from, "error", err)
	return "", err
}
