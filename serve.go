package keyring

// ServePeer: what this server answers to the others.

import (
	"context"
	"errors"
	"slices"
	"sync"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// reports are what servers have told this one while it leads, until they are in the log.
type reports struct {
	mu    sync.Mutex // guards below
	holds []meta.Hold
	ids   map[string]int // that wait, by server
}

// maxReported bounds the key IDs that wait for the log, for each server, a report counting for one
// more: while raft takes nothing, one server's reports neither fill the memory nor keep out the
// others'. A server whose report is dropped repeats it. After as many no more go into one entry.
const maxReported = 2 * peer.MaxIDs

func (r *reports) add(h meta.Hold) {
	n := sizeOf(h)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids == nil {
		r.ids = map[string]int{}
	}
	if waiting := r.ids[h.Server]; waiting > 0 && waiting+n > maxReported {
		return
	}
	r.ids[h.Server] += n
	r.holds = append(r.holds, h)
}

func sizeOf(h meta.Hold) int { return 1 + len(h.Gained) + len(h.Lost) }

func (r *reports) take() []meta.Hold {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ids := 0, 0
	for n < len(r.holds) && ids < maxReported {
		h := r.holds[n]
		size := sizeOf(h)
		ids += size
		if r.ids[h.Server] -= size; r.ids[h.Server] == 0 {
			delete(r.ids, h.Server)
		}
		n++
	}
	holds := r.holds[:n:n]
	r.holds = r.holds[n:]
	return holds
}

func (r *reports) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds, r.ids = nil, nil
}

func (r *reports) waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.holds) > 0
}

// ServePeer answers a request that another server's Transport carried here. from is the ID
// that the host authenticated, never one that the request claims: anyone who can pose as a
// server of the raft configuration is given every key. Other servers get a refusal. The
// answer goes back as it is; the error, which matches ErrClosed or is about ctx, means that
// there is none.
func (k *Keyring) ServePeer(ctx context.Context, from raft.ServerID, request []byte) ([]byte, error) {
	return gate.Through(ctx, &k.gate, func(ctx context.Context) ([]byte, error) {
		if !slices.Contains(servers(k.raft), string(from)) {
			return (&peer.Refusal{Code: peer.NotMember}).Encode()
		}
		return k.handlers().Answer(ctx, string(from), request)
	})
}

// handlers say what this server answers to each kind of request.
func (k *Keyring) handlers() peer.Handlers {
	return peer.Handlers{
		Self:    string(k.cfg.ID),
		Cluster: func() meta.ClusterID { return k.fsm.ring.Load().Cluster },
		Hello:   k.serveHello,
		Fetch:   k.serveFetch,
		Report:  k.leader.serveReport,
		Held:    k.heldHere,
		Offer:   k.replicator.takeOffer,
		Removed: k.remover.serveRemoved,
		State:   k.confirming.state,
	}
}

// serveFetch hands out the material of keys that are held here and were not removed. A key that the ring
// does not know is handed out by a leader alone, which may be about to add it: a server that is behind may
// take one for a member that was removed before the key was made.
func (s *server) serveFetch(ids []KeyID) ([]peer.Secret, error) {
	leads := s.mayLead() == nil // first: then the ring has at least what the barrier had
	ring := s.fsm.ring.Load()
	var secrets []peer.Secret
	for _, id := range ids {
		a, ok := s.store.Copy(id)
		if !ok {
			continue
		}
		if key := ring.Key(id); !ring.WasRemoved(id) && (key == nil && leads || key != nil && key.Check == a.Check) {
			secrets = append(secrets, peer.NewSecret(id, a.Check, a.Secret.Encode()))
		}
		a.Secret.Wipe()
	}
	return secrets, nil
}

// takeOffer fetches a key that the leader is about to add, and says whether it is held
// now. If the leader fails in between, an orphan file is left.
func (r *replicator) takeOffer(ctx context.Context, from string, key meta.NewKey, configuration uint64) (peer.Held, error) {
	if _, leader := r.raft.LeaderWithID(); string(leader) != from {
		return peer.Held{}, &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	}
	id := key.ID
	// A server that is behind the leader's configuration does not know who was removed before this key
	// was made. It gets the key with the log.
	behind := r.raft.AppliedIndex() < configuration
	if !behind && !r.fsm.ring.Load().WasRemoved(id) && !r.store.InMemory(id) && r.offered.add(id) {
		got, err := r.fetchFrom(ctx, from, map[KeyID]meta.NewKey{id: key})
		err = errors.Join(err, r.keep(ctx, got))
		r.offered.remove(id)
		if err != nil {
			r.cfg.Logger.Debug("offered key", "key", id, "error", err)
			r.store.Discard(id) // the ring may never know it; if it does, it is fetched
		}
	}
	return r.heldHere([]KeyID{id})
}

// offered are the keys that are on their way by an offer.
type offered struct {
	mu  sync.Mutex // guards below
	ids []KeyID
}

// maxOffered bounds the offers that are taken up at a time.
const maxOffered = 16

// add notes a key, unless it is noted or there is no room.
func (o *offered) add(id KeyID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.Contains(o.ids, id) || len(o.ids) == maxOffered {
		return false
	}
	o.ids = append(o.ids, id)
	return true
}

func (o *offered) remove(id KeyID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids = slices.DeleteFunc(o.ids, func(i KeyID) bool { return i == id })
}

func (o *offered) all() []KeyID {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.ids)
}

// serveReport takes in a report of another server.
func (l *leader) serveReport(h meta.Hold) error {
	if l.raft.State() != raft.Leader {
		_, leader := l.raft.LeaderWithID()
		return &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	}
	l.report(h)
	return nil
}

// heldHere answers the live question from the disk, not from memory. About one key that it
// can't read at the moment it does not answer at all, for "no" may have the key dropped; among
// many, such a key is not held.
func (s *server) heldHere(ids []KeyID) (peer.Held, error) {
	held := peer.Held{Keystore: s.store.ID()}
	for _, id := range ids {
		here, err := s.store.Confirm(id)
		if err != nil && len(ids) == 1 {
			s.cfg.Logger.Error("confirm key", "key", id, "error", err)
			return peer.Held{}, &peer.Refusal{Code: peer.NotReady}
		}
		if here {
			held.Keys = append(held.Keys, id)
		}
	}
	if len(held.Keys) < len(ids) {
		s.fsm.bell.ring() // a file may be gone, and is to be written again
	}
	return held, nil
}

// serveHello tells of keys that the ring does not know, and of files that wait, to nobody but the leader, who
// asks for them. Before this server has heard who leads it does not answer: none may be left out. A leader of
// an older build can't be told that files wait: it is to ask again until it need not be, or has made a key.
func (s *server) serveHello(from string, q peer.HelloRequest) (*peer.Hello, error) {
	h := s.hello()
	_, leader := s.raft.LeaderWithID()
	unasked := h.Waiting != nil && !q.Waiting
	if (len(h.Orphans) > 0 || h.Waiting != nil) && string(leader) != from || unasked && plan.BeforeFirstKey(s.fsm.ring.Load()) {
		return nil, &peer.Refusal{Code: peer.NotReady}
	}
	if unasked {
		h.Waiting = nil
	}
	return h, nil
}

// hello says what this server is, and which keys it has that the ring does not know.
func (s *server) hello() *peer.Hello {
	h := &peer.Hello{Build: s.fsm.build.Version, Keystore: s.store.ID()}
	ring := s.fsm.ring.Load()
	h.Waiting = s.waiting(ring)
	h.Orphans = s.store.Orphans(ring, peer.MaxOrphans)
	return h
}
