package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/cluster"
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
	r := addRequest{Actor(ctx), id, addr}
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
	r := removeServerRequest{Actor(ctx), id, o}
	tries, known := 0, false
	return n.whenLed(ctx, func() error {
		tries, known = tries+1, known || n.member(id)
		if id == n.cfg.ID && len(servers(n.raft)) > 0 && !n.member(id) {
			return nil // the log has told us, whatever became of the leader's answer
		}
		err := n.keys.RemoveServer(ctx, id, o)
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
	if n.net == nil {
		return errors.New("add server: this server is alone, without a port")
	}
	return n.keys.AddServer(ctx, r.ID, raft.ServerAddress(r.Addr), AddServerOptions{
		MayMove: func(ctx context.Context, member raft.Server) error { return n.mayMove(ctx, member, r.Addr) },
	})
}

// mayMove refuses an address of the leader's at which it does not answer, and one of a member that still
// answers at its old address.
func (n *Node) mayMove(ctx context.Context, member raft.Server, addr string) error {
	if member.ID != n.cfg.ID {
		return n.net.checkGone(ctx, member, addr)
	}
	if addr != n.cfg.Addr {
		return fmt.Errorf("add server %s: it is the leader, and answers at %s", member.ID, n.cfg.Addr)
	}
	return nil
}

// promote gives servers a vote, on the leader, once they hold every key that is needed. The error is
// that of those for which it has failed, and need not be tried again before something changes.
func (n *Node) promote(ctx context.Context) error {
	if n.keys.Leading() != nil {
		return nil
	}
	var errs []error
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			continue
		}
		err := n.keys.PromoteServer(ctx, s.ID)
		if err != nil && !errors.Is(err, ErrKeyMissing) {
			n.log.Warn("promote", "id", s.ID, "error", err)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
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
