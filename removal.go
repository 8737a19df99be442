package keyring

// Remove, StartRemoval and WaitRemoved. How every server comes to unlink the files of a removed key is in
// internal/replication.

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// RemoveOptions says how to remove a key. The zero value re-encrypts the key's data first, and keeps
// RotationPolicy.Undo as the time to undo the removal.
type RemoveOptions struct {
	// Force removes an inactive or rekeying key at once, without re-encrypting its data. That data is lost
	// with the key. Use it only if the data is lost or worthless anyway. If Config.Data is a Counter, the log
	// says how many records were lost.
	Force bool
	// Now makes the removal final: every server unlinks its file at once.
	Now bool
}

// remover removes keys, on the leader, and waits until this server knows it.
type remover struct {
	*server
	clocks  *local.Clocks
	rekeyer *rekeyer
}

// Remove removes a key from the keyring for good. Its ID is never used again. Every server overwrites the key
// in memory at once, and sets its file aside. When RotationPolicy.Undo is over and the leader confirms that
// the key is still removed, the server unlinks the file; a server that was down does so when it is back.
// Until then, restoring a raft snapshot from before the removal brings the key back with its files.
//
// A prepublished key is removed at once. So is a deprecated key, if a last scan finds no data under it; only
// FSM.Admit keeps writers from storing such data. The data of an inactive or rekeying key is re-encrypted
// first: Remove returns when a scan of Config.Data has found no data under the key and the key is removed. If
// ctx ends first, the leader goes on with it, and nothing can cancel it. Without Config.Data the error is
// ErrNoData. The active key can't be removed: rotate first. Removing a removed key has no effect, except that
// Now ends the time to undo it. Leader only.
func (k *Keyring) Remove(ctx context.Context, id KeyID, o RemoveOptions) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.remover.remove(ctx, meta.KeyID(id), o) })
}

func (r *remover) remove(ctx context.Context, id meta.KeyID, o RemoveOptions) error {
	return untilRemoved(o, func() (bool, error) { return r.beginRemoval(ctx, id, o) }, func() error { return r.awaitGone(ctx, id, true) })
}

// untilRemoved calls begin, which has the leader begin to remove a key, and then gone, which waits until this
// server knows that the key is removed. begin reports whether the data of the key is moved first. Then the
// leader removes the key with time to undo it: for RemoveOptions.Now begin is called again.
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

// StartRemoval is Remove for a host that does not wait for the re-encryption, which may take hours. moving
// reports whether that has begun. The leader then removes the key by itself, and WaitRemoved waits for that
// on any server. For RemoveOptions.Now call StartRemoval again after that. Leader only.
func (k *Keyring) StartRemoval(ctx context.Context, id KeyID, o RemoveOptions) (moving bool, err error) {
	return led(ctx, k, func(ctx context.Context) (bool, error) { return k.remover.beginRemoval(ctx, meta.KeyID(id), o) })
}

// WaitRemoved waits, on any server, until this server knows that a key is removed whose removal the leader
// has begun. This server need not know of the removal yet. It is an error if raft restores a snapshot from
// before the removal.
func (k *Keyring) WaitRemoved(ctx context.Context, id KeyID) error {
	return k.doLed(ctx, func(ctx context.Context) error { return k.remover.awaitGone(ctx, meta.KeyID(id), false) })
}

// beginRemoval removes a key, or reports that its data is being moved first, after which the leader
// removes it of its own accord.
func (r *remover) beginRemoval(ctx context.Context, id meta.KeyID, o RemoveOptions) (moving bool, err error) {
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
func (r *remover) removeNow(ctx context.Context, ring *meta.Ring, id meta.KeyID, o plan.RemoveOptions, removal plan.Removal) error {
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
		r.cfg.Logger.Warn("removed a key by force: the data under it is lost", "key", id, "records", lost)
	}
	r.Store.NoteRemoved(id) // here before we return; elsewhere the replicator does
	r.FSM.Notify()
	return nil
}

// checkUnused looks once more whether anything is sealed under a deprecated key. It can only be there if
// the host's Apply does not ask Admit, or RekeyGrace was too short.
func (r *remover) checkUnused(ctx context.Context, id meta.KeyID) error {
	done, err := r.rekeyer.askData(ctx)
	if err != nil {
		return err
	}
	defer done()
	for s, err := range r.cfg.Data.Under(ctx, KeyID(id)) {
		if err != nil {
			return err
		}
		if isUnder(s, id) {
			return fmt.Errorf("record %q was encrypted under it after the key was deprecated (see FSM.Admit): decrypt it with DecryptDeprecated and store it again, or remove the key by force", s.Ref)
		}
	}
	return nil
}

// lostRecords says how many records are lost with a key, for the log.
func (r *remover) lostRecords(ctx context.Context, id meta.KeyID) string {
	if c, ok := r.cfg.Data.(Counter); ok {
		if n, err := c.Count(ctx, KeyID(id)); err == nil {
			return strconv.Itoa(n)
		}
	}
	return "unknown"
}

// awaitGone waits until this server knows that a key is removed. known is as for awaitKey.
func (r *remover) awaitGone(ctx context.Context, id meta.KeyID, known bool) error {
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
			return false, fmt.Errorf("it stays %s: raft has restored a snapshot from before the call to remove it", m.State)
		}
		return false, nil
	})
	switch {
	case err == nil || errors.Is(err, ErrClosed):
		return err
	case ctx.Err() == nil:
		return fmt.Errorf("remove %s: %w", id, err)
	}
	err = fmt.Errorf("remove %s: the key is not removed yet: a removal that has begun goes on: %w", id, err)
	if p, _ := r.rekeyer.progress.of(id); p.Err != nil {
		err = fmt.Errorf("%w: %w", err, p.Err)
	}
	return err
}
