package keyring

// Members: added, readmitted, removed, given a vote; CheckMembers and MembershipVersion.

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

// What changes the raft configuration here is in step with the leader's loop: no key is activated between the
// question who holds which key and the change that the answers allow. A host that changes the configuration by
// itself calls CheckMembers before.

// members changes the raft configuration, and makes and checks the tokens with which servers join, on the leader.
type members struct {
	*server
	leader *lead.Leader
}

func (k *Keyring) members() members { return members{k.server, k.leader} }

// AddServerOptions say how to add a server. The zero value asks nobody before a member gets another address.
type AddServerOptions struct {
	// MayMove is asked before a member gets another address, with the member as raft has it. An error refuses.
	// A member that still answers at its old address must not be moved: somebody has started a second server
	// with its certificate.
	MayMove func(ctx context.Context, member raft.Server) error
}

// AddServer adds a server to the raft configuration, without a vote: see PromoteServer. A member gets the new
// address and keeps its vote. An ID of up to 255 bytes is taken as it is: case counts, and spaces around it are
// refused. It may be called again. Leader only.
func (k *Keyring) AddServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	return k.do(ctx, func(ctx context.Context) error { return k.members().addServer(ctx, id, addr, o) })
}

func (m members) addServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	if err := m.Leading(); err != nil {
		return err
	}
	was, known := m.ServerOf(id)
	if known && was.Address == addr {
		return nil
	}
	if !known {
		if err := peer.CheckServerID(string(id)); err != nil {
			return fmt.Errorf("add server: %w", err)
		}
	}
	if err := checkRaftAddress(addr); err != nil {
		return fmt.Errorf("add server %s: %w", id, err)
	}
	if known && o.MayMove != nil {
		if err := o.MayMove(ctx, was); err != nil {
			return err
		}
	}
	return m.leader.BetweenSteps(ctx, func(ctx context.Context) error {
		is, still := m.ServerOf(id)
		if still != known {
			return fmt.Errorf("add server %s: it was added or removed meanwhile", id)
		}
		m.cfg.Logger.Info("server is added, or has another address", "id", id, "addr", addr, "by", Actor(ctx))
		return m.setAddress(id, addr, still && is.Suffrage == raft.Voter)
	})
}

// maxRaftAddress is far above any host:port. What a Node's raft takes from other servers is bounded.
const maxRaftAddress = 512

func checkRaftAddress(addr raft.ServerAddress) error {
	if addr == "" || len(addr) > maxRaftAddress || !utf8.ValidString(string(addr)) {
		return fmt.Errorf("an address of %d bytes, want 1 to %d of UTF-8", len(addr), maxRaftAddress)
	}
	return nil
}

// setAddress adds a server without a vote, or gives a member another address and leaves its vote
// as it is.
func (m members) setAddress(id raft.ServerID, addr raft.ServerAddress, votes bool) error {
	change := m.Raft.AddNonvoter
	if votes {
		change = m.Raft.AddVoter
	}
	if err := change(id, addr, 0, fsm.ProposeTimeout).Error(); err != nil {
		return m.FSM.Outcome(m.Raft, err)
	}
	return nil
}

// ReadmitServer makes a member that has lost its raft log a member that has no vote and holds no key. As a voter it
// would have forgotten its votes, and its recorded keys are gone. It gets the address, then every key, and a vote by
// PromoteServer. While a majority of the remaining voters does not hold every key, a voter is refused with an error that
// matches ErrNotDurable; and a server that is no member with one that matches ErrNotMember. It may be called again
// after a crash. Leader only.
//
// Call it only for that server itself, which its certificate proves, and only if nothing answers at the member's
// address any more: else somebody has started a second server with its certificate, which would take its place.
func (k *Keyring) ReadmitServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress) error {
	return k.do(ctx, func(ctx context.Context) error {
		return k.leader.BetweenSteps(ctx, func(ctx context.Context) error {
			s, known := k.server.ServerOf(id)
			if !known {
				return k.server.NotMember("readmit", id)
			}
			return k.members().readmit(ctx, s, addr)
		})
	})
}

// readmit is for between two steps of the leader's loop. A crash after any line leaves the server a member, which
// asks again.
func (m members) readmit(ctx context.Context, s raft.Server, addr raft.ServerAddress) error {
	if s.ID == m.cfg.ID {
		return fmt.Errorf("readmit server %s: it is the leader", s.ID)
	}
	if err := checkRaftAddress(addr); err != nil {
		return fmt.Errorf("readmit server %s: %w", s.ID, err)
	}
	m.cfg.Logger.Info("server without a raft log joins as a member without a vote", "id", s.ID, "addr", addr)
	if s.Suffrage == raft.Voter {
		if err := m.mayExpel(ctx, s.ID, RemoveServerOptions{}); err != nil {
			return err
		}
		if err := m.Raft.DemoteVoter(s.ID, 0, fsm.ProposeTimeout).Error(); err != nil {
			return m.FSM.Outcome(m.Raft, err)
		}
	}
	if err := m.forget(ctx, s.ID); err != nil {
		return err
	}
	return m.setAddress(s.ID, addr, false)
}

// RemoveServerOptions say how to remove a server. The zero value removes it only if no key is at risk.
type RemoveServerOptions struct {
	// Force removes it also if a key is then held by less than a majority of the voters that
	// remain, or nobody can say. It is for servers that will never come back. It can't help where
	// most of the remaining voters are down: see node.Recover and RecoverKeys.
	Force bool
}

// RemoveServer removes a server from the raft configuration, and forgets which keystore it had. Unless
// RemoveServerOptions.Force is set, a majority of the voters that remain must say, now, that it holds each key; else
// the error matches ErrNotDurable. All join tokens end before. A server that is no member is an error that matches
// ErrNotMember and names the members.
//
// A leader that is to remove itself hands over and returns an error that matches ErrNotLeader: the next leader is to
// be asked. Leader only.
func (k *Keyring) RemoveServer(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	return k.do(ctx, func(ctx context.Context) error { return k.members().removeServer(ctx, id, o) })
}

func (m members) removeServer(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	resigns := false
	err := m.leader.BetweenSteps(ctx, func(ctx context.Context) error {
		if !m.IsMember(id) {
			return m.NotMember("remove", id)
		}
		if resigns = id == m.cfg.ID; resigns {
			return m.mayExpel(ctx, id, o)
		}
		m.cfg.Logger.Info("server is removed", "id", id, "forced", o.Force, "by", Actor(ctx))
		return m.expel(ctx, id, o)
	})
	if err != nil || !resigns {
		return err
	}
	m.cfg.Logger.Info("leader is to be removed: it hands over", "by", Actor(ctx))
	if err := m.Raft.LeadershipTransfer().Error(); err != nil {
		return fmt.Errorf("remove server %s, the leader: hand over: %w", id, err)
	}
	return m.FSM.NotLeader(m.Raft) // the next one goes on
}

// mayExpel reports whether the configuration without the server puts no key at risk.
func (m members) mayExpel(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	s, known := m.ServerOf(id)
	if !known || s.Suffrage != raft.Voter || o.Force {
		return nil
	}
	remain := slices.DeleteFunc(fromStrings(local.Voters(m.Raft)), func(v raft.ServerID) bool { return v == id })
	if len(remain) == 0 {
		return fmt.Errorf("remove server %s: it is the last voter", id)
	}
	return m.checkMembers(ctx, remain)
}

// expel removes a server from the configuration, if it is a member. First its tokens: a crash in between leaves a
// member without tokens, never a removed server that knows one.
func (m members) expel(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	if err := m.mayExpel(ctx, id, o); err != nil || !m.IsMember(id) {
		return err
	}
	if err := m.endAllJoinTokens(ctx); err != nil {
		return fmt.Errorf("remove server %s: end the join tokens: %w", id, err)
	}
	if err := m.Raft.RemoveServer(id, 0, fsm.ProposeTimeout).Error(); err != nil {
		return m.FSM.Outcome(m.Raft, err)
	}
	return m.forget(ctx, id)
}

// forget drops what is recorded of a server's keystore: it comes back with another, and would get a
// vote before it holds a key.
func (m members) forget(ctx context.Context, id raft.ServerID) error {
	if _, known := m.FSM.Ring().Keystore(string(id)); !known {
		return nil
	}
	return m.Propose(ctx, meta.Command{Forget: &meta.Forget{Servers: []string{string(id)}}})
}

// PromoteServer gives a member that has no vote one, once it holds every key that something may be sealed under: it
// must be recorded as a holder of each, and say so now, and a majority of the voters with it must hold each key. Until
// then Status names the server and what it waits for. While it is not recorded as a holder, the error matches
// ErrKeyMissing, and there is no use in asking again before Changed tells of a change. A voter keeps its vote. Leader
// only.
func (k *Keyring) PromoteServer(ctx context.Context, id raft.ServerID) error {
	return k.do(ctx, func(ctx context.Context) error {
		if err := k.server.Leading(); err != nil {
			return err
		}
		s, known := k.server.ServerOf(id)
		if !known {
			return k.server.NotMember("promote", id)
		}
		if s.Suffrage == raft.Voter {
			return nil
		}
		err := k.members().promote(ctx, s)
		k.leader.NoteNonvoter(id, err)
		return err
	})
}

func (m members) promote(ctx context.Context, s raft.Server) error {
	if n := m.lackedBy(string(s.ID)); n > 0 {
		return keysLacked(n)
	}
	return m.leader.BetweenSteps(ctx, func(ctx context.Context) error {
		if err := m.holdsAll(ctx, string(s.ID)); err != nil {
			return err
		}
		voters := append([]raft.ServerID{s.ID}, fromStrings(local.Voters(m.Raft))...)
		if err := m.checkMembers(ctx, voters); err != nil {
			return err
		}
		is, known := m.ServerOf(s.ID) // it may have been removed, or have moved, while it was asked
		if !known {
			return m.NotMember("promote", s.ID)
		}
		m.cfg.Logger.Info("server becomes a voter", "id", is.ID)
		return m.setAddress(is.ID, is.Address, true)
	})
}

// holdsAll asks the server live whether it holds every key that is needed, with the keystore that
// is recorded. What is not needed now is not activated before the server votes: see leader.betweenSteps.
func (m members) holdsAll(ctx context.Context, server string) error {
	if m.Hellos(ctx, []string{server})[server] == nil {
		return errors.New("it does not answer")
	}
	ring := m.FSM.Ring()
	needed := plan.Needed(ring, local.Voters(m.Raft))
	a := m.AskAbout(ctx, []string{server}, needed)[server]
	recorded, _ := ring.Keystore(server)
	if len(needed) > 0 && (a.Keystore != recorded || len(a.Held) < len(needed)) {
		return fmt.Errorf("it says that it holds %d of %d keys", len(a.Held), len(needed))
	}
	return nil
}

// lackedBy counts the needed keys of which the server is not a recorded holder.
func (m members) lackedBy(server string) (keys int) {
	for _, key := range plan.Needed(m.FSM.Ring(), local.Voters(m.Raft)) {
		if !key.HeldBy(server) {
			keys++
		}
	}
	return keys
}

// keysLacked is how many keys a server lacks. It matches ErrKeyMissing.
type keysLacked int

func (n keysLacked) Error() string { return fmt.Sprintf("it lacks %d keys", int(n)) }

func (keysLacked) Is(target error) bool { return target == ErrKeyMissing }

// MembershipVersion grows with each raft configuration that the FSM is told of and each snapshot that is restored. A
// host that closes the connections of removed servers compares it: between two looks at raft's configuration a server
// may have come and gone.
func (k *Keyring) MembershipVersion() uint64 {
	return k.server.FSM.Configurations() + k.server.FSM.Restores()
}

// WithForwarder says that a server asks, by its certificate, for what is called with the context: a host that forwards
// calls to the leader sets it there. If that server was removed while its call waited, the call is refused with an
// error that matches ErrNotMember. It changes nothing for calls that change no member and no join token.
func WithForwarder(ctx context.Context, server raft.ServerID) context.Context {
	return local.WithForwarder(ctx, server)
}

// endJoinTokens ends tokens that are there. So every server has said before that it applies such
// commands, and none is asked again: one that is stolen would stop its removal by silence.
func (m members) endJoinTokens(ctx context.Context, end meta.EndJoinTokens) error {
	return m.FSM.Propose(ctx, m.Raft, []meta.Command{{EndJoinTokens: &end}})
}

// endAllJoinTokens is for before a server is removed: it may have seen them all.
func (m members) endAllJoinTokens(ctx context.Context) error {
	if len(m.FSM.Ring().JoinTokens) == 0 {
		return nil
	}
	m.cfg.Logger.Info("all join tokens end: a server is removed")
	return m.endJoinTokens(ctx, meta.EndJoinTokens{All: true})
}

// CheckMembers reports whether the raft configuration can be changed to these voters
// without risk to a key: each key that something may be sealed under must be held, asked
// live, by a majority of them. The error names the keys for which it is not so. A host that
// changes its configuration by itself calls it before each change, and makes no two changes
// at a time. Leader only.
func (k *Keyring) CheckMembers(ctx context.Context, voters []raft.ServerID) error {
	return k.do(ctx, func(ctx context.Context) error { return k.members().checkMembers(ctx, voters) })
}

func (m members) checkMembers(ctx context.Context, voters []raft.ServerID) error {
	if len(voters) == 0 {
		return errors.New("check members: no voters")
	}
	if err := m.Leading(); err != nil {
		return err
	}
	var ids []string
	for _, v := range voters {
		ids = append(ids, string(v))
	}
	ring, present := m.FSM.Ring(), local.Voters(m.Raft)
	answers := m.AskAbout(ctx, ids, plan.Needed(ring, present))
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if unsafe := plan.Unsafe(ring, present, ids, answers); len(unsafe) > 0 {
		return fmt.Errorf("check members %q: %w: no majority of them holds %d keys, %s the first of them",
			ids, ErrNotDurable, len(unsafe), unsafe[0])
	}
	return nil
}
