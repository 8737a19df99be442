package lead

// What servers report that they hold, until it is in the log.

import (
	"sync"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
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
// others'. A server whose report is dropped repeats it. One entry takes no more of them than that.
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

// ServeReport takes in a report of another server.
func (l *Leader) ServeReport(h meta.Hold) error {
	if l.Raft.State() != raft.Leader {
		_, leader := l.Raft.LeaderWithID()
		return &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	}
	l.Report(h)
	return nil
}

// Report takes in what a server says that it holds, or no longer holds. It comes into the log with the next step.
func (l *Leader) Report(h meta.Hold) {
	l.reports.add(h)
	l.FSM.Notify()
}
