package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
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

// helloAnswer is what a server says of itself. A server asks for it that has no raft log, or has moved.
type helloAnswer struct {
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

// A hello has no body, or one of these. A build that does not know them does not look at it.
type (
	// bootstrapHello comes from a server that is to bootstrap a cluster.
	bootstrapHello struct {
		InitialServers []string `json:"founders" bound:"elements=1024,bytes=2048"`
	}
	// movedHello comes from a member that is not where the others look for it.
	movedHello struct {
		Addr string `json:"addr" bound:"bytes=1024"`
	}
)

var (
	helloAnswerType    = bounded.For[helloAnswer](peer.MaxMessage)
	bootstrapHelloType = bounded.For[bootstrapHello](peer.MaxMessage)
	movedHelloType     = bounded.For[movedHello](peer.MaxMessage)
)

// hello asks a server what it is.
func (s *Server) hello(ctx context.Context, c port.Candidate, body []byte) (a helloAnswer, err error) {
	short, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	b, err := s.port.CallAt(short, c, pathHello, body)
	if err != nil {
		s.cfg.Logger.Debug("hello", "addr", c.Addr, "error", err)
	}
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		return a, fmt.Errorf("no answer in %v: is the machine down, or does a firewall drop what is sent? %w", helloTimeout, err)
	}
	if err != nil {
		return a, err
	}
	if a, err = helloAnswerType.DecodeKnown(b); err != nil {
		return a, fmt.Errorf("hello of %s: the answer: %w", c.Addr, err)
	}
	return a, nil
}

// serveHello answers a hello. Whether this server belongs to a cluster that works already is told by its log, which
// then has more than the configuration that it was bootstrapped with. While the server reads its disk it does not
// know, and says so.
func (s *Server) serveHello(_ context.Context, from raft.ServerID, body []byte) ([]byte, error) {
	s.noteMoved(from, body)
	s.noteInitialServers(from, body)
	var a helloAnswer
	switch {
	case s.port.Running():
		addr, leader := s.raft.LeaderWithID()
		a = helloAnswer{Bootstrapped: s.raft.LastIndex() > 1, Leader: string(addr), Addr: s.cfg.Addr, LeaderID: string(leader)}
		if of := s.standingOf(from); a.Bootstrapped {
			a.Commit, a.Member = of.commit, of.member
		}
		if !a.Bootstrapped {
			a.InitialServers, a.Logged = candidateTexts(s.port.Members()), true
		}
	case !s.fresh.Load():
		return nil, &peer.Refusal{Code: peer.NotReady}
	default:
		a.InitialServers = candidateTexts(s.cfg.initialServers().Servers)
	}
	return json.Marshal(a)
}

// candidateTexts returns servers in the form in which lists of them are compared.
func candidateTexts(servers []raft.Server) (all []string) {
	for _, s := range servers {
		all = append(all, port.Candidate{ID: string(s.ID), Addr: string(s.Address)}.String())
	}
	slices.Sort(all)
	return all
}

// CheckGone refuses to have a member that is alive replaced by one at another address: somebody has started a second
// server with its certificate. It may be the member itself, which is at the new address and can still be reached at
// the old one. The error matches ErrIDInUse.
func (s *Server) CheckGone(ctx context.Context, member raft.Server, addr raft.ServerAddress) error {
	a, err := s.hello(ctx, port.Candidate{ID: string(member.ID), Addr: string(member.Address)}, nil)
	return idInUse(member, string(addr), a, err)
}
