package keyring

// What every part of a Keyring knows: this server, its raft, its keystore, the other servers and their builds.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// server is what every part of a Keyring knows: who this server is, what raft has told it, what it holds, and
// which servers it can ask. It is the same from Open to Close.
type server struct {
	cfg      Config
	raft     *raft.Raft
	fsm      *fsm.Machine
	store    *keystore.Store
	keks     *kek.Set
	peers    peer.Calls       // what this server asks the others
	toLeader peer.Calls       // what the leader answers only after most of the voters have confirmed that it leads
	gate     gate.Gate        // of the calls that may block
	clock    func() time.Time // the wall clock
	openedAt time.Time

	term    atomic.Uint64 // the term whose barrier this leader has applied
	barrier atomic.Uint64 // what had been applied then
}

// leads reports whether this server is the leader of that term, as far as it knows: a
// leader that was cut off knows within the leader lease.
func (s *server) leads(term uint64) bool {
	return s.raft.State() == raft.Leader && s.raft.CurrentTerm() == term
}

// leading is nil on a leader that has applied the barrier of its term.
func (s *server) leading() error {
	switch {
	case s.gate.Err() != nil:
		return s.gate.Err()
	case s.raft.State() != raft.Leader:
		return s.fsm.NotLeader(s.raft)
	case !s.leads(s.term.Load()):
		return ErrNotReady
	}
	return s.fsm.Fed(s.raft)
}

// silence is how long this server has heard from no leader; zero if it leads.
func (s *server) silence() time.Duration {
	if s.raft.State() == raft.Leader { // it steps down when its lease ends
		return 0
	}
	heard := s.raft.LastContact()
	if heard.Before(s.openedAt) {
		heard = s.openedAt
	}
	return max(0, time.Since(heard))
}

// lostAfter is a time that no election takes: ten seconds, with raft's usual timeouts.
func (s *server) lostAfter() time.Duration {
	conf := s.raft.ReloadableConfig()
	return max(10*time.Second, 5*(conf.HeartbeatTimeout+conf.ElectionTimeout))
}

// isLost reports whether a silence is longer than an election takes.
func (s *server) isLost(silence time.Duration) bool { return silence > s.lostAfter() }

// held tells plan which keys of the ring this server holds.
func (s *server) held(ring *meta.Ring) func(KeyID) bool {
	return func(id KeyID) bool { return s.store.Holds(ring.Key(id)) }
}

// now is the time of the wall clock as the ring wants it. It is for times in the ring, in tokens and in files, and
// for what is compared with them. Waits in memory go by the monotonic clock, which nobody can set: mono.Now.
func (s *server) now() time.Time { return s.clock().UTC().Round(0) }

// lookAgain is how long a loop waits, at most, for a time of the wall clock: that may be set, and the machine may
// sleep, without a timer noticing.
const lookAgain = 10 * time.Minute

// whenShown is when the wall clock will show a time, if nobody sets it, but not later than it is to be looked at
// again. Zero is never.
func (s *server) whenShown(at time.Time) mono.Time {
	if at.IsZero() {
		return 0
	}
	return mono.Now().Add(min(lookAgain, at.Sub(s.now())))
}

// unheardPatience is how long a server that follows may not have heard of what the leader has told it.
const unheardPatience = time.Minute

// awaitRing waits until the ring is as wanted, or can't be any more. While known is false it does so for
// unheardPatience.
func (s *server) awaitRing(ctx context.Context, known *bool, wanted func(*meta.Ring) (bool, error)) error {
	ctx, done, err := s.gate.Enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	unheard := time.NewTimer(unheardPatience)
	defer unheard.Stop()
	for {
		changed := s.fsm.Changed()
		if done, err := wanted(s.fsm.Ring()); done || err != nil {
			return err
		}
		late := unheard.C
		if *known {
			late = nil
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("the leader has done its part, and this server has not heard of it in %v", unheardPatience)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// idle is how long a loop waits when no time is known: a safety net, since changes wake it.
const idle = time.Hour

// again is how soon a leader tries again what raft did not take.
const again = 250 * time.Millisecond

// errRestored says that what a call waits for is gone.
var errRestored = errors.New("raft has restored a snapshot that does not have it")

// sleep waits until a moment, or returns why ctx ended first.
func sleep(ctx context.Context, until mono.Time) error {
	timer := time.NewTimer(mono.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// callTimeout is for one request to one server, but see confirmTimeout.
const callTimeout = 2 * time.Second

// send carries a request to another server, for server.peers.
func (s *server) send(ctx context.Context, to string, request []byte) ([]byte, error) {
	return s.sendWithin(ctx, callTimeout, to, request)
}

func (s *server) sendWithin(ctx context.Context, timeout time.Duration, to string, request []byte) ([]byte, error) {
	if s.cfg.Transport == nil {
		return nil, errors.New("there is no Transport")
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.cfg.Transport.Call(ctx, raft.ServerID(to), request)
}

// sendToLeader carries to the leader what it answers when it was confirmed, for server.toLeader. It ends when that
// server no longer leads.
func (s *server) sendToLeader(ctx context.Context, leader string, request []byte) ([]byte, error) {
	ctx, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end()
	watching.Go(func() { s.whileLeads(ctx, raft.ServerID(leader), end) })
	return s.sendWithin(ctx, confirmTimeout, leader, request)
}

// whileLeads ends what waits for a leader that no longer leads: it may never answer, and this server may
// lead meanwhile.
func (s *server) whileLeads(ctx context.Context, leader raft.ServerID, end context.CancelFunc) {
	for {
		changed := s.fsm.Changed()
		if _, now := s.raft.LeaderWithID(); now != leader {
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

// hello says what this server is, and which keys it has that the ring does not know.
func (s *server) hello() *peer.Hello {
	h := &peer.Hello{Build: s.fsm.Build().Version, Keystore: s.store.ID()}
	ring := s.fsm.Ring()
	orphans, waiting := s.store.Unknown(ring, peer.MaxOrphans)
	h.Orphans, h.Waiting = orphans, peerWaiting(waiting)
	return h
}

// waiting are the files of keys that the ring does not know and that this server can't open for now: their KEKs
// do not answer, or are not configured, or the disk does not give them. It is nil if there are none.
func (s *server) waiting(ring *meta.Ring) *peer.Waiting {
	_, w := s.store.Unknown(ring, 0)
	return peerWaiting(w)
}

// peerWaiting is what other servers are told of files that wait.
func peerWaiting(w keystore.Waiting) *peer.Waiting {
	if w.Files == 0 {
		return nil
	}
	return &peer.Waiting{Files: w.Files, Of: w.Of, KEKs: w.KEKs[:min(len(w.KEKs), peer.MaxWaiting)]}
}

// propose is the one way to raft: the commands in one log entry, all of them or none. It
// returns what Apply answered. An error that matches ErrNotLeader may hide a commit. What
// version 1 of log entries does not have is refused unless every server has it.
func (s *server) propose(ctx context.Context, cmds ...meta.Command) error {
	if v := s.fsm.Build().Needs(cmds...); v > 1 {
		if err := s.allApply(ctx, v); err != nil {
			return err
		}
	}
	return s.fsm.Propose(ctx, s.raft, cmds)
}

// wasRemoved asks the ring of now: a snapshot may have been restored since something was decided.
func (s *server) wasRemoved(id KeyID) bool { return s.fsm.Ring().WasRemoved(id) }

// set is m[k] = v, also for a nil map.
func set[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	if m == nil {
		m = map[K]V{}
	}
	m[k] = v
	return m
}

// servers returns the IDs of the latest raft configuration, in its order.
func servers(r *raft.Raft) []string {
	var ids []string
	for _, s := range r.GetConfiguration().Configuration().Servers {
		ids = append(ids, string(s.ID))
	}
	return ids
}

// currentVoters returns those of them that vote.
func currentVoters(r *raft.Raft) []string {
	return votersOf(r.GetConfiguration().Configuration().Servers)
}

func votersOf(servers []raft.Server) []string {
	var ids []string
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}

// allApply returns no error if every server of the raft configuration says, now, that it applies
// version v of log entries. Nothing is remembered: a server may come back with an older build. One
// that joins afterwards is not asked.
func (s *server) allApply(ctx context.Context, v int) error {
	asked := servers(s.raft)
	if behind := behind(asked, s.hellos(ctx, asked), v); len(behind) > 0 {
		return behindError{v, behind}
	}
	if !slices.Equal(asked, servers(s.raft)) {
		return errors.New("the raft configuration has changed while its servers were asked for their builds")
	}
	return nil
}

// hellos asks servers what they are. Those that do not answer are not among the answers.
func (s *server) hellos(ctx context.Context, servers []string) map[string]*peer.Hello {
	answers := s.helloEach(ctx, servers)
	maps.DeleteFunc(answers, func(_ string, h *peer.Hello) bool { return h == nil })
	return answers
}

// helloEach asks servers what they are. Those that are not ready to say so have nil for an answer, and those
// that do not answer have none.
func (s *server) helloEach(ctx context.Context, servers []string) map[string]*peer.Hello {
	return peer.All(ctx, servers, func(ctx context.Context, server string) (*peer.Hello, error) {
		if server == string(s.cfg.ID) {
			return s.hello(), nil
		}
		h, err := s.peers.HelloWaiting(ctx, server)
		if peer.Refused(err, peer.NotReady) {
			return nil, nil
		}
		return h, err
	}, nil)
}

// behind returns the servers that have not said that they apply version v, each with what it did.
func behind(servers []string, answers map[string]*peer.Hello, v int) map[raft.ServerID]string {
	out := map[raft.ServerID]string{}
	for _, s := range servers {
		switch a := answers[s]; {
		case a == nil:
			out[raft.ServerID(s)] = silent
		case a.Build < v:
			out[raft.ServerID(s)] = fmt.Sprintf("applies log entries up to version %d, and not version %d", a.Build, v)
		}
	}
	return out
}

// behindError says that some servers are not known to apply what was to be proposed.
type behindError struct {
	version int
	servers map[raft.ServerID]string // and why
}

func (e behindError) Error() string {
	var all []string
	for _, s := range slices.Sorted(maps.Keys(e.servers)) {
		all = append(all, string(s)+" "+e.servers[s])
	}
	return fmt.Sprintf("not every server applies version %d of log entries: %s", e.version, strings.Join(all, "; "))
}

// silent is why a server is not known to apply anything.
const silent = "has not answered"

// allSilent reports whether none of them has said that it does not apply the version.
func (e behindError) allSilent() bool {
	for _, why := range e.servers {
		if why != silent {
			return false
		}
	}
	return true
}
