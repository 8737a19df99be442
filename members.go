package keyring

// How the members of the cluster change: added, removed, promoted.

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// What changes the raft configuration here is in step with the leader's loop: no key is activated between the
// question who holds which key and the change that the answers allow. A host that changes the configuration by
// itself calls CheckMembers before.

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
	return k.do(ctx, func(ctx context.Context) error { return k.addServer(ctx, id, addr, o) })
}

func (k *Keyring) addServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	if err := k.mayLead(); err != nil {
		return err
	}
	was, known := k.serverOf(id)
	if known && was.Address == addr {
		return nil
	}
	if !known {
		if err := peer.CheckServerID(string(id)); err != nil {
			return fmt.Errorf("add server: %w", err)
		}
	}
	if known && o.MayMove != nil {
		if err := o.MayMove(ctx, was); err != nil {
			return err
		}
	}
	return k.leader.betweenSteps(ctx, func(ctx context.Context) error {
		is, still := k.serverOf(id)
		if still != known {
			return fmt.Errorf("add server %s: it was added or removed meanwhile", id)
		}
		k.cfg.Logger.Info("server is added, or has another address", "id", id, "addr", addr, "by", Actor(ctx))
		return k.setAddress(id, addr, still && is.Suffrage == raft.Voter)
	})
}

// setAddress adds a server without a vote, or gives a member another address and leaves its vote
// as it is.
func (k *Keyring) setAddress(id raft.ServerID, addr raft.ServerAddress, votes bool) error {
	change := k.raft.AddNonvoter
	if votes {
		change = k.raft.AddVoter
	}
	if err := change(id, addr, 0, proposeTimeout).Error(); err != nil {
		return outcome(k.raft, err)
	}
	return nil
}

// ReadmitServer makes a member that has lost its raft log a member that has no vote and holds no key. As a voter it
// would have forgotten its votes, and its recorded keys are gone. It gets the address, then every key, and a vote by
// PromoteServer. While a majority of the remaining voters does not hold every key, a voter is refused with an error that
// matches ErrNotDurable; and a server that is no member with one that matches ErrNotMember. It may be called again
// after a crash. Leader only.
func (k *Keyring) ReadmitServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress) error {
	return k.do(ctx, func(ctx context.Context) error {
		return k.leader.betweenSteps(ctx, func(ctx context.Context) error {
			s, known := k.serverOf(id)
			if !known {
				return k.notMember("readmit", id)
			}
			return k.readmit(ctx, s, addr)
		})
	})
}

// readmit is for between two steps of the leader's loop. A crash after any line leaves the server a member, which
// asks again.
func (k *Keyring) readmit(ctx context.Context, s raft.Server, addr raft.ServerAddress) error {
	k.cfg.Logger.Info("server without a raft log joins as a member without a vote", "id", s.ID, "addr", addr)
	if s.Suffrage == raft.Voter {
		if err := k.mayExpel(ctx, s.ID, RemoveServerOptions{}); err != nil {
			return err
		}
		if err := k.raft.DemoteVoter(s.ID, 0, proposeTimeout).Error(); err != nil {
			return outcome(k.raft, err)
		}
	}
	if err := k.forget(ctx, s.ID); err != nil {
		return err
	}
	return k.setAddress(s.ID, addr, false)
}

// RemoveServerOptions say how to remove a server. The zero value removes it only if no key is at risk.
type RemoveServerOptions struct {
	// Force removes it also if a key is then held by less than a majority of the voters that
	// remain, or nobody can say. It is for servers that will never come back. It can't help where
	// most of the remaining voters are down: see node.Recover.
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
	return k.do(ctx, func(ctx context.Context) error { return k.removeServer(ctx, id, o) })
}

func (k *Keyring) removeServer(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	resigns := false
	err := k.leader.betweenSteps(ctx, func(ctx context.Context) error {
		if !k.isMember(id) {
			return k.notMember("remove", id)
		}
		if resigns = id == k.cfg.ID; resigns {
			return k.mayExpel(ctx, id, o)
		}
		k.cfg.Logger.Info("server is removed", "id", id, "forced", o.Force, "by", Actor(ctx))
		return k.expel(ctx, id, o)
	})
	if err != nil || !resigns {
		return err
	}
	k.cfg.Logger.Info("leader is to be removed: it hands over", "by", Actor(ctx))
	if err := k.raft.LeadershipTransfer().Error(); err != nil {
		return fmt.Errorf("remove server %s, the leader: hand over: %w", id, err)
	}
	return notLeader(k.raft) // the next one goes on
}

// mayExpel reports whether the configuration without the server puts no key at risk.
func (k *Keyring) mayExpel(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	s, known := k.serverOf(id)
	if !known || s.Suffrage != raft.Voter || o.Force {
		return nil
	}
	remain := slices.DeleteFunc(fromStrings(currentVoters(k.raft)), func(v raft.ServerID) bool { return v == id })
	if len(remain) == 0 {
		return fmt.Errorf("remove server %s: it is the last voter", id)
	}
	return k.CheckMembers(ctx, remain)
}

// expel removes a server from the configuration, if it is a member. First its tokens: a crash in between leaves a
// member without tokens, never a removed server that knows one.
func (k *Keyring) expel(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	if err := k.mayExpel(ctx, id, o); err != nil || !k.isMember(id) {
		return err
	}
	if err := k.endAllJoinTokens(ctx); err != nil {
		return fmt.Errorf("remove server %s: end the join tokens: %w", id, err)
	}
	if err := k.raft.RemoveServer(id, 0, proposeTimeout).Error(); err != nil {
		return outcome(k.raft, err)
	}
	return k.forget(ctx, id)
}

// forget drops what is recorded of a server's keystore: it comes back with another, and would get a
// vote before it holds a key.
func (k *Keyring) forget(ctx context.Context, id raft.ServerID) error {
	if _, known := k.fsm.ring.Load().Keystore(string(id)); !known {
		return nil
	}
	return k.propose(ctx, meta.Command{Forget: &meta.Forget{Servers: []string{string(id)}}})
}

// PromoteServer gives a member that has no vote one, once it holds every key that something may be sealed under: it
// must be recorded as a holder of each, and say so now, and a majority of the voters with it must hold each key. Until
// then Status names the server and what it waits for. While it is not recorded as a holder, the error matches
// ErrKeyMissing, and there is no use in asking again before Changed tells of a change. A voter keeps its vote. Leader
// only.
func (k *Keyring) PromoteServer(ctx context.Context, id raft.ServerID) error {
	return k.do(ctx, func(ctx context.Context) error {
		if err := k.mayLead(); err != nil {
			return err
		}
		s, known := k.serverOf(id)
		if !known {
			return k.notMember("promote", id)
		}
		if s.Suffrage == raft.Voter {
			return nil
		}
		err := k.promote(ctx, s)
		k.leader.noteNonvoter(id, err)
		return err
	})
}

func (k *Keyring) promote(ctx context.Context, s raft.Server) error {
	if n := k.lackedBy(string(s.ID)); n > 0 {
		return keysLacked(n)
	}
	return k.leader.betweenSteps(ctx, func(ctx context.Context) error {
		if err := k.holdsAll(ctx, string(s.ID)); err != nil {
			return err
		}
		voters := append([]raft.ServerID{s.ID}, fromStrings(currentVoters(k.raft))...)
		if err := k.CheckMembers(ctx, voters); err != nil {
			return err
		}
		k.cfg.Logger.Info("server becomes a voter", "id", s.ID)
		return k.setAddress(s.ID, s.Address, true)
	})
}

// holdsAll asks the server live whether it holds every key that is needed, with the keystore that
// is recorded. What is not needed now is not activated before the server votes: see alongActivations.
func (k *Keyring) holdsAll(ctx context.Context, server string) error {
	if k.hellos(ctx, []string{server})[server] == nil {
		return errors.New("it does not answer")
	}
	ring := k.fsm.ring.Load()
	needed := plan.Needed(ring, currentVoters(k.raft))
	a := k.askAbout(ctx, []string{server}, needed)[server]
	recorded, _ := ring.Keystore(server)
	if len(needed) > 0 && (a.Keystore != recorded || len(a.Held) < len(needed)) {
		return fmt.Errorf("it says that it holds %d of %d keys", len(a.Held), len(needed))
	}
	return nil
}

// lackedBy counts the needed keys of which the server is not a recorded holder.
func (k *Keyring) lackedBy(server string) (keys int) {
	for _, key := range plan.Needed(k.fsm.ring.Load(), currentVoters(k.raft)) {
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
func (k *Keyring) MembershipVersion() uint64 { return k.fsm.configs.Load() + k.fsm.restores.Load() }

// serverOf returns a server of the latest raft configuration.
func (s *server) serverOf(id raft.ServerID) (raft.Server, bool) {
	all := s.raft.GetConfiguration().Configuration().Servers
	i := slices.IndexFunc(all, func(s raft.Server) bool { return s.ID == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return all[i], true
}

// isMember reports whether the server is in the latest raft configuration.
func (s *server) isMember(id raft.ServerID) bool {
	_, known := s.serverOf(id)
	return known
}

func (s *server) notMember(what string, id raft.ServerID) error {
	return fmt.Errorf("%s server %.300q: %w: the members are %q", what, id, ErrNotMember, servers(s.raft))
}

// WithForwarder says that a server asks, by its certificate, for what is called with the context: a host that forwards
// calls to the leader sets it there. If that server was removed while its call waited, the call is refused with an
// error that matches ErrNotMember. It changes nothing for calls that change no member and no join token.
func WithForwarder(ctx context.Context, server raft.ServerID) context.Context {
	return context.WithValue(ctx, forwarderKey{}, server)
}

type forwarderKey struct{}

// mayForward refuses a call that was forwarded by a server that is no member any more.
func (s *server) mayForward(ctx context.Context) error {
	server, forwarded := ctx.Value(forwarderKey{}).(raft.ServerID)
	if !forwarded || s.isMember(server) {
		return nil
	}
	return fmt.Errorf("forwarded by %s: %w: %w", server, ErrNotMember, &peer.Refusal{Code: peer.NotMember})
}
