package keyring

// What a leader sees of the other servers: silent, behind, or without the active key.

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// watch is what a leader knows of the other servers, for Status: who does not answer raft, who gets no
// further in its log, and who lacks the active key. It is of the leader's term, and forgotten after it.
type watch struct {
	*server

	mu sync.Mutex // guards below
	watchStatus
}

// silence is since when a server has not answered raft's heartbeats.
type silence struct {
	heard time.Time // the last answer, or the begin of the term
	since mono.Time // the first failure
}

// observed takes in what raft tells of its heartbeats, in a goroutine of raft's.
func (w *watch) observed(data any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch o := data.(type) {
	case raft.FailedHeartbeatObservation:
		if _, known := w.silent[string(o.PeerID)]; !known {
			w.silent = set(w.silent, string(o.PeerID), silence{o.LastContact.UTC().Round(0), mono.Now()})
		}
	case raft.ResumedHeartbeatObservation:
		delete(w.silent, string(o.PeerID))
	case raft.PeerObservation:
		delete(w.silent, string(o.Peer.ID))
		delete(w.progress, string(o.Peer.ID))
		delete(w.lacks, string(o.Peer.ID))
	case raft.RaftState: // a new term, or none
		w.silent, w.progress, w.lacks = nil, nil, nil
	}
}

// answers reports whether a server answers raft's heartbeats, as far as this leader knows.
func (w *watch) answers(server string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, silent := w.silent[server]
	return !silent
}

// set is m[k] = v, also for a nil map.
func set[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	if m == nil {
		m = map[K]V{}
	}
	m[k] = v
	return m
}

// holders takes in which of the servers hold the active key, by the ring.
func (w *watch) holders(ring *meta.Ring, servers []string) {
	active := ring.Active()
	if active == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if active.ID != w.active {
		w.active, w.lacks = active.ID, nil
	}
	for _, s := range servers {
		switch since := w.lacks[s]; {
		case active.HeldBy(s):
			delete(w.lacks, s)
		case since == 0:
			w.lacks = set(w.lacks, s, mono.Now())
		}
	}
}

// heard takes in a server's answer.
func (w *watch) heard(server string, applied, committed uint64, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress = set(w.progress, server, w.progress[server].Heard(applied, committed, at))
}

// every is the time between two questions to the other servers how far they are: a minute, or more where
// raft itself takes its time.
func (w *watch) every() time.Duration {
	return max(time.Minute, 60*w.raft.ReloadableConfig().HeartbeatTimeout)
}

// run asks the other servers now and then how far they are, while this server leads.
func (w *watch) run(ctx context.Context) {
	ticks := time.NewTicker(w.every())
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
		if w.mayLead() == nil {
			w.askOthers(ctx)
		}
	}
}

func (w *watch) askOthers(ctx context.Context) {
	term := w.term.Load()
	others := slices.DeleteFunc(servers(w.raft), func(s string) bool { return s == string(w.cfg.ID) })
	answers := peer.All(ctx, others, func(ctx context.Context, server string) (*peer.StateAnswer, error) {
		return w.peers.State(ctx, server, peer.StateRequest{})
	}, nil)
	committed := w.raft.CommitIndex()
	if !w.leads(term) {
		return
	}
	for server, a := range answers {
		w.heard(server, a.Applied, committed, w.now())
	}
}

// watchStatus is what a leader knows of the other servers at one moment, by server.
type watchStatus struct {
	silent   map[string]silence
	progress map[string]plan.Progress
	active   KeyID                // the active key
	lacks    map[string]mono.Time // since when a server has not been among its holders
}

func (w *watch) status() watchStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return watchStatus{maps.Clone(w.silent), maps.Clone(w.progress), w.active, maps.Clone(w.lacks)}
}
