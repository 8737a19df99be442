package local

// What servers are: their builds, and the keys that the ring does not know.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Hello says what this server is, and which keys it has that the ring does not know.
func (s *Server) Hello() *peer.Hello { return s.hello(nil) }

// HelloOrphan is Hello of which Orphans or Unproven has that key alone, or neither.
func (s *Server) HelloOrphan(id meta.KeyID) *peer.Hello { return s.hello([]meta.KeyID{id}) }

// hello is Hello, of these keys alone if there are any.
func (s *Server) hello(only []meta.KeyID) *peer.Hello {
	h := &peer.Hello{Build: s.FSM.Build().Version, Keystore: s.Store.ID()}
	unknown, waiting := s.Store.Unknown(s.FSM.Ring(), peer.MaxOrphans, only...)
	h.Orphans, h.Unproven, h.Waiting = unknown.Orphans, unknown.Unproven, peerWaiting(waiting)
	return h
}

// Waiting are the files of keys that the ring does not know and that this server can't open for now: their KEKs
// do not answer, or are not configured, or the disk does not give them. It is nil if there are none.
func (s *Server) Waiting(ring *meta.Ring) *peer.Waiting {
	_, w := s.Store.Unknown(ring, 0)
	return peerWaiting(w)
}

// peerWaiting is what other servers are told of files that wait.
func peerWaiting(w keystore.Waiting) *peer.Waiting {
	if w.Files == 0 {
		return nil
	}
	return &peer.Waiting{Files: w.Files, Of: w.Of, KEKs: w.KEKs[:min(len(w.KEKs), peer.MaxWaiting)]}
}

// AllApply returns no error if every server of the raft configuration says, now, that it applies
// version v of log entries. Nothing is remembered: a server may come back with an older build. One
// that joins afterwards is not asked.
func (s *Server) AllApply(ctx context.Context, v int) error {
	asked := ServerIDs(s.Raft)
	if behind := behind(asked, s.Hellos(ctx, asked), v); len(behind) > 0 {
		return BehindError{v, behind}
	}
	if !slices.Equal(asked, ServerIDs(s.Raft)) {
		return errors.New("the raft configuration has changed while its servers were asked for their builds")
	}
	return nil
}

// Hellos asks servers what they are. Those that do not answer are not among the answers.
func (s *Server) Hellos(ctx context.Context, servers []string) map[string]*peer.Hello {
	answers := s.HelloEach(ctx, servers)
	maps.DeleteFunc(answers, func(_ string, h *peer.Hello) bool { return h == nil })
	return answers
}

// HelloEach asks servers what they are. Those that are not ready to say so have nil for an answer, and those
// that do not answer have none.
func (s *Server) HelloEach(ctx context.Context, servers []string) map[string]*peer.Hello {
	return peer.All(ctx, servers, func(ctx context.Context, server string) (*peer.Hello, error) {
		if server == string(s.ID) {
			return s.Hello(), nil
		}
		h, err := s.Peers.HelloWaiting(ctx, server)
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
			out[raft.ServerID(s)] = NoAnswer
		case a.Build < v:
			out[raft.ServerID(s)] = fmt.Sprintf("applies log entries up to version %d, but not version %d", a.Build, v)
		}
	}
	return out
}

// BehindError says that some servers are not known to apply what was to be proposed.
type BehindError struct {
	version int
	Servers map[raft.ServerID]string // and why
}

// Error names the servers, and says why.
func (e BehindError) Error() string {
	var all []string
	for _, s := range slices.Sorted(maps.Keys(e.Servers)) {
		all = append(all, string(s)+" "+e.Servers[s])
	}
	return fmt.Sprintf("not every server applies version %d of log entries: %s", e.version, strings.Join(all, "; "))
}

// NoAnswer is why a server is not known to apply anything.
const NoAnswer = "has not answered"

// AllSilent reports whether none of them has said that it does not apply the version.
func (e BehindError) AllSilent() bool {
	for _, why := range e.Servers {
		if why != NoAnswer {
			return false
		}
	}
	return true
}

// ServeHello tells of keys that the ring does not know, and of files that wait, to nobody but the leader, who
// asks for them. Before this server has heard who leads it does not answer: none may be left out. A leader of
// an older build can't be told that files wait: it is to ask again until it need not be, or has made a key.
func (s *Server) ServeHello(from string, q peer.HelloRequest) (*peer.Hello, error) {
	var only []meta.KeyID
	if q.Orphan != (peer.ID{}) {
		only = []meta.KeyID{meta.KeyID(q.Orphan)}
	}
	h := s.hello(only)
	_, leader := s.Raft.LeaderWithID()
	unasked := h.Waiting != nil && !q.Waiting
	if !q.Unproven { // a leader of an older build would adopt them by itself
		h.Unproven = nil
	}
	if (len(h.Orphans)+len(h.Unproven) > 0 || h.Waiting != nil) && string(leader) != from || unasked && plan.BeforeFirstKey(s.FSM.Ring()) {
		return nil, &peer.Refusal{Code: peer.NotReady}
	}
	if unasked {
		h.Waiting = nil
	}
	return h, nil
}
