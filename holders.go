package keyring

// Which servers hold a key: what they report, what they answer when asked live, and what the leader does with it.

import (
	"context"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"sync"

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
	restores := l.fsm.Restores()
	enough := func(answers map[string]plan.Answer) bool { return plan.Judge(ring, id, s, answers).Activate }
	answers := l.ask(ctx, s.Servers, []KeyID{id}, enough)
	if restores != l.fsm.Restores() || !slices.Equal(s.Voters, currentVoters(l.raft)) || !slices.Equal(s.Servers, servers(l.raft)) {
		return l.deliver(ctx, holds) // and ask again
	}
	v := plan.Judge(ring, id, s, answers)
	var err error
	switch {
	case v.Activate:
		err = l.proposeWith(ctx, holds, meta.Command{Activate: &meta.Activate{ID: id, Voters: s.Voters, Confirmed: v.Confirmed, Time: l.clocks.activationTime(ctx)}})
	case v.Drop:
		l.cfg.Logger.Warn("no server has the new key: dropping it", "key", id)
		err = l.proposeWith(ctx, holds, meta.Command{Remove: &meta.Remove{ID: id, From: meta.StatePrepublished, Time: l.clocks.timeToWrite(ctx)}})
	default:
		err = l.deliver(ctx, holds)
	}
	if k := l.fsm.Ring().Key(id); k != nil && k.State == meta.StatePrepublished {
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
	restored := l.fsm.LastRestore()
	answers := l.ask(ctx, s.Voters, []KeyID{id}, func(answers map[string]plan.Answer) bool {
		return plan.Confirmed(id, s.Voters, answers)
	})
	if restored.Active != id || restored != l.fsm.LastRestore() || !slices.Equal(s.Voters, currentVoters(l.raft)) {
		return l.deliver(ctx, holds) // and ask again
	}
	if plan.Confirmed(id, s.Voters, answers) {
		l.confirmed.Store(restored.Count)
		delete(l.probes, id)
		l.fsm.Notify()
	} else {
		l.probes[id] = l.probes[id].Again(ring.Key(id), plan.Verdict{}, mono.Now(), mathrand.Float64())
	}
	told := fmt.Sprintf(": %d of %d voters hold it, by the last question", len(plan.HoldersIn(answers, id)), len(s.Voters))
	l.note(func(s *leaderStatus) { s.restored = told })
	return l.deliver(ctx, holds)
}

// ask asks the servers live which of the keys they hold, and stops when the answers are enough.
func (s *server) ask(ctx context.Context, servers []string, ids []KeyID, enough func(map[string]plan.Answer) bool) map[string]plan.Answer {
	return peer.All(ctx, servers, func(ctx context.Context, server string) (plan.Answer, error) {
		held, err := s.askHeld(ctx, server, ids)
		return plan.Answer{Keystore: held.Keystore, Held: held.Keys}, err
	}, enough)
}

// askHeld asks one server, which may be this one.
func (s *server) askHeld(ctx context.Context, server string, ids []KeyID) (peer.Held, error) {
	if server == string(s.cfg.ID) {
		return s.heldHere(ids)
	}
	return s.peers.Held(ctx, server, ids)
}

// resign hands leadership to a voter that holds the active key now: it is of no use here.
func (l *leader) resign(ctx context.Context, active KeyID, s plan.Situation) error {
	others := slices.DeleteFunc(slices.Clone(s.Voters), func(v string) bool { return v == string(l.cfg.ID) })
	answers := l.ask(ctx, others, []KeyID{active}, func(answers map[string]plan.Answer) bool {
		return len(plan.HoldersIn(answers, active)) > 0
	})
	holders := plan.HoldersIn(answers, active)
	if len(holders) == 0 {
		return fmt.Errorf("no other voter that answers holds the active key either: %w %s", ErrKeyMissing, active)
	}
	for _, server := range l.raft.GetConfiguration().Configuration().Servers {
		if string(server.ID) != holders[0] {
			continue
		}
		l.cfg.Logger.Warn("this server leads and lacks the active key: it hands over", "key", active, "to", server.ID)
		if err := l.raft.LeadershipTransferToServer(server.ID, server.Address).Error(); err != nil {
			return l.fsm.Outcome(l.raft, err)
		}
		return l.fsm.NotLeader(l.raft)
	}
	return fmt.Errorf("server %q has left", holders[0])
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
		s.fsm.Notify() // a file may be gone, and is to be written again
	}
	return held, nil
}

// askAbout asks the servers live about any number of keys. One that has not answered is not asked again.
func (s *server) askAbout(ctx context.Context, servers []string, keys []*meta.Key) map[string]plan.Answer {
	answers := map[string]plan.Answer{}
	for batch := range slices.Chunk(keys, reportBatch) {
		var ids []KeyID
		for _, key := range batch {
			ids = append(ids, key.ID)
		}
		told := s.ask(ctx, servers, ids, nil)
		for server, a := range told {
			a.Held = append(answers[server].Held, a.Held...)
			answers[server] = a
		}
		servers = slices.Sorted(maps.Keys(told))
	}
	return answers
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
	if l.raft.State() != raft.Leader {
		_, leader := l.raft.LeaderWithID()
		return &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	}
	l.report(h)
	return nil
}
