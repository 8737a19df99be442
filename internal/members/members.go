// Package members is how the leader changes who is in the cluster. [Members] adds, readmits, promotes and removes servers,
// and makes and checks the tokens with which servers join.
//
// All of it is in step with the leader's loop: no key is activated between the question who holds which key and the change
// of the raft configuration that the answers allow.
package members

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Members changes the raft configuration, and makes and checks join tokens, on the leader.
type Members struct {
	*local.Server
	Leader *lead.Leader
}

// AddOptions say how to add a server.
type AddOptions struct {
	// MayMove is asked before a member gets another address, with the member as raft has it. It may be nil.
	MayMove func(context.Context, raft.Server) error
}

// Add adds a server without a vote. A member gets the new address and keeps its vote.
func (m Members) Add(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddOptions) error {
	if err := m.Leading(); err != nil {
		return err
	}
	if was, known := m.ServerOf(id); known && was.Address == addr {
		return nil
	}
	return m.add(ctx, id, addr, o, func(context.Context, raft.Server) error { return nil })
}

// add adds a server without a vote, or gives a member its new address. Between two steps of the leader's loop it calls
// first, with the member as raft has it, or without an ID if there is none.
func (m Members) add(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddOptions, first func(context.Context, raft.Server) error) error {
	was, known := m.ServerOf(id)
	if !known {
		if err := peer.CheckServerID(string(id)); err != nil {
			return fmt.Errorf("add server: %w", err)
		}
	}
	if err := m.checkAddress(id, addr); err != nil {
		return fmt.Errorf("add server %s: %w", id, err)
	}
	if known && was.Address != addr && o.MayMove != nil {
		if err := o.MayMove(ctx, was); err != nil {
			return err
		}
	}
	return m.Leader.BetweenSteps(ctx, func(ctx context.Context) error {
		is, still := m.ServerOf(id)
		if still != known || is.Address != was.Address {
			return fmt.Errorf("add server %s: it was added, moved or removed meanwhile", id)
		}
		if err := first(ctx, is); err != nil || still && is.Address == addr {
			return err
		}
		if still { // another one that has its ID may have taken its place
			m.Logger.Warn("changing the address of a member", "id", id, "addr", addr, "was", is.Address, "by", fsm.Actor(ctx))
		} else {
			m.Logger.Info("adding a server", "id", id, "addr", addr, "by", fsm.Actor(ctx))
		}
		return m.setAddress(id, addr, still && is.Suffrage == raft.Voter)
	})
}

// maxAddress is far above any host:port. What a Node's raft takes from other servers is bounded.
const maxAddress = 512

// checkAddress is an error if a server can't have that address.
func (m Members) checkAddress(id raft.ServerID, addr raft.ServerAddress) error {
	if addr == "" || len(addr) > maxAddress || !utf8.ValidString(string(addr)) {
		return fmt.Errorf("an address of %d bytes, want 1 to %d of UTF-8", len(addr), maxAddress)
	}
	for _, s := range m.Raft.GetConfiguration().Configuration().Servers {
		if s.Address == addr && s.ID != id {
			return fmt.Errorf("server %s has the address %s", s.ID, addr)
		}
	}
	return nil
}

// setAddress adds a server without a vote, or gives a member another address and leaves its vote
// as it is.
func (m Members) setAddress(id raft.ServerID, addr raft.ServerAddress, votes bool) error {
	change := m.Raft.AddNonvoter
	if votes {
		change = m.Raft.AddVoter
	}
	if err := change(id, addr, 0, fsm.ProposeTimeout).Error(); err != nil {
		return m.FSM.Outcome(m.Raft, err)
	}
	return nil
}

// Readmit makes a member that has lost its raft log a member that has no vote and holds no key.
func (m Members) Readmit(ctx context.Context, id raft.ServerID, addr raft.ServerAddress) error {
	return m.Leader.BetweenSteps(ctx, func(ctx context.Context) error {
		s, known := m.ServerOf(id)
		if !known {
			return m.NotMember("readmit", id)
		}
		return m.readmit(ctx, s, addr)
	})
}

// readmit is for between two steps of the leader's loop. A crash after any line leaves the server a member, which
// asks again.
func (m Members) readmit(ctx context.Context, s raft.Server, addr raft.ServerAddress) error {
	if s.ID == m.ID {
		return fmt.Errorf("readmit server %s: it is the leader", s.ID)
	}
	if err := m.checkAddress(s.ID, addr); err != nil {
		return fmt.Errorf("readmit server %s: %w", s.ID, err)
	}
	if s.Suffrage == raft.Voter {
		if err := m.mayLoseVote(ctx, "readmit", s.ID); err != nil {
			return err
		}
	}
	m.Logger.Info("readmitting a server without a raft log, as a member without a vote", "id", s.ID, "addr", addr)
	if s.Suffrage == raft.Voter {
		if err := m.Raft.DemoteVoter(s.ID, 0, fsm.ProposeTimeout).Error(); err != nil {
			return m.FSM.Outcome(m.Raft, err)
		}
	}
	if err := m.forget(ctx, s.ID); err != nil {
		return err
	}
	return m.setAddress(s.ID, addr, false)
}

// RemoveOptions say how to remove a server.
type RemoveOptions struct {
	Force bool // also if a key is then at risk
}

// Remove removes a server, if it puts no key at risk. A leader that is to remove itself hands over, and returns an error
// that matches fsm.ErrNotLeader.
func (m Members) Remove(ctx context.Context, id raft.ServerID, o RemoveOptions) error {
	return m.orHandOver(ctx, "remove", id, func(ctx context.Context) error { return m.mayExpel(ctx, id, o) },
		func(ctx context.Context, _ raft.Server) error {
			m.Logger.Info("removing a server", "id", id, "forced", o.Force, "by", fsm.Actor(ctx))
			return m.expel(ctx, id, o)
		})
}

// orHandOver changes a member, between two steps of the leader's loop. A leader that is to be changed itself hands over, if
// it may be, and returns an error that matches fsm.ErrNotLeader: the next leader goes on.
func (m Members) orHandOver(ctx context.Context, what string, id raft.ServerID, may func(context.Context) error,
	change func(context.Context, raft.Server) error) error {
	resigns := false
	err := m.Leader.BetweenSteps(ctx, func(ctx context.Context) error {
		s, known := m.ServerOf(id)
		if !known {
			return m.NotMember(what, id)
		}
		if resigns = id == m.ID; resigns {
			return may(ctx)
		}
		return change(ctx, s)
	})
	if err != nil || !resigns {
		return err
	}
	if err := m.Transfer(ctx, ""); err != nil {
		return fmt.Errorf("%s server %s, the leader: %w", what, id, err)
	}
	return m.FSM.NotLeader(m.Raft)
}

// mayExpel reports whether the configuration without the server puts no key at risk.
func (m Members) mayExpel(ctx context.Context, id raft.ServerID, o RemoveOptions) error {
	if s, known := m.ServerOf(id); !known || s.Suffrage != raft.Voter || o.Force {
		return nil
	}
	return m.mayLoseVote(ctx, "remove", id)
}

// mayLoseVote reports whether the other voters can do without that one: there are some, and they hold every key.
func (m Members) mayLoseVote(ctx context.Context, what string, id raft.ServerID) error {
	remain := slices.DeleteFunc(m.voters(), func(v raft.ServerID) bool { return v == id })
	if len(remain) == 0 {
		return fmt.Errorf("%s server %s: it is the last voter", what, id)
	}
	return m.Check(ctx, remain)
}

// expel removes a server from the configuration, if it is a member. First its tokens: a crash in between leaves a
// member without tokens, never a removed server that knows one.
func (m Members) expel(ctx context.Context, id raft.ServerID, o RemoveOptions) error {
	if err := m.mayExpel(ctx, id, o); err != nil || !m.IsMember(id) {
		return err
	}
	if err := m.endAllTokens(ctx); err != nil {
		return fmt.Errorf("remove server %s: end the join tokens: %w", id, err)
	}
	if err := m.Raft.RemoveServer(id, 0, fsm.ProposeTimeout).Error(); err != nil {
		return m.FSM.Outcome(m.Raft, err)
	}
	m.Leader.NoteNonvoter(id, nil)
	return errors.Join(m.forget(ctx, id), m.endNonvoter(ctx, id))
}

// forget drops what is recorded of a server's keystore: it comes back with another, and would get a
// vote before it holds a key.
func (m Members) forget(ctx context.Context, id raft.ServerID) error {
	if _, known := m.FSM.Ring().Keystore(string(id)); !known {
		return nil
	}
	return m.Propose(ctx, meta.Command{Forget: &meta.Forget{Servers: []string{string(id)}}})
}

// voters are the voters of the raft configuration.
func (m Members) voters() (ids []raft.ServerID) {
	for _, v := range local.Voters(m.Raft) {
		ids = append(ids, raft.ServerID(v))
	}
	return ids
}

// Check says which keys would be at risk if the raft configuration had these voters: each key that something may be
// sealed under must be held, asked live, by a majority of them.
func (m Members) Check(ctx context.Context, voters []raft.ServerID) error {
	if len(voters) == 0 {
		return errors.New("check members: no voters")
	}
	if err := m.Leading(); err != nil {
		return err
	}
	var ids []string
	for _, v := range voters {
		if slices.Contains(ids, string(v)) {
			return fmt.Errorf("check members %q: %s is named twice", voters, v)
		}
		ids = append(ids, string(v))
	}
	ring, present := m.FSM.Ring(), local.Voters(m.Raft)
	answers := m.AskAbout(ctx, ids, plan.Needed(ring, present))
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if unsafe := plan.Unsafe(ring, present, ids, answers); len(unsafe) > 0 {
		return fmt.Errorf("check members %q: %w: no majority of them holds %d keys, %s the first of them",
			ids, local.ErrNotDurable, len(unsafe), unsafe[0])
	}
	return nil
}
