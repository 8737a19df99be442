package keyring

// When a server is ready, and why it is not.

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"github.com/hashicorp/raft"
)

// WaitReady waits until this server is ready:
//
//   - it has caught up with a leader since Open;
//   - it holds the active key;
//   - each of Config.KEKs has answered;
//   - if it is the leader or alone, it may encrypt.
//
// If ctx ends first, the error says what was missing. It waits as long as ctx allows, however long there is
// no leader. It does not wait for older keys that are still being fetched, nor for OldKEKs that do not answer
// and may be gone for good; Status reports both. Once the server has caught up, WaitReady does not wait for
// the election of another leader. So leader-only calls may return ErrNotLeader right after it, except those
// of a Node.
func (k *Keyring) WaitReady(ctx context.Context) error {
	ctx, done, err := k.server.Gate.Enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	for {
		changed := k.server.FSM.Changed()
		missing := k.notReady()
		if missing == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if silence := k.server.Silence(); k.server.IsLost(silence) {
				missing = fmt.Errorf("%w: %w", local.NoLeader(silence), missing)
			}
			return fmt.Errorf("%w: %w: %w", ErrNotReady, missing, context.Cause(ctx))
		}
	}
}

// watchReady notes since when this server is not ready, until ctx ends.
func (k *Keyring) watchReady(ctx context.Context) {
	for {
		changed := k.server.FSM.Changed()
		k.lookReady()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// lookReady is notReady, and since when that is so.
func (k *Keyring) lookReady() (since mono.Time, why error) {
	if why = k.notReady(); why == nil {
		k.unready.Store(0)
		return 0, nil
	}
	since = mono.Now()
	if !k.unready.CompareAndSwap(0, int64(since)) {
		since = mono.Time(k.unready.Load())
	}
	return since, why
}

func (k *Keyring) notReady() error {
	// What changes meanwhile is read once: read again, it could be nil by then.
	complete, fed := k.server.FSM.Complete(), k.server.FSM.Fed(k.server.Raft)
	leads := k.server.Raft.State() == raft.Leader
	term := k.server.Term.Load() // before the ring, as in lookUpSealing
	v := k.caughtUp.View()
	active := v.Ring.Active()
	switch {
	case complete != nil:
		return complete
	case fed != nil:
		return fed
	case !v.CaughtUp:
		return k.caughtUp.Err()
	case active == nil:
		return k.noKeyYet(v.Ring, leads)
	case active.Newer() != "":
		return fmt.Errorf("active key %s: %s", active.ID, active.Newer())
	case !k.server.Store.Holds(active):
		return fmt.Errorf("active key %s: %w", active.ID, errors.Join(ErrKeyMissing, k.server.Store.FaultOf(active.ID)))
	case leads && !k.server.Leads(term):
		return errors.New("the leader has not applied the barrier of its term")
	case leads && k.leader.Unconfirmed(v.Ring):
		return k.leader.WhyUnconfirmed()
	case !leads && slices.Equal(local.ServerIDs(k.server.Raft), []string{string(k.server.cfg.ID)}):
		return errors.New("this server is the only member and does not lead yet")
	}
	return k.server.KEKs.WrappingDown()
}

// noKeyYet is why there is no active key: a KEK here does not do its work, or what the leader says.
func (k *Keyring) noKeyYet(ring *meta.Ring, leads bool) error {
	why := k.leader.NoKeyYet(ring)
	if e := (*kek.Error)(nil); errors.As(why, &e) {
		return why // it names the KEK
	}
	if down := k.server.KEKs.WrappingDown(); down != nil {
		return fmt.Errorf("%w: %w", why, down)
	}
	if _, leader := k.server.Raft.LeaderWithID(); !leads && leader != "" {
		return fmt.Errorf("%w: the Status of the leader, %s, says why", why, leader)
	}
	return why
}
