package keyring

// Remove, StartRemoval and WaitRemoved. How every server comes to unlink the files of a removed key is in internal/replication.

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// RemoveOptions says how to remove a key. The zero value removes one under which nothing is
// sealed, and leaves RotationPolicy.Undo to undo it.
type RemoveOptions struct {
	// Force removes an inactive or rekeying key at once, without moving what is sealed under
	// it. That data is lost with the key: it is for data known to be lost or worthless. The log
	// says how many records that were, if Config.Data is a Counter.
	Force bool
	// Now leaves no time to undo it: every server unlinks its file at once.
	Now bool
}

// remover removes keys, on the leader, and waits until this server knows it.
type remover struct {
	*server
	clocks  *local.Clocks
	rekeyer *rekeyer
}

// Remove removes a key from the keyring for good. Its ID is never used again, and every
// server overwrites it in memory at once and sets its file aside. When RotationPolicy.Undo is
// over and the leader confirms that the key is still removed, the file is unlinked; a server
// that was down does all that when it is back. Until then a raft snapshot from before the
// removal, restored, brings the key back with its files.
//
// A prepublished key goes at once, and a deprecated one if nothing was stored under it after all, as
// only FSM.Admit keeps writers from it. What is sealed under an inactive or rekeying one
// is moved to the active key first, and Remove returns when a scan of Config.Data has found
// nothing under it and the key is removed; if ctx ends first, the leader goes on with it, and there is
// no way to call it off. Without Config.Data that is ErrNoData. The active key never goes: rotate first. Removing a removed key
// has no effect, but that Now ends the time to undo it. Leader only.
func (k *Keyring) Remove(ctx context.Context, id KeyID, o RemoveOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.remover.remove(ctx, id, o) })
}

func (r *remover) remove(ctx context.Context, id KeyID, o RemoveOptions) error {
	return untilRemoved(o, func() (bool, error) { return r.beginRemoval(ctx, id, o) }, func() error { return r.awaitGone(ctx, id, true) })
}

// untilRemoved calls begin, which has the leader begin to remove a key, and then gone, which waits until this
// server knows that the key is removed. begin reports whether the data of the key is moved first. Then the leader
// removes the key with time to undo it: for RemoveOptions.Now begin is called again.
func untilRemoved(o RemoveOptions, begin func() (moving bool, err error), gone func() error) error {
	for {
		moving, err := begin()
		if err != nil {
			return err
		}
		if err := gone(); err != nil || !moving || !o.Now {
			return err
		}
	}
}

// StartRemoval is Remove for a host that does not wait until the data has moved, which may take hours: it reports
// whether that has begun. Then the leader removes the key of its own accord, and WaitRemoved waits for it, on any
// server. With RemoveOptions.Now, call StartRemoval again after that. Leader only.
func (k *Keyring) StartRemoval(ctx context.Context, id KeyID, o RemoveOptions) (moving bool, err error) {
	return led(ctx, k, func(ctx context.Context) (bool, error) { return k.remover.beginRemoval(ctx, id, o) })
}

// WaitRemoved waits, on any server, until this one knows that a key is removed whose removal the leader has begun. It
// need not have heard of the removal yet. If raft restores a snapshot from before the removal, that is an error.
func (k *Keyring) WaitRemoved(ctx context.Context, id KeyID) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.remover.awaitGone(ctx, id, false) })
}

// beginRemoval removes a key, or reports that its data is being moved first, after which the leader
// removes it of its own accord.
func (r *remover) beginRemoval(ctx context.Context, id KeyID, o RemoveOptions) (moving bool, err error) {
	if err := r.Leading(); err != nil {
		return false, err
	}
	options := plan.RemoveOptions{Force: o.Force, Now: o.Now, HasData: r.cfg.Data != nil}
	for {
		ring := r.FSM.Ring()
		removal := plan.DecideRemoval(ring, id, options)
		var err error
		switch removal {
		case plan.RefusedUnknown:
			return false, fmt.Errorf("remove: %w %s", ErrUnknownKey, id)
		case plan.RefusedActive:
			return false, fmt.Errorf("remove %s: it is the active key", id)
		case plan.RefusedNoData:
			return false, fmt.Errorf("remove %s, which is %s: %w: Config.Data is nil", id, ring.Key(id).State, ErrNoData)
		case plan.RemovalDone, plan.RemovalRekeying:
		case plan.RemovalRekey:
			err = r.Propose(ctx, meta.Command{Rekey: &meta.Rekey{ID: id, Remove: true}})
		default:
			err = r.removeNow(ctx, ring, id, options, removal)
		}
		if errors.Is(err, meta.ErrCommandRefused) && r.FSM.Ring() != ring {
			continue // another command came first
		}
		if err != nil {
			return false, fmt.Errorf("remove %s: %w", id, err)
		}
		return removal.Moves(), nil
	}
}

// removeNow removes a key that can go at once.
func (r *remover) removeNow(ctx context.Context, ring *meta.Ring, id KeyID, o plan.RemoveOptions, removal plan.Removal) error {
	var lost string
	switch removal {
	case plan.RemovalIfUnused:
		if err := r.checkUnused(ctx, id); err != nil {
			return err
		}
	case plan.RemovalWithLoss:
		lost = r.lostRecords(ctx, id)
	}
	if err := r.Propose(ctx, plan.RemoveCommand(ring, id, o, r.clocks.RemovalTime(ctx, id))); err != nil {
		return err
	}
	if removal == plan.RemovalWithLoss {
		r.cfg.Logger.Warn("key removed by force: what is sealed under it is lost", "key", id, "records", lost)
	}
	r.Store.NoteRemoved(id) // here before we return; elsewhere the replicator does
	r.FSM.Notify()
	return nil
}

// checkUnused looks once more whether anything is sealed under a deprecated key. It can only be there if
// the host's Apply does not ask Admit, or RekeyGrace was too short.
func (r *remover) checkUnused(ctx context.Context, id KeyID) error {
	done, err := r.rekeyer.askData(ctx)
	if err != nil {
		return err
	}
	defer done()
	for s, err := range r.cfg.Data.Under(ctx, id) {
		if err != nil {
			return err
		}
		if isUnder(s, id) {
			return fmt.Errorf("record %q is sealed under it, and was not when the key was deprecated: see FSM.Admit; overwrite it with what DecryptDeprecated makes of it, or remove the key by force", s.Ref)
		}
	}
	return nil
}

// lostRecords says how many records are lost with a key, for the log.
func (r *remover) lostRecords(ctx context.Context, id KeyID) string {
	if c, ok := r.cfg.Data.(Counter); ok {
		if n, err := c.Count(ctx, id); err == nil {
			return strconv.Itoa(n)
		}
	}
	return "unknown"
}

// awaitGone waits until this server knows that a key is removed. known is as for awaitKey.
func (r *remover) awaitGone(ctx context.Context, id KeyID, known bool) error {
	asked := known
	err := r.AwaitRing(ctx, &known, func(ring *meta.Ring) (bool, error) {
		m := ring.Key(id)
		known = known || m != nil || r.Leading() == nil
		asked = asked || m != nil && m.Remove
		switch {
		case ring.WasRemoved(id):
			return true, nil
		case m == nil && known:
			return false, fmt.Errorf("%w: %w", ErrUnknownKey, local.ErrRestored)
		case m != nil && asked && !m.Remove:
			return false, fmt.Errorf("it is %s and stays: raft has restored a snapshot from before its removal was asked for", m.State)
		}
		return false, nil
	})
	switch {
	case err == nil || errors.Is(err, ErrClosed):
		return err
	case ctx.Err() == nil:
		return fmt.Errorf("remove %s: %w", id, err)
	}
	err = fmt.Errorf("remove %s: the leader goes on with it: %w", id, err)
	if p, _ := r.rekeyer.progress.of(id); p.Err != nil {
		err = fmt.Errorf("%w: %w", err, p.Err)
	}
	return err
}
