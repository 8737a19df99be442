package local

// What every part of a Keyring knows: this server, its raft, its keystore, the other servers.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Config is what a Server is made of. Nothing may be nil but Call.
type Config struct {
	ID     raft.ServerID
	Raft   *raft.Raft
	FSM    *fsm.Machine
	Store  *keystore.Store
	KEKs   *kek.Set
	Logger hclog.Logger
	Tokens plan.Tokens      // how long tokens live, and how far clocks may be apart
	Clock  func() time.Time // the wall clock
	// Policies are the settings that have to be the same on all servers, as text, by name.
	Policies map[string]string
	// Call carries a request to another server, and returns its answer. Nil means that there are no other servers.
	Call func(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error)
}

// Server is what every part of a Keyring knows: who this server is, what raft has told it, what it holds, and
// which servers it can ask. It is the same from Open to Close.
type Server struct {
	Config
	Peers    peer.Calls // what this server asks the others
	Patient  peer.Calls // the same, for as long as its context lets it
	ToLeader peer.Calls // what the leader answers only after most of the voters have confirmed that it leads
	Gate     gate.Gate  // of the calls that may block
	openedAt time.Time
	asking   Batches // about who holds which keys

	Term    atomic.Uint64 // the term whose barrier this leader has applied
	Barrier atomic.Uint64 // what had been applied then
}

// NewServer returns this server, from now on.
func NewServer(c Config) *Server {
	s := &Server{Config: c, openedAt: time.Now(), asking: Batches{First: askFirst, Most: askAtOnce}}
	s.Peers = peer.Calls{Self: string(c.ID), Send: s.send}
	s.Patient = peer.Calls{Self: string(c.ID), Send: s.sendPatiently}
	s.ToLeader = peer.Calls{Self: string(c.ID), Send: s.sendToLeader}
	return s
}

// Leads reports whether this server is the leader of that term, as far as it knows: a
// leader that was cut off knows within the leader lease.
func (s *Server) Leads(term uint64) bool {
	return s.Raft.State() == raft.Leader && s.Raft.CurrentTerm() == term
}

// Leading is nil on a leader that has applied the barrier of its term.
func (s *Server) Leading() error {
	switch {
	case s.Gate.Err() != nil:
		return s.Gate.Err()
	case s.Raft.State() != raft.Leader:
		return s.FSM.NotLeader(s.Raft)
	case !s.Leads(s.Term.Load()):
		return fsm.ErrNotReady
	}
	return s.FSM.Fed(s.Raft)
}

// Silence is how long this server has heard from no leader; zero if it leads.
func (s *Server) Silence() time.Duration {
	if s.Raft.State() == raft.Leader { // it steps down when its lease ends
		return 0
	}
	heard := s.Raft.LastContact()
	if heard.Before(s.openedAt) {
		heard = s.openedAt
	}
	return max(0, time.Since(heard))
}

// LostAfter is a time that no election takes: ten seconds, with raft's usual timeouts.
func (s *Server) LostAfter() time.Duration {
	conf := s.Raft.ReloadableConfig()
	return max(10*time.Second, 5*(conf.HeartbeatTimeout+conf.ElectionTimeout))
}

// IsLost reports whether a silence is longer than an election takes.
func (s *Server) IsLost(silence time.Duration) bool { return silence > s.LostAfter() }

// Held tells plan which keys of the ring this server holds.
func (s *Server) Held(ring *meta.Ring) func(meta.KeyID) bool {
	return func(id meta.KeyID) bool { return s.Store.Holds(ring.Key(id)) }
}

// callTimeout is for one request to one server, but see confirmTimeout and Batches.
const callTimeout = plan.Promptly

// send carries a request to another server, for Peers.
func (s *Server) send(ctx context.Context, to string, request []byte) ([]byte, error) {
	return s.sendWithin(ctx, callTimeout, to, request)
}

func (s *Server) sendWithin(ctx context.Context, timeout time.Duration, to string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.sendPatiently(ctx, to, request)
}

func (s *Server) sendPatiently(ctx context.Context, to string, request []byte) ([]byte, error) {
	if s.Call == nil {
		return nil, errors.New("there is no Transport")
	}
	return s.Call(ctx, raft.ServerID(to), request)
}

// sendToLeader carries to the leader what it answers when it was confirmed, for ToLeader. It ends when that
// server no longer leads.
func (s *Server) sendToLeader(ctx context.Context, leader string, request []byte) ([]byte, error) {
	ctx, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end()
	watching.Go(func() { s.whileLeads(ctx, raft.ServerID(leader), end) })
	return s.sendWithin(ctx, confirmTimeout, leader, request)
}

// whileLeads ends what waits for a leader that no longer leads: it may never answer, and this server may
// lead meanwhile.
func (s *Server) whileLeads(ctx context.Context, leader raft.ServerID, end context.CancelFunc) {
	for {
		changed := s.FSM.Changed()
		if _, now := s.Raft.LeaderWithID(); now != leader {
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

// confirmTimeout is for one question to the leader that it answers when it was confirmed: its FSM may have
// much to apply before.
const confirmTimeout = 30 * time.Second

// ServerOf returns a server of the latest raft configuration.
func (s *Server) ServerOf(id raft.ServerID) (raft.Server, bool) {
	all := s.Raft.GetConfiguration().Configuration().Servers
	i := slices.IndexFunc(all, func(s raft.Server) bool { return s.ID == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return all[i], true
}

// IsMember reports whether the server is in the latest raft configuration.
func (s *Server) IsMember(id raft.ServerID) bool {
	_, known := s.ServerOf(id)
	return known
}

// NotMember is the error of what can be done to a member alone. It matches ErrNotMember, and names the members.
func (s *Server) NotMember(what string, id raft.ServerID) error {
	return fmt.Errorf("%s server %.300q: %w: the members are %q", what, id, ErrNotMember, ServerIDs(s.Raft))
}

// WithForwarder says that a server asks, by its certificate, for what is called with the context: see MayForward.
func WithForwarder(ctx context.Context, server raft.ServerID) context.Context {
	return context.WithValue(ctx, forwarderKey{}, server)
}

type forwarderKey struct{}

// MayForward refuses a call that was forwarded by a server that is no member any more.
func (s *Server) MayForward(ctx context.Context) error {
	server, forwarded := ctx.Value(forwarderKey{}).(raft.ServerID)
	if !forwarded || s.IsMember(server) {
		return nil
	}
	return fmt.Errorf("forwarded by %s: %w: %w", server, ErrNotMember, &peer.Refusal{Code: peer.NotMember})
}

// Propose is the one way to raft: the commands in one log entry, all of them or none. It
// returns what Apply answered. An error that matches ErrNotLeader may hide a commit. What
// version 1 of log entries does not have is refused unless every server has it.
func (s *Server) Propose(ctx context.Context, cmds ...meta.Command) error {
	if v := s.FSM.Build().Needs(cmds...); v > 1 {
		if err := s.AllApply(ctx, v); err != nil {
			return err
		}
	}
	return s.FSM.Propose(ctx, s.Raft, cmds)
}

// WasRemoved asks the ring of now: a snapshot may have been restored since something was decided.
func (s *Server) WasRemoved(id meta.KeyID) bool { return s.FSM.Ring().WasRemoved(id) }

// set is m[k] = v, also for a nil map.
func set[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	if m == nil {
		m = map[K]V{}
	}
	m[k] = v
	return m
}

// ServerIDs returns the IDs of the latest raft configuration, in its order.
func ServerIDs(r *raft.Raft) []string {
	var ids []string
	for _, s := range r.GetConfiguration().Configuration().Servers {
		ids = append(ids, string(s.ID))
	}
	return ids
}

// Voters returns those of them that vote.
func Voters(r *raft.Raft) []string {
	return VotersOf(r.GetConfiguration().Configuration().Servers)
}

// VotersOf returns the IDs of those servers that vote.
func VotersOf(servers []raft.Server) []string {
	var ids []string
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}
