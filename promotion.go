package keyring

import (
	"context"
	"errors"
	"fmt"

	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// promote makes voters, on the leader, of the servers that hold every key that is needed. The error is
// that of those for which it has failed.
func (n *Node) promote(ctx context.Context) error {
	var errs []error
	if n.raft.State() == raft.Leader {
		for _, s := range n.raft.GetConfiguration().Configuration().Servers {
			if s.Suffrage == raft.Voter {
				continue
			}
			if lacks := n.lacks(string(s.ID)); lacks > 0 {
				n.keys.leader.noteNonvoter(s.ID, fmt.Errorf("it lacks %d keys", lacks))
				continue
			}
			err := n.promoteOne(ctx, s)
			n.keys.leader.noteNonvoter(s.ID, err)
			if err != nil {
				n.log.Warn("promote", "id", s.ID, "error", err)
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (n *Node) promoteOne(ctx context.Context, s raft.Server) error {
	return n.keys.alongActivations(ctx, func(ctx context.Context) error {
		if err := n.confirmAll(ctx, string(s.ID)); err != nil {
			return err
		}
		voters := []raft.ServerID{s.ID}
		for _, v := range currentVoters(n.raft) {
			voters = append(voters, raft.ServerID(v))
		}
		if err := n.keys.CheckMembers(ctx, voters); err != nil {
			return err
		}
		n.log.Info("server becomes a voter", "id", s.ID)
		return n.setAddress(s.ID, s.Address, true)
	})
}

// confirmAll asks the server live whether it holds every key that is needed, with the keystore that
// is recorded. What is not needed now is not activated before the server votes: see alongActivations.
func (n *Node) confirmAll(ctx context.Context, server string) error {
	if n.keys.greetAll(ctx, []string{server})[server] == nil {
		return errors.New("it does not answer")
	}
	ring := n.keys.fsm.ring.Load()
	needed := plan.Needed(ring, currentVoters(n.raft))
	a := n.keys.askAbout(ctx, []string{server}, needed)[server]
	recorded, _ := ring.Keystore(server)
	if len(needed) > 0 && (a.Keystore != recorded || len(a.Held) < len(needed)) {
		return fmt.Errorf("it says that it holds %d of %d keys", len(a.Held), len(needed))
	}
	return nil
}

// lacks counts the needed keys of which the server is not a recorded holder.
func (n *Node) lacks(server string) (keys int) {
	for _, k := range plan.Needed(n.keys.fsm.ring.Load(), currentVoters(n.raft)) {
		if !k.HeldBy(server) {
			keys++
		}
	}
	return keys
}
