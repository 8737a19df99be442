package local

// What a leader knows of the other servers: who does not answer, who is behind, who lacks the active key.

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

// Watch is what a leader knows of the other servers, for Status: who does not answer raft, who gets no
// further in its log, and who lacks the active key. It is of the leader's term, and forgotten after it.
type Watch struct {
	*Server
	clocks *Clocks // which are told what the others' clocks show

	mu sync.Mutex // guards below
	WatchStatus
}

// NewWatch knows nothing yet: see Observed and Run.
func NewWatch(s *Server, c *Clocks) *Watch { return &Watch{Server: s, clocks: c} }

// Silence is since when a server has not answered raft's heartbeats.
type Silence struct {
	Heard time.Time // the last answer, or the begin of the term
	Since mono.Time // the first failure
}

// Observed takes in what raft tells of its heartbeats, in a goroutine of raft's.
func (w *Watch) Observed(data any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch o := data.(type) {
	case raft.FailedHeartbeatObservation:
		if _, known := w.Silent[string(o.PeerID)]; !known {
			w.Silent = set(w.Silent, string(o.PeerID), Silence{o.LastContact.UTC().Round(0), mono.Now()})
		}
	case raft.ResumedHeartbeatObservation:
		delete(w.Silent, string(o.PeerID))
	case raft.PeerObservation:
		delete(w.Silent, string(o.Peer.ID))
		delete(w.Progress, string(o.Peer.ID))
		delete(w.Lacks, string(o.Peer.ID))
	case raft.RaftState: // a new term, or none
		w.Silent, w.Progress, w.Lacks = nil, nil, nil
	}
}

// Answers reports whether a server answers raft's heartbeats, as far as this leader knows.
func (w *Watch) Answers(server string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, silent := w.Silent[server]
	return !silent
}

// Holders takes in which of the servers hold the active key, by the ring.
func (w *Watch) Holders(ring *meta.Ring, servers []string) {
	active := ring.Active()
	if active == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if active.ID != w.Active {
		w.Active, w.Lacks = active.ID, nil
	}
	for _, s := range servers {
		switch since := w.Lacks[s]; {
		case active.HeldBy(s):
			delete(w.Lacks, s)
		case since == 0:
			w.Lacks = set(w.Lacks, s, mono.Now())
		}
	}
}

// heard takes in a server's answer.
func (w *Watch) heard(server string, a *peer.StateAnswer, committed uint64, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Progress = set(w.Progress, server, w.Progress[server].Heard(a.Applied, committed, at))
}

// every is the time between two questions to the other servers how far they are: a minute, or more where
// raft itself takes its time.
func (w *Watch) every() time.Duration {
	return max(time.Minute, 60*w.Raft.ReloadableConfig().HeartbeatTimeout)
}

// Run asks the other servers now and then how far they are, while this server leads.
func (w *Watch) Run(ctx context.Context) {
	ticks := time.NewTicker(w.every())
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
		if w.Leading() == nil {
			w.askOthers(ctx)
		}
	}
}

func (w *Watch) askOthers(ctx context.Context) {
	term := w.Term.Load()
	others := slices.DeleteFunc(ServerIDs(w.Raft), func(s string) bool { return s == string(w.ID) })
	type answer struct {
		*peer.StateAnswer
		clock clockReading
	}
	answers := peer.All(ctx, others, func(ctx context.Context, server string) (answer, error) {
		a, clock, err := w.clocks.ask(ctx, server)
		return answer{a, clock}, err
	}, nil)
	committed := w.Raft.CommitIndex()
	if !w.Leads(term) {
		return
	}
	clocks := make(map[string]clockReading, len(answers))
	for server, a := range answers {
		w.heard(server, a.StateAnswer, committed, w.Now())
		clocks[server] = a.clock
	}
	w.clocks.read(term, clocks)
}

// WatchStatus is what a leader knows of the other servers at one moment, by server.
type WatchStatus struct {
	Silent   map[string]Silence
	Progress map[string]plan.Progress
	Active   meta.KeyID           // the active key
	Lacks    map[string]mono.Time // since when a server has not been among its holders
}

// Status is what is known now.
func (w *Watch) Status() WatchStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return WatchStatus{maps.Clone(w.Silent), maps.Clone(w.Progress), w.Active, maps.Clone(w.Lacks)}
}
