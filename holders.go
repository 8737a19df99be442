package keyring

// Which servers hold a key: what they report, what they answer when asked live, and what the leader does with it.

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// decide asks live who holds a prepublished key, then activates it, drops it, or waits.
// Answers count only if neither a restore of the FSM nor a change of the configuration came
// in between: either can take away what they speak of.
func (l *leader) decide(ctx context.Context, id KeyID, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	restores := l.FSM.Restores()
	enough := func(answers map[string]plan.Answer) bool { return plan.Judge(ring, id, s, answers).Activate }
	answers := l.Ask(ctx, s.Servers, []KeyID{id}, enough)
	if restores != l.FSM.Restores() || !slices.Equal(s.Voters, local.Voters(l.Raft)) || !slices.Equal(s.Servers, local.ServerIDs(l.Raft)) {
		return l.deliver(ctx, holds) // and ask again
	}
	v := plan.Judge(ring, id, s, answers)
	var err error
	switch {
	case v.Activate:
		err = l.proposeWith(ctx, holds, meta.Command{Activate: &meta.Activate{ID: id, Voters: s.Voters, Confirmed: v.Confirmed, Time: l.clocks.ActivationTime(ctx)}})
	case v.Drop:
		l.cfg.Logger.Warn("no server has the new key: dropping it", "key", id)
		err = l.proposeWith(ctx, holds, meta.Command{Remove: &meta.Remove{ID: id, From: meta.StatePrepublished, Time: l.clocks.TimeToWrite(ctx)}})
	default:
		err = l.deliver(ctx, holds)
	}
	if k := l.FSM.Ring().Key(id); k != nil && k.State == meta.StatePrepublished {
		l.probes[id] = l.probes[id].Again(k, v, mono.Now(), mathrand.Float64())
		l.notePending(id, fmt.Sprintf("%d servers hold it; %d of %d answered", len(v.Confirmed), len(answers), len(s.Servers)))
	} else {
		delete(l.probes, id)
		l.retainPending(func(i KeyID) bool { return i != id })
	}
	return err
}

// confirm asks live who of the voters holds the active key, which came with a snapshot: nothing is sealed
// or signed before most of them do. Those that lack it get it from those that hold it meanwhile.
func (l *leader) confirm(ctx context.Context, id KeyID, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	restored := l.FSM.LastRestore()
	answers := l.Ask(ctx, s.Voters, []KeyID{id}, func(answers map[string]plan.Answer) bool {
		return plan.Confirmed(id, s.Voters, answers)
	})
	if restored.Active != id || restored != l.FSM.LastRestore() || !slices.Equal(s.Voters, local.Voters(l.Raft)) {
		return l.deliver(ctx, holds) // and ask again
	}
	if plan.Confirmed(id, s.Voters, answers) {
		l.confirmed.Store(restored.Count)
		delete(l.probes, id)
		l.FSM.Notify()
	} else {
		l.probes[id] = l.probes[id].Again(ring.Key(id), plan.Verdict{}, mono.Now(), mathrand.Float64())
	}
	told := fmt.Sprintf(": %d of %d voters hold it, by the last question", len(plan.HoldersIn(answers, id)), len(s.Voters))
	l.note(func(s *leaderStatus) { s.restored = told })
	return l.deliver(ctx, holds)
}

// resign hands leadership to a voter that holds the active key now: it is of no use here.
func (l *leader) resign(ctx context.Context, active KeyID, s plan.Situation) error {
	others := slices.DeleteFunc(slices.Clone(s.Voters), func(v string) bool { return v == string(l.cfg.ID) })
	answers := l.Ask(ctx, others, []KeyID{active}, func(answers map[string]plan.Answer) bool {
		return len(plan.HoldersIn(answers, active)) > 0
	})
	holders := plan.HoldersIn(answers, active)
	if len(holders) == 0 {
		return fmt.Errorf("no other voter that answers holds the active key either: %w %s", ErrKeyMissing, active)
	}
	for _, server := range l.Raft.GetConfiguration().Configuration().Servers {
		if string(server.ID) != holders[0] {
			continue
		}
		l.cfg.Logger.Warn("this server leads and lacks the active key: it hands over", "key", active, "to", server.ID)
		if err := l.Raft.LeadershipTransferToServer(server.ID, server.Address).Error(); err != nil {
			return l.FSM.Outcome(l.Raft, err)
		}
		return l.FSM.NotLeader(l.Raft)
	}
	return fmt.Errorf("server %q has left", holders[0])
}

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

// serveReport takes in a report of another server.
func (l *leader) serveReport(h meta.Hold) error {
	if l.Raft.State() != raft.Leader {
		_, leader := l.Raft.LeaderWithID()
		return &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	}
	l.report(h)
	return nil
}
