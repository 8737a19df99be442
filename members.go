package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// AddServer admits the server of that ID, which is reached at addr, host:port: start it with an empty
// directory and a server of the cluster in Join, as id@host:port, and it gets every key, and then a vote. Without
// AddServer a server needs a JoinToken. One that is a member already, and has moved, gets its new
// address; that too is refused while it answers at the old one, the leader included.
//
// The host is a name or an IP address of one server, so not 0.0.0.0, and the port is from 1 to 65535. An ID of up to
// 255 bytes is taken as it is: case counts, and spaces around it are refused.
//
// It may be called on any server, and again. As long as ctx lets it, it waits for a leader that is
// ready and answers.
func (n *Node) AddServer(ctx context.Context, id raft.ServerID, addr string) error {
	r := addRequest{actorOf(ctx), id, addr}
	if err := r.check(); err != nil {
		return err
	}
	return n.whenLed(ctx, func() error {
		err := n.addServer(ctx, r)
		if errors.Is(err, ErrNotLeader) {
			_, err = n.forwardRequest(ctx, memberTimeout, pathAddServer, r)
		}
		return err
	})
}

// RemoveServerOptions say how to remove a server. The zero value removes it only if no key is at risk.
type RemoveServerOptions struct {
	// Force removes it also if a key is then held by less than a majority of the voters that
	// remain, or nobody can say. It is for servers that will never come back. It can't help where
	// most of the remaining voters are down: see RecoverNode.
	Force bool
}

// RemoveServer takes a server out of the cluster: its connections are closed, and it is given no key
// any more. What it has got it keeps: after a theft, a rotation with RotateOptions.Compromised comes next. Unless
// RemoveServerOptions.Force is set, each key has to be held, asked live, by a majority of the voters
// that remain; else it is refused, with an error that matches ErrNotDurable. A leader that is to be
// removed first hands over. All join tokens end. To come back, the server needs AddServer, or a JoinToken
// that was made after the removal: nothing that it has or had will do.
//
// An ID that is not in the raft configuration, exactly as it is given, is an error that matches ErrNotMember and
// names the members: also one that an earlier call has removed. Within one call an attempt whose answer was lost
// does no harm. A server that removes itself, and has been removed, gets no error.
//
// It may be called on any server. As long as ctx lets it, it waits for a leader that is ready and
// answers.
func (n *Node) RemoveServer(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	r := removeServerRequest{actorOf(ctx), id, o}
	tries, known := 0, false
	return n.whenLed(ctx, func() error {
		tries, known = tries+1, known || n.member(id)
		if id == n.cfg.ID && len(servers(n.raft)) > 0 && !n.member(id) {
			return nil // the log has told us, whatever became of the leader's answer
		}
		err := n.removeServer(ctx, r)
		if errors.Is(err, ErrNotLeader) {
			_, err = n.forwardRequest(ctx, memberTimeout, pathRemoveServer, r)
		}
		if refusal := (*peer.Refusal)(nil); id == n.cfg.ID && errors.As(err, &refusal) && refusal.Code == peer.NotMember {
			return nil
		}
		if known && tries > 1 && errors.Is(err, ErrNotMember) {
			return nil // the attempt before has removed it, and its answer was lost
		}
		return err
	})
}

// Leave takes this server out of the cluster, as RemoveServer does. Afterwards close it, and delete its
// directory: what it goes on with until then is what it had.
func (n *Node) Leave(ctx context.Context) error {
	return n.RemoveServer(ctx, n.cfg.ID, RemoveServerOptions{})
}

// What the leader is asked for, and by whom.
type (
	addRequest struct {
		By   string        `json:",omitempty" bound:"bytes=255"`
		ID   raft.ServerID `bound:"bytes=1024"`
		Addr string        `bound:"bytes=1024"`
	}
	removeServerRequest struct {
		By string        `json:",omitempty" bound:"bytes=255"`
		ID raft.ServerID `bound:"bytes=1024"`
		RemoveServerOptions
	}
)

var (
	addType          = bounded.For[addRequest](peer.MaxMessage)
	removeServerType = bounded.For[removeServerRequest](peer.MaxMessage)
)

func (r addRequest) check() error {
	if err := peer.CheckServerID(string(r.ID)); err != nil {
		return fmt.Errorf("add server: %w", err)
	}
	if err := peer.CheckAddress(r.Addr); err != nil {
		return fmt.Errorf("add server %s: %w", r.ID, err)
	}
	return nil
}

// memberTimeout covers the live question and two changes of the configuration.
const memberTimeout = 10 * time.Second

// addServer is AddServer on the leader.
func (n *Node) addServer(ctx context.Context, r addRequest) error {
	return n.keys.do(ctx, func(ctx context.Context) error { return n.addHere(ctx, r) })
}

func (n *Node) addHere(ctx context.Context, r addRequest) error {
	if n.net == nil {
		return errors.New("add server: this server is alone, without a port")
	}
	if err := n.keys.mayLead(); err != nil {
		return err
	}
	was, known := n.serverOf(r.ID)
	if known && was.Address == raft.ServerAddress(r.Addr) {
		return nil
	}
	if r.ID == n.cfg.ID && r.Addr != n.cfg.Addr {
		return fmt.Errorf("add server %s: it is the leader, and answers at %s", r.ID, n.cfg.Addr)
	}
	if known && r.ID != n.cfg.ID {
		if err := n.net.checkGone(ctx, was, r.Addr); err != nil {
			return err
		}
	}
	return n.keys.alongActivations(ctx, func(ctx context.Context) error {
		is, still := n.serverOf(r.ID)
		if still != known {
			return fmt.Errorf("add server %s: it was added or removed meanwhile", r.ID)
		}
		n.log.Info("server is added, or has another address", "id", r.ID, "addr", r.Addr, "by", r.By)
		return n.setAddress(r.ID, raft.ServerAddress(r.Addr), still && is.Suffrage == raft.Voter)
	})
}

// setAddress adds a server without a vote, or gives a member another address and leaves its vote
// as it is.
func (n *Node) setAddress(id raft.ServerID, addr raft.ServerAddress, votes bool) error {
	change := n.raft.AddNonvoter
	if votes {
		change = n.raft.AddVoter
	}
	if err := change(id, addr, 0, proposeTimeout).Error(); err != nil {
		return outcome(n.raft, err)
	}
	return nil
}

// removeServer is RemoveServer on the leader.
func (n *Node) removeServer(ctx context.Context, r removeServerRequest) error {
	return n.keys.do(ctx, func(ctx context.Context) error { return n.removeHere(ctx, r) })
}

func (n *Node) removeHere(ctx context.Context, r removeServerRequest) error {
	resigns := false
	err := n.keys.alongActivations(ctx, func(ctx context.Context) error {
		if !n.member(r.ID) {
			return fmt.Errorf("remove server %.300q: %w: the members are %q", r.ID, ErrNotMember, servers(n.raft))
		}
		if resigns = r.ID == n.cfg.ID; resigns {
			return n.mayExpel(ctx, r.ID, r.Force)
		}
		n.log.Info("server is removed", "id", r.ID, "forced", r.Force, "by", r.By)
		return n.expel(ctx, r.ID, r.Force)
	})
	if err != nil || !resigns {
		return err
	}
	n.log.Info("leader is to be removed: it hands over", "by", r.By)
	if err := n.raft.LeadershipTransfer().Error(); err != nil {
		return fmt.Errorf("remove server %s, the leader: hand over: %w", r.ID, err)
	}
	return notLeader(n.raft) // the next one goes on
}

// mayExpel reports whether the configuration without the server puts no key at risk.
func (n *Node) mayExpel(ctx context.Context, id raft.ServerID, force bool) error {
	s, known := n.serverOf(id)
	if !known || s.Suffrage != raft.Voter || force {
		return nil
	}
	var remain []raft.ServerID
	for _, v := range currentVoters(n.raft) {
		if v != string(id) {
			remain = append(remain, raft.ServerID(v))
		}
	}
	if len(remain) == 0 {
		return fmt.Errorf("remove server %s: it is the last voter", id)
	}
	return n.keys.CheckMembers(ctx, remain)
}

// expel takes a server out of the configuration if it is in it.
func (n *Node) expel(ctx context.Context, id raft.ServerID, force bool) error {
	if err := n.mayExpel(ctx, id, force); err != nil || !n.member(id) {
		return err
	}
	// First: a crash in between leaves a member without tokens, never a removed server that knows one.
	if err := n.endAllJoinTokens(ctx); err != nil {
		return fmt.Errorf("remove server %s: end the join tokens: %w", id, err)
	}
	if err := n.raft.RemoveServer(id, 0, proposeTimeout).Error(); err != nil {
		return outcome(n.raft, err)
	}
	return n.forget(ctx, id)
}

// startAnew makes a server that has lost its raft log a member that has no vote and holds nothing: it
// must not come back as the voter that it was, having forgotten its votes. A crash after any line
// leaves it a member, which asks again.
func (n *Node) startAnew(ctx context.Context, s raft.Server, addr raft.ServerAddress) error {
	if s.Suffrage == raft.Voter {
		if err := n.mayExpel(ctx, s.ID, false); err != nil {
			return err
		}
		if err := n.raft.DemoteVoter(s.ID, 0, proposeTimeout).Error(); err != nil {
			return outcome(n.raft, err)
		}
	}
	if err := n.forget(ctx, s.ID); err != nil {
		return err
	}
	return n.setAddress(s.ID, addr, false)
}

// forget drops what is recorded of a server's keystore: it comes back with another, and would get a
// vote before it holds a key.
func (n *Node) forget(ctx context.Context, id raft.ServerID) error {
	if _, known := n.keys.fsm.ring.Load().Keystore(string(id)); !known {
		return nil
	}
	return n.keys.propose(ctx, meta.Command{Forget: &meta.Forget{Servers: []string{string(id)}}})
}

// serverOf returns a server of the latest raft configuration.
func (n *Node) serverOf(id raft.ServerID) (raft.Server, bool) {
	all := n.raft.GetConfiguration().Configuration().Servers
	i := slices.IndexFunc(all, func(s raft.Server) bool { return s.ID == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return all[i], true
}

// member reports whether the server is in the latest raft configuration.
func (n *Node) member(id raft.ServerID) bool {
	_, known := n.serverOf(id)
	return known
}

// checkGone refuses to have a member that is alive replaced or moved: somebody has started a second
// server with its certificate. It may be the member itself, which is at the new address and can still be
// reached at the old one.
func (w *network) checkGone(ctx context.Context, s raft.Server, addr string) error {
	g, err := w.greet(ctx, cluster.Candidate{ID: string(s.ID), Addr: string(s.Address)}, nil)
	if refusal := (*peer.Refusal)(nil); err == nil && g.Founded && g.Addr != addr || errors.As(err, &refusal) {
		return fmt.Errorf("server %s: it is a member already, and answers at %s", s.ID, s.Address)
	}
	return nil
}
