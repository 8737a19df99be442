package fsm

// The one place that proposes to raft, and what becomes of raft's errors.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// ProposeTimeout is how long a proposal may wait for raft to take it. Once taken it ends
// within the leader lease, committed or not; unless raft is shut down, which may leave it
// unanswered.
const ProposeTimeout = 5 * time.Second

// Encode returns the log entry, unless ctx has ended.
func (f *Machine) Encode(ctx context.Context, cmds []meta.Command) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, err := f.build.EncodeEntry(meta.Entry{By: Actor(ctx), Commands: cmds})
	if err != nil {
		return nil, err
	}
	if len(b) > MaxCommand {
		return nil, CommandTooLong(len(b))
	}
	return b, nil
}

// Propose hands commands to raft in one log entry: all of them are applied, or none. It returns what Apply answered. An
// error that matches ErrNotLeader may hide a commit. See local.Server.Propose, which asks first whether all servers apply it.
func (f *Machine) Propose(ctx context.Context, r *raft.Raft, cmds []meta.Command) error {
	b, err := f.Encode(ctx, cmds)
	if err != nil {
		return err
	}
	restores := f.restores.Load()
	future := r.ApplyLog(raft.Log{Data: b, Extensions: Extensions}, ProposeTimeout)
	if err := future.Error(); err != nil {
		return f.Outcome(r, err)
	}
	if f.entry.Load() < future.Index() && f.restores.Load() == restores {
		f.stray.Store(future.Index())
		f.bell.Ring()
		return ErrNotApplied
	}
	if slices.ContainsFunc(cmds, urgent) {
		r.Barrier(ProposeTimeout)
	}
	if err, ok := future.Response().(error); ok {
		return err
	}
	return nil
}

// ErrNotApplied says that raft has committed and applied an entry of the keyring's, and this FSM was not
// given it.
var ErrNotApplied = errors.New("raft does not apply to this FSM: give it Config.FSM, alone or in a Mux, and put the Mux outermost")

// Fed is an error if raft applies its log to another FSM. A leader knows that once it has proposed
// something. Others know it of one that is given nothing at all.
func (f *Machine) Fed(r *raft.Raft) error {
	if stray := f.stray.Load(); stray > f.entry.Load() {
		return fmt.Errorf("log entry %d: %w", stray, ErrNotApplied)
	}
	if applied := r.AppliedIndex(); applied > 0 && f.history.first.Load() == 0 && f.restores.Load() == 0 {
		return fmt.Errorf("nothing of the log up to entry %d: %w", applied, ErrNotApplied)
	}
	return nil
}

// Position returns an index of raft's log up to which the FSM has all entries of the keyring. raft's own
// index of what is applied won't do: it is that of the entries handed to the FSM, which may have
// thousands of them yet to apply. What raft calls the last snapshot the FSM was asked for or restored
// from, so it has that.
func (f *Machine) Position(r *raft.Raft) uint64 {
	entry := f.entry.Load()
	snapshot, _ := strconv.ParseUint(r.Stats()["last_snapshot_index"], 10, 64)
	return max(entry, snapshot)
}

// urgent reports whether followers should learn at once that the command has committed. An
// idle leader tells them only with its next entry or after CommitTimeout: so there is a next
// entry, and nobody waits for it. A new key need not be: the leader offers it to them, and
// the next entry is on its way.
func urgent(c meta.Command) bool { return c.Add == nil && c.Hold == nil }

// Outcome turns an error of raft's into one of the keyring's.
func (f *Machine) Outcome(r *raft.Raft, err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost),
		errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return f.NotLeader(r)
	case errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return fmt.Errorf("propose: %w", err)
}

// NotLeader returns an error that matches ErrNotLeader and tells who leads.
func (f *Machine) NotLeader(r *raft.Raft) error {
	_, leader := r.LeaderWithID()
	return f.notLeader(leader)
}
