package keyring

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// promote makes non-voters voters, on the leader, once they hold every key. It runs until
// Close.
func (n *Node) promote(ctx context.Context) {
	for tries := 0; ; {
		changed := n.keys.fsm.changed.wait()
		retry, err := n.promoteOne(ctx)
		if tries++; err == nil {
			tries = 0
		} else { // asking has changed something by itself: it is no reason to ask again
			changed, retry = nil, time.After(plan.Backoff(tries+2, rand.Float64()))
		}
		select {
		case <-changed:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// promoteOne makes a voter of one server that has what it takes, and returns a channel that
// fires when there may be another one. The error is that of the attempt.
func (n *Node) promoteOne(ctx context.Context) (<-chan time.Time, error) {
	if n.raft.State() != raft.Leader {
		n.keys.blocked.vote(nil)
		return nil, nil
	}
	var voters []raft.ServerID
	var candidate *raft.Server
	waiting := map[raft.ServerID]string{}
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		switch lacks := n.lacks(string(s.ID)); {
		case s.Suffrage == raft.Voter:
			voters = append(voters, s.ID)
		case lacks == 0 && candidate == nil:
			candidate = &s
		default:
			waiting[s.ID] = fmt.Sprintf("it lacks %d keys", lacks)
		}
	}
	n.keys.blocked.vote(waiting)
	if candidate == nil {
		if len(waiting) > 0 {
			return time.After(time.Second), nil
		}
		return nil, nil
	}
	err := n.keys.alongActivations(ctx, func(ctx context.Context) error {
		if err := n.confirmAll(ctx, string(candidate.ID)); err != nil {
			return err
		}
		if err := n.keys.CheckMembers(ctx, append(voters, candidate.ID)); err != nil {
			return err
		}
		n.log.Info("server becomes a voter", "id", candidate.ID)
		return n.setAddress(candidate.ID, candidate.Address, true)
	})
	if err != nil {
		waiting[candidate.ID] = err.Error()
		n.keys.blocked.vote(waiting)
		n.log.Warn("promote", "id", candidate.ID, "error", err)
	}
	return time.After(0), err
}

// confirmAll asks the server live whether it holds every key, with the keystore that is
// recorded.
func (n *Node) confirmAll(ctx context.Context, server string) error {
	ring := n.keys.fsm.ring.Load()
	a := n.keys.askAbout(ctx, []string{server}, ring.Keys)[server]
	recorded, _ := ring.Keystore(server)
	if len(ring.Keys) > 0 && (a.Keystore != recorded || len(a.Held) < len(ring.Keys)) {
		return fmt.Errorf("it says that it holds %d of %d keys", len(a.Held), len(ring.Keys))
	}
	return nil
}

// lacks counts the keys of which the server is not a recorded holder.
func (n *Node) lacks(server string) (keys int) {
	for _, k := range n.keys.fsm.ring.Load().Keys {
		if !k.HeldBy(server) {
			keys++
		}
	}
	return keys
}
