package port

// What a Port does by itself on the leader, and where this server has moved.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// PathPlace is the path of the call with which a server tells the leader its address.
const PathPlace = "/node/add-server"

// placeRequest is its body, after a zero byte: older builds know it as that of AddServer.
type placeRequest struct {
	ID   raft.ServerID `bound:"bytes=1024"`
	Addr string        `bound:"bytes=1024"`
}

var placeType = bounded.For[placeRequest](peer.MaxMessage)

// placeTimeout covers the live question and two changes of the configuration.
const placeTimeout = 10 * time.Second

// onChange calls do now and after each change of the keyring. If do fails, onChange calls it again after a pause, which
// grows with each failure, up to most. It returns when ctx ends, or the keyring is closed.
func (p *Port) onChange(ctx context.Context, most time.Duration, do func(context.Context) error) {
	for tries := 0; ; {
		changed := p.host.Changed()
		var retry <-chan time.Time
		switch err := do(ctx); {
		case errors.Is(err, fsm.ErrClosed):
			return
		case err == nil:
			tries = 0
		default: // trying has changed something by itself: that is no reason to try again
			changed, retry = nil, time.After(min(most, plan.Backoff(tries+3, rand.Float64())))
			tries++
		}
		select {
		case <-changed:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// promote gives servers a vote, on the leader, once they hold every key that is needed. The error is that of those for
// which it is to be tried again.
func (p *Port) promote(ctx context.Context) error {
	if p.host.Leading() != nil {
		return nil
	}
	if err := p.host.PromoteServers(ctx); !errors.Is(err, fsm.ErrNotLeader) {
		return err
	}
	return nil // the next leader does it
}

// keepAddress has the raft configuration say where this server is, which may have moved since it ran last.
func (p *Port) keepAddress(ctx context.Context) error {
	s, known := p.Member(p.cfg.ID)
	if !known {
		return nil
	}
	if string(s.Address) == p.cfg.Addr {
		if p.Leader() != "" { // else another server may have the place: see watchRemoval
			p.noteOwnClaim(nil)
		}
		return nil
	}
	err := p.tellAddress(ctx)
	if err != nil {
		p.cfg.Logger.Warn("could not tell the leader the new address of this server", "is", p.cfg.Addr, "was", s.Address, "error", err)
	}
	return err
}

// tellAddress has the leader write down where this server is. If this server knows of no leader it tells all others,
// so that one of them can be elected which does not find this server otherwise, and asks the leader that they name. It notes whether
// the leader refuses, for another server has this ID.
func (p *Port) tellAddress(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, placeTimeout)
	defer cancel()
	err := p.askForPlace(ctx, cancel)
	p.noteOwnClaim(err)
	return err
}

func (p *Port) askForPlace(ctx context.Context, cancel context.CancelFunc) error {
	leader := p.Leader()
	if leader == p.cfg.ID {
		return p.place(ctx, p.cfg.ID, p.cfg.Addr)
	}
	body, err := json.Marshal(placeRequest{p.cfg.ID, p.cfg.Addr})
	if err != nil {
		return err
	}
	body = append([]byte{0}, body...)
	if leader != "" {
		var watch sync.WaitGroup
		watch.Go(func() { p.WhileLeads(ctx, leader, cancel) })
		defer watch.Wait()
		defer cancel()
		return p.placed(p.CallMember(ctx, leader, PathPlace, body))
	}
	named, found, err := p.FindLeader(ctx)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%w: none of the other servers that answer knows one", local.ErrNoLeader)
	}
	return p.placed(p.CallMemberAt(ctx, named, PathPlace, body))
}

func (p *Port) placed(b []byte, err error) error {
	if err == nil {
		_, err = p.cfg.Errors.DecodeReply(b)
	}
	return err
}

// WhileLeads ends a call to a leader that no longer leads: it may never answer, and this server may lead meanwhile.
func (p *Port) WhileLeads(ctx context.Context, leader raft.ServerID, end context.CancelFunc) {
	for {
		changed := p.host.Changed()
		if p.Leader() != leader {
			end()
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// ServePlace answers a member that says where it is, on the leader: a server can say so for itself alone.
func (p *Port) ServePlace(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
	if len(body) == 0 || body[0] != 0 {
		return nil, &peer.Refusal{Code: peer.BadRequest}
	}
	r, err := placeType.DecodeKnown(body[1:])
	if err != nil || r.ID != from || peer.CheckServerID(string(r.ID)) != nil || peer.CheckAddress(r.Addr) != nil {
		return nil, &peer.Refusal{Code: peer.BadRequest}
	}
	err = p.place(local.WithForwarder(ctx, from), r.ID, r.Addr)
	p.NoteClaim(r.ID, r.Addr, err)
	return p.cfg.Errors.EncodeReply(nil, err), nil
}

// place has the raft configuration say where a member is.
func (p *Port) place(ctx context.Context, id raft.ServerID, addr string) error {
	return p.host.Move(ctx, id, raft.ServerAddress(addr), func(ctx context.Context, member raft.Server) error { return p.MayMove(ctx, member, addr) })
}

// MayMove refuses an address of the leader's at which it does not answer, and one of a member that still answers at its old
// address.
func (p *Port) MayMove(ctx context.Context, member raft.Server, addr string) error {
	if member.ID != p.cfg.ID {
		return p.CheckGone(ctx, member, raft.ServerAddress(addr))
	}
	if addr != p.cfg.Addr {
		return fmt.Errorf("add server %s: %w: it is the leader, and answers at %s", member.ID, ErrIDInUse, p.cfg.Addr)
	}
	return nil
}
