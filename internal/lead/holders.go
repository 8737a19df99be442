package lead

// What the leader does about who holds a key: it activates, drops, confirms, or hands over.

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"slices"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
)

// decide asks live who holds a prepublished key, then activates it, drops it, or waits.
// Answers count only if neither a restore of the FSM nor a change of the configuration came
// in between: either can take away what they speak of.
func (l *Leader) decide(ctx context.Context, id meta.KeyID, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	restores := l.FSM.Restores()
	enough := func(answers map[string]plan.Answer) bool { return plan.Judge(ring, id, s, answers).Activate }
	answers := l.Ask(ctx, s.Servers, []meta.KeyID{id}, enough)
	if restores != l.FSM.Restores() || !slices.Equal(s.Voters, local.Voters(l.Raft)) || !slices.Equal(s.Servers, local.ServerIDs(l.Raft)) {
		return l.deliver(ctx, holds) // and ask again
	}
	v := plan.Judge(ring, id, s, answers)
	var err error
	switch {
	case v.Activate:
		err = l.proposeWith(ctx, holds, meta.Command{Activate: &meta.Activate{ID: id, Voters: s.Voters, Confirmed: v.Confirmed, Time: l.Clocks.ActivationTime(ctx)}})
	case v.Drop:
		l.Logger.Warn("dropping the new key: no server has it", "key", id)
		err = l.proposeWith(ctx, holds, meta.Command{Remove: &meta.Remove{ID: id, From: meta.StatePrepublished, Time: l.Clocks.TimeToWrite(ctx)}})
	default:
		err = l.deliver(ctx, holds)
	}
	if k := l.FSM.Ring().Key(id); k != nil && k.State == meta.StatePrepublished {
		l.probes[id] = l.probes[id].Again(k, v, mono.Now(), mathrand.Float64())
		l.notePending(id, fmt.Sprintf("%d servers hold it; %d of %d answered", len(v.Confirmed), len(answers), len(s.Servers)))
	} else {
		delete(l.probes, id)
		l.retainPending(func(i meta.KeyID) bool { return i != id })
	}
	return err
}

// confirm asks live who of the voters holds the active key, which came with a snapshot: nothing is sealed
// or signed before most of them do. Those that lack it get it from those that hold it meanwhile.
func (l *Leader) confirm(ctx context.Context, id meta.KeyID, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	restored := l.FSM.LastRestore()
	answers := l.Ask(ctx, s.Voters, []meta.KeyID{id}, func(answers map[string]plan.Answer) bool {
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
	told := fmt.Sprintf(": at the last question %d of %d voters held it", len(plan.HoldersIn(answers, id)), len(s.Voters))
	l.note(func(s *Status) { s.restored = told })
	return l.deliver(ctx, holds)
}

// resign hands leadership to a voter that holds the active key now: it is of no use here.
func (l *Leader) resign(ctx context.Context, active meta.KeyID, s plan.Situation) error {
	others := slices.DeleteFunc(slices.Clone(s.Voters), func(v string) bool { return v == string(l.ID) })
	answers := l.Ask(ctx, others, []meta.KeyID{active}, func(answers map[string]plan.Answer) bool {
		return len(plan.HoldersIn(answers, active)) > 0
	})
	holders := plan.HoldersIn(answers, active)
	if len(holders) == 0 {
		return fmt.Errorf("no other voter that answers holds the active key either: %w %s", local.ErrKeyMissing, active)
	}
	for _, server := range l.Raft.GetConfiguration().Configuration().Servers {
		if string(server.ID) != holders[0] {
			continue
		}
		l.Logger.Warn("transferring leadership: this server lacks the active key", "key", active, "to", server.ID)
		if err := l.Raft.LeadershipTransferToServer(server.ID, server.Address).Error(); err != nil {
			return l.FSM.Outcome(l.Raft, err)
		}
		return l.FSM.NotLeader(l.Raft)
	}
	return fmt.Errorf("server %q has left", holders[0])
}
