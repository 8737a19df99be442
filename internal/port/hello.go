package port

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// Paths of the calls that a server may make which is no member.
const (
	pathHello = "/node/hello" // what a server is
	pathJoin  = "/node/join"  // to be added to the configuration
	pathProof = "/node/proof" // of the cluster, to a server that has a join token
)

// helloTimeout is for one hello to one server.
const helloTimeout = 2 * time.Second

// HelloAnswer is what a server says of itself. A server asks for it that has no raft log, or has moved.
type HelloAnswer struct {
	Bootstrapped bool   `json:"founded"`                             // its cluster has committed something
	Leader       string `json:"leader,omitempty" bound:"bytes=1024"` // the address of the leader it knows of
	Addr         string `json:"addr,omitempty" bound:"bytes=1024"`   // its own, by its configuration

	LeaderID string `json:"leaderID,omitempty" bound:"bytes=255"` // which server leads; older builds do not say

	// InitialServers are those that the cluster is to be bootstrapped with, each as id@address, sorted, from a server
	// that knows of no bootstrapped one. Older builds do not say.
	InitialServers []string `json:"founders,omitempty" bound:"elements=1024,bytes=2048"`
	Logged         bool     `json:"logged,omitempty"` // they are in its raft log. Older builds do not say

	// Commit is its raft's commit index, if it knows of no configuration that is not committed yet, and Member whether the
	// server that asks is in its configuration. Older builds do not say.
	Commit uint64 `json:"commit,omitempty"`
	Member bool   `json:"member,omitempty"`
}

// movedHello is the body of a hello from a member that is not where the others look for it. A hello has no body, or this one,
// or that of a server which is to bootstrap a cluster. A build that does not know it does not look at it.
type movedHello struct {
	Addr string `json:"addr" bound:"bytes=1024"`
}

var (
	helloType      = bounded.For[HelloAnswer](peer.MaxMessage)
	movedHelloType = bounded.For[movedHello](peer.MaxMessage)
)

// Hello asks a server what it is, once.
func (p *Port) Hello(ctx context.Context, c Candidate, body []byte) (a HelloAnswer, err error) {
	short, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	b, err := p.CallAt(short, c, pathHello, body)
	if err != nil {
		p.cfg.Logger.Debug("got no answer to a hello", "addr", c.Addr, "error", err)
	}
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return a, fmt.Errorf("no answer in %v: is the machine down, or does a firewall drop what is sent? %w", helloTimeout, err)
	}
	if err != nil {
		return a, err
	}
	if a, err = helloType.DecodeKnown(b); err != nil {
		return a, fmt.Errorf("hello of %s: the answer: %w", c.Addr, err)
	}
	return a, nil
}

// HelloOf asks a server what it is, until it knows that itself or ctx ends.
func HelloOf(ctx context.Context, client *peer.Client, id raft.ServerID, addr string) (a HelloAnswer, err error) {
	for {
		b, err := client.Call(ctx, string(id), addr, pathHello, nil)
		if err == nil {
			return helloType.DecodeKnown(b)
		}
		if !IsRefusal(err, peer.NotReady) {
			return a, err
		}
		select {
		case <-time.After(joinRetry):
		case <-ctx.Done():
			return a, err
		}
	}
}

// serveHello answers a hello. Whether this server belongs to a cluster that works already is told by its log, which
// then has more than the configuration that it was bootstrapped with. While the server reads its disk it does not
// know, and says so.
func (p *Port) serveHello(_ context.Context, from raft.ServerID, body []byte) ([]byte, error) {
	p.noteMoved(from, body)
	var a HelloAnswer
	switch {
	case p.Running():
		r := p.raft.Load()
		addr, leader := r.LeaderWithID()
		a = HelloAnswer{Bootstrapped: r.LastIndex() > 1, Leader: string(addr), Addr: p.cfg.Addr, LeaderID: string(leader)}
		if of := p.standingOf(from); a.Bootstrapped {
			a.Commit, a.Member = of.commit, of.member
		}
		if !a.Bootstrapped {
			a.InitialServers, a.Logged = Texts(p.Members()), true
		}
	case p.cfg.Fresh != nil:
		initial, fresh := p.cfg.Fresh(from, body)
		if !fresh {
			return nil, &peer.Refusal{Code: peer.NotReady}
		}
		a.InitialServers = initial
	case p.joining.Load(): // it has no log
	default:
		return nil, &peer.Refusal{Code: peer.NotReady}
	}
	return json.Marshal(a)
}

// Texts returns servers in the form in which lists of them are compared: each as Candidate.String, sorted.
func Texts(servers []raft.Server) (all []string) {
	for _, s := range servers {
		all = append(all, Candidate{string(s.ID), string(s.Address)}.String())
	}
	slices.Sort(all)
	return all
}

// CheckGone refuses to have a member that is alive replaced by one at another address: somebody has started a second
// server with its certificate. It may be the member itself, which is at the new address and can still be reached at
// the old one. The error matches ErrIDInUse.
func (p *Port) CheckGone(ctx context.Context, member raft.Server, addr raft.ServerAddress) error {
	a, err := p.Hello(ctx, Candidate{string(member.ID), string(member.Address)}, nil)
	return idInUse(member, string(addr), a, err)
}
