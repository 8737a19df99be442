package members

// Who votes: servers get a vote once they hold every key, lose it, or are permanent non-voters. That is recorded in the
// ring, so that it outlives restarts and leaders. Which members are to get a vote is decided by plan.Promotable.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

const nonvoterVersion = 3 // of log entries: permanent non-voters came with it

// errNonvoter is why a server is not promoted unless it is named.
var errNonvoter = errors.New("it is a permanent non-voter: PromoteServer gives it a vote")

// AddNonvoter adds a server that stays without a vote until Promote is called for it. A member without a vote becomes one.
// The record comes first: a crash before the server is added leaves nothing, for the leader ends the records of servers
// that are no members.
func (m Members) AddNonvoter(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddOptions) error {
	if err := m.Leading(); err != nil {
		return err
	}
	return m.add(ctx, id, addr, o, func(ctx context.Context, s raft.Server) error {
		if s.ID == id && s.Suffrage == raft.Voter {
			return fmt.Errorf("add non-voter %s: it is a voter: DemoteServer takes its vote", id)
		}
		return m.recordNonvoter(ctx, id)
	})
}

// recordNonvoter records a permanent non-voter. Every server is asked before whether it applies that.
func (m Members) recordNonvoter(ctx context.Context, id raft.ServerID) error {
	m.Leader.NoteNonvoter(id, nil)
	if m.FSM.Ring().IsNonvoter(string(id)) {
		return nil
	}
	m.Logger.Info("making a server a permanent non-voter", "id", id, "by", fsm.Actor(ctx))
	return m.Propose(ctx, meta.Command{Nonvoter: &meta.Nonvoter{Server: string(id)}})
}

// endNonvoter ends the record of a permanent non-voter, if there is one. Then every server has said before that it applies
// such commands. If it fails, the leader does it in its next step.
func (m Members) endNonvoter(ctx context.Context, id raft.ServerID) error {
	if !m.FSM.Ring().IsNonvoter(string(id)) {
		return nil
	}
	return m.FSM.Propose(ctx, m.Raft, []meta.Command{{Nonvoter: &meta.Nonvoter{Server: string(id), End: true}}})
}

// Demote takes a member's vote, if that puts no key at risk: it is a permanent non-voter from then on. A leader that is to
// demote itself hands over, and returns an error that matches fsm.ErrNotLeader.
func (m Members) Demote(ctx context.Context, id raft.ServerID) error {
	may := func(ctx context.Context) error {
		if err := m.AllApply(ctx, nonvoterVersion); err != nil {
			return err
		}
		return m.mayLoseVote(ctx, "demote", id)
	}
	return m.orHandOver(ctx, "demote", id, may, func(ctx context.Context, s raft.Server) error {
		if s.Suffrage != raft.Voter {
			return m.recordNonvoter(ctx, id)
		}
		if err := m.mayLoseVote(ctx, "demote", id); err != nil {
			return err
		}
		if err := m.recordNonvoter(ctx, id); err != nil { // first: else it could be promoted in between
			return err
		}
		m.Logger.Info("demoting a voter", "id", id, "by", fsm.Actor(ctx))
		if err := m.Raft.DemoteVoter(id, 0, fsm.ProposeTimeout).Error(); err != nil {
			return m.FSM.Outcome(m.Raft, err)
		}
		return nil
	})
}

// addPause is how long AddVoter waits, at most, before it asks a server again.
const addPause = 5 * time.Second

// AddVoter adds a server, waits until it holds every key that is needed, and gives it a vote.
func (m Members) AddVoter(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddOptions) error {
	if err := m.Add(ctx, id, addr, o); err != nil {
		return err
	}
	var lacks error
	for tries := 0; ; tries++ {
		changed := m.FSM.Changed()
		err := m.promoteNew(ctx, id)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fsm.ErrNotLeader), errors.Is(err, local.ErrNotMember), errors.Is(err, errNonvoter):
			return fmt.Errorf("add voter %s: %w", id, err)
		case ctx.Err() == nil || lacks == nil:
			lacks = err
		}
		if !local.Pause(ctx, changed, min(addPause, plan.Backoff(tries, 0))) {
			return fmt.Errorf("add voter %s: %w: it is a member without a vote: %w", id, context.Cause(ctx), lacks)
		}
	}
}

// PromoteAll gives a vote to each member that is to have one, and holds every key that is needed. The error is that of those
// for which it has failed; a server that lacks keys is none: it is no use to ask again before something changes.
func (m Members) PromoteAll(ctx context.Context) error {
	if err := m.Leading(); err != nil {
		return err
	}
	var errs []error
	for _, id := range m.promotable() {
		err := m.promoteNew(ctx, id)
		if err != nil && !errors.Is(err, local.ErrKeyMissing) && !errors.Is(err, errNonvoter) {
			m.Logger.Warn("could not promote a server", "id", id, "error", err)
			errs = append(errs, fmt.Errorf("promote server %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// promotable are the members that are to get a vote. Those from which the leader has never heard come last: they may not
// answer, and hold up nobody else.
func (m Members) promotable() (ids []raft.ServerID) {
	ring := m.FSM.Ring()
	for _, id := range plan.Promotable(ring, local.ServerIDs(m.Raft), local.Voters(m.Raft)) {
		ids = append(ids, raft.ServerID(id))
	}
	unheard := func(id raft.ServerID) int {
		if _, reported := ring.Keystore(string(id)); reported {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(ids, func(a, b raft.ServerID) int { return unheard(a) - unheard(b) })
	return ids
}

// promoteNew is Promote for a server that nobody has named: a permanent non-voter is refused. The log says which keys a server
// lacks, once.
func (m Members) promoteNew(ctx context.Context, id raft.ServerID) error {
	err := m.promote(ctx, id, func() error {
		if m.FSM.Ring().IsNonvoter(string(id)) {
			return errNonvoter
		}
		return nil
	})
	if m.note(id, err) && errors.Is(err, local.ErrKeyMissing) {
		m.Logger.Info("a server has no vote yet", "id", id, "why", err)
	}
	return err
}

// Promote gives a member a vote, once it holds every key that something may be sealed under. It is no permanent non-voter
// then.
func (m Members) Promote(ctx context.Context, id raft.ServerID) error {
	err := m.promote(ctx, id, func() error { return nil })
	m.note(id, err)
	return err
}

// note notes for Status why a server has no vote yet, and reports whether that is news. What is not about that server, or
// only about a permanent non-voter, is none.
func (m Members) note(id raft.ServerID, why error) (news bool) {
	if errors.Is(why, fsm.ErrNotLeader) || errors.Is(why, local.ErrNotMember) || errors.Is(why, errNonvoter) {
		return false
	}
	return m.Leader.NoteNonvoter(id, why)
}

// promote gives a member a vote, if may allows that too. It asks may again in the moment of the change.
func (m Members) promote(ctx context.Context, id raft.ServerID, may func() error) error {
	if err := m.Leading(); err != nil {
		return err
	}
	s, known := m.ServerOf(id)
	if !known {
		return m.NotMember("promote", id)
	}
	if s.Suffrage == raft.Voter {
		return nil
	}
	if err := may(); err != nil {
		return err
	}
	if n := m.lackedBy(string(id)); n > 0 {
		return m.whyLacks(ctx, id, n)
	}
	return m.Leader.BetweenSteps(ctx, func(ctx context.Context) error {
		if is, _ := m.ServerOf(id); is.Suffrage == raft.Voter && is.ID == id {
			return nil // by another call
		}
		if err := may(); err != nil {
			return err
		}
		return m.giveVote(ctx, id)
	})
}

// giveVote is for between two steps of the leader's loop.
func (m Members) giveVote(ctx context.Context, id raft.ServerID) error {
	if err := m.holdsAll(ctx, string(id)); err != nil {
		return err
	}
	if err := m.Check(ctx, append([]raft.ServerID{id}, m.voters()...)); err != nil {
		return err
	}
	is, known := m.ServerOf(id) // it may have been removed, or have moved, while it was asked
	if !known {
		return m.NotMember("promote", id)
	}
	m.Logger.Info("promoting a server", "id", id, "by", fsm.Actor(ctx))
	if err := m.setAddress(id, is.Address, true); err != nil {
		return err
	}
	if err := m.endNonvoter(ctx, id); err != nil { // the vote is there; the next step of a leader ends the record
		m.Logger.Warn("could not end the record of a permanent non-voter that votes now", "id", id, "error", err)
	}
	return nil
}

// holdsAll asks the server live whether it holds every key that is needed, with the keystore that
// is recorded. What is not needed now is not activated before the server votes: see Leader.BetweenSteps.
func (m Members) holdsAll(ctx context.Context, server string) error {
	if _, err := m.Peers.HelloWaiting(ctx, server); ctx.Err() != nil {
		return context.Cause(ctx)
	} else if err != nil {
		return noAnswer{why: err.Error()}
	}
	ring := m.FSM.Ring()
	needed := plan.Needed(ring, local.Voters(m.Raft))
	a := m.AskAbout(ctx, []string{server}, needed)[server]
	recorded, _ := ring.Keystore(server)
	if len(needed) > 0 && (a.Keystore != recorded || len(a.Held) < len(needed)) {
		return fmt.Errorf("it says that it holds %d of %d keys", len(a.Held), len(needed))
	}
	return nil
}

// lackedBy counts the needed keys of which the server is not a recorded holder.
func (m Members) lackedBy(server string) (keys int) {
	for _, key := range plan.Needed(m.FSM.Ring(), local.Voters(m.Raft)) {
		if !key.HeldBy(server) {
			keys++
		}
	}
	return keys
}

// whyLacks says that a server lacks keys, and if it has never reported to the ring, whether it answers at all: it may
// have no keyring, or none that is reached.
func (m Members) whyLacks(ctx context.Context, id raft.ServerID, keys int) error {
	if _, reported := m.FSM.Ring().Keystore(string(id)); !reported {
		_, err := m.Peers.HelloWaiting(ctx, string(id))
		if refusal := (*peer.Refusal)(nil); err != nil && ctx.Err() == nil && !errors.As(err, &refusal) {
			return noAnswer{keysLacked(keys), err.Error()}
		}
	}
	return keysLacked(keys)
}

// keysLacked is how many keys a server lacks. It matches local.ErrKeyMissing.
type keysLacked int

// Error says how many.
func (n keysLacked) Error() string {
	if n == 1 {
		return "it lacks 1 key"
	}
	return fmt.Sprintf("it lacks %d keys", int(n))
}

// Is makes errors.Is(err, local.ErrKeyMissing) true.
func (keysLacked) Is(target error) bool { return target == local.ErrKeyMissing }

// noAnswer says that a server does not answer the keyring's requests. It has the text of the error, and not the error: that
// of another server's refusal must not be taken for this one's.
type noAnswer struct {
	lacks keysLacked // zero if it is recorded as a holder of all that is needed
	why   string
}

// Error says what the server lacks, and what came of the question.
func (e noAnswer) Error() string {
	if e.lacks > 0 {
		return fmt.Sprintf("%v, and its keyring does not answer: %s", e.lacks, e.why)
	}
	return "its keyring does not answer: " + e.why
}

// Is makes errors.Is(err, local.ErrKeyMissing) true if it lacks keys.
func (e noAnswer) Is(target error) bool { return e.lacks > 0 && e.lacks.Is(target) }
