package replication

// What becomes of the files of removed keys.

import (
	"context"
	"errors"
	"slices"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
)

// cleanUp does with the files of removed keys what plan says, beside the loop, and returns when
// to look again: zero for never, if nothing changes.
func (r *Replicator) cleanUp(ctx context.Context, v local.View) mono.Time {
	var leftovers []plan.Leftover
	var removed []time.Time
	for _, l := range r.Store.Leftovers(v.Ring) {
		leftovers = append(leftovers, plan.Leftover{ID: l.Key, File: l.InPlace, Aside: l.Aside})
		if t, ok := v.Ring.Tombstone(l.Key); ok {
			removed = append(removed, t.Removed)
		}
	}
	b := plan.CleanUp(v.Ring, v.CaughtUp, leftovers, r.unlinker.undo, r.unlinker.clocks.RingClock(v.Ring, removed...))
	if len(b.SetAside)+len(b.Unlink) == 0 {
		r.cleaning.idle()
		return r.WhenShown(b.Next)
	}
	if wake, wait := r.cleaning.wait(mono.Now()); wait {
		return wake
	}
	r.start(ctx, &r.cleaning, func() {
		err := r.removeLeftovers(ctx, b)
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, fsm.ErrNotLeader): // there is none, and nothing hurries
			r.Logger.Debug("could not delete files of removed keys", "error", err)
		default:
			r.Logger.Error("could not delete files of removed keys", "error", err)
		}
	})
	return 0
}

// removeLeftovers sets files aside, and unlinks those that the leader confirms.
func (r *Replicator) removeLeftovers(ctx context.Context, b plan.Cleanup) error {
	var errs []error
	for _, id := range b.SetAside {
		if err := r.Store.SetAside(id, r.WasRemoved); err != nil {
			errs = append(errs, err)
		}
	}
	for ids := range slices.Chunk(b.Unlink, reportBatch) {
		gone, err := r.unlinker.removedForGood(ctx, ids)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for _, id := range gone {
			if err := r.Store.Unlink(id, r.WasRemoved); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// unlinker knows which keys are removed for good, and asks the leader, which has a majority confirm it.
type unlinker struct {
	*local.Server
	undo       time.Duration // how long the file of a removed key is kept aside
	clocks     *local.Clocks
	confirming *local.Confirming
}

// removedForGood asks the leader which of the keys are removed and past their undo time. What
// this server has applied is not enough: a restored snapshot may have brought a key back while
// it was cut off.
func (u *unlinker) removedForGood(ctx context.Context, ids []meta.KeyID) ([]meta.KeyID, error) {
	_, leader := u.Raft.LeaderWithID()
	switch leader {
	case "":
		return nil, u.FSM.NotLeader(u.Raft)
	case u.ID:
		return u.confirmRemoved(ctx, ids)
	}
	return u.ToLeader.Removed(ctx, string(leader), ids)
}

// confirmRemoved says which of the keys are removed and past their undo time, on a leader that
// a majority has just confirmed.
func (u *unlinker) confirmRemoved(ctx context.Context, ids []meta.KeyID) ([]meta.KeyID, error) {
	if err := u.Leading(); err != nil {
		return nil, err
	}
	if err := u.confirming.Confirm(ctx); err != nil {
		return nil, err
	}
	if !u.clocks.ComparedAsLeader() || u.clocks.Known().Wrong() {
		return nil, nil // by a clock that is ahead, all would be past it
	}
	ring := u.FSM.Ring()
	var times []time.Time
	for _, id := range ids {
		if t, removed := ring.Tombstone(id); removed {
			times = append(times, t.Removed)
		}
	}
	ringClock := u.clocks.RingClock(ring, times...)
	return slices.DeleteFunc(slices.Clone(ids), func(id meta.KeyID) bool {
		t, removed := ring.Tombstone(id)
		return !removed || ringClock.UnlinkAt(t, u.undo).After(ringClock.Now)
	}), nil
}

// ServeRemoved tells another server which of the keys are removed for good.
func (r *Replicator) ServeRemoved(ctx context.Context, ids []meta.KeyID) ([]meta.KeyID, error) {
	return r.unlinker.serveRemoved(ctx, ids)
}

func (u *unlinker) serveRemoved(ctx context.Context, ids []meta.KeyID) ([]meta.KeyID, error) {
	gone, err := u.confirmRemoved(ctx, ids)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		_, leader := u.Raft.LeaderWithID()
		return nil, &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	}
	return gone, nil
}
