package keyring

// Rotate, WaitRotated, ActiveKey, Leading, and how a key is made and offered.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// RotateOptions says how to rotate. The zero value makes a new key active as soon as a
// majority of the voters holds it.
type RotateOptions struct {
	// Publish is when the new key is to become active; it is prepublished until then, so
	// that verifiers learn of it: five minutes from now is enough for those that keep the JWKS no longer
	// than they are told. Zero, or a time that has passed, means at once, which is for emergencies: see Rotate.
	Publish time.Time
	// Full has all that was ever sealed re-encrypted under the new key, as after a compromise:
	// once it is active, the leader moves what is sealed under older ones, which are rekeying
	// until a scan finds nothing under them, and then deprecated. Other prepublished keys are
	// dropped. It needs Config.Data, without which it is ErrNoData. Status has the progress.
	Full bool `json:",omitempty"`
	// Revoke are keys whose tokens are to be refused, and whose public keys leave the JWKS,
	// from the moment on at which the new key is active; the one that it takes over from may
	// be among them. What they have sealed still opens. Empty means none.
	Revoke []KeyID `json:",omitempty"`
	// Compromised is for the day on which somebody else has, or may have, the keys. It is Full, and from the
	// moment on at which the new key is active all others are revoked, those too that were adopted or are
	// deprecated already, and each is removed once a scan has found nothing under it; Revoke adds nothing to
	// that. The files of removed keys stay aside for RotationPolicy.Undo: a restore may need them, and the
	// thief has the keys anyway. A new leader goes on with all of it. While a server does not answer, or runs
	// a build that does not know of it, the leader does the same in several commands, with which no other leader
	// goes on: after an error call it again. That does not go together with Publish.
	Compromised bool `json:",omitempty"`
}

// rotator has new keys made, for Rotate.
type rotator struct {
	*server
	clocks  *local.Clocks
	remover *remover
	maker   *lead.Maker

	creating chan struct{}     // has one while Rotate looks for a pending key, or makes one
	made     map[KeyID]knownTo // by Rotate; guarded by creating
	removals atomic.Uint64     // how many servers this one has removed from raft's configuration as the leader
}

func newRotator(s *server, c *local.Clocks, removal *remover, m *lead.Maker) *rotator {
	return &rotator{server: s, clocks: c, remover: removal, maker: m, creating: make(chan struct{}, 1), made: map[KeyID]knownTo{}}
}

// Rotate makes a new key. It returns when the key is active, or, with Publish set, when it
// is prepublished and held by a majority of the voters. If ctx ends first the error matches
// ErrNotDurable: the key stays prepublished, and the leader goes on with it. If it ends before there is a key
// the error is ctx's own. It does not wait for a clock that is wrong to be set right, as a rotation by schedule
// does: after a theft it must not. Leader only.
//
// If ctx has no deadline it ends too, with an error that also matches ErrNoLeader, when this server has had no leader for 30
// seconds, or longer where raft's own timeouts are long. So do all calls of a Keyring that wait for what a leader does.
//
// Set Publish unless it is an emergency. A verifier that meets the key before it has fetched the JWKS refuses its
// tokens until then, and libraries bound how often they fetch it for a kid that they do not know. By their defaults, jose
// does so 30 seconds after its last fetch, openid-client 60 seconds after it, keyfunc once in 5 minutes, and jwx's cache not at
// all: it fetches by its interval, of 15 minutes or more.
//
// It may be called again, and side by side. A key that an earlier call with the same options has made here, and
// that is still prepublished, is what it waits for then, in place of one more. But not if a server has been
// removed since, which may have that key, or another server has led, or the file of that key is gone.
func (k *Keyring) Rotate(ctx context.Context, o RotateOptions) (Key, error) {
	key, err := led(ctx, k, func(ctx context.Context) (Key, error) { return k.rotator.rotate(ctx, o) })
	if errors.Is(err, gate.ErrLeft) {
		err = fmt.Errorf("rotate: %w: %w", ErrNotDurable, err)
	}
	return key, err
}

func (r *rotator) rotate(ctx context.Context, o RotateOptions) (Key, error) {
	if err := r.mayRotate(); err != nil {
		return Key{}, err
	}
	if err := r.mayRevoke(o.Revoke); err != nil {
		return Key{}, fmt.Errorf("rotate: %w", err)
	}
	if o.Compromised {
		o.Full, o.Revoke = true, nil // all are
	}
	if o.Full && r.cfg.Data == nil {
		return Key{}, fmt.Errorf("full rotation: %w: Config.Data is nil", ErrNoData)
	}
	add := meta.Add{Full: o.Full, Revoke: o.Revoke, Compromised: o.Compromised}
	if o.Publish.After(r.Now()) {
		add.Publish = o.Publish.UTC().Round(0)
	}
	inSteps := false                                              // because not every server applies what is to be added
	if v := r.FSM.Build().Needs(meta.Command{Add: &add}); v > 1 { // Maker.Create does not ask
		err := r.AllApply(ctx, v)
		inSteps = o.Compromised && add.Publish.IsZero() && errors.As(err, new(local.BehindError))
		if err != nil && !inSteps {
			return Key{}, fmt.Errorf("rotate: %w", err)
		}
	}
	var id KeyID
	var err error
	for again := true; again; {
		ring := r.FSM.Ring()
		if inSteps {
			add.Compromised, add.Revoke = false, signed(ring)
		}
		id, err = r.pendingOrNew(ctx, add)
		again = inSteps && errors.Is(err, meta.ErrCommandRefused) && r.FSM.Ring() != ring // one has gone meanwhile
	}
	if err != nil {
		return Key{}, fmt.Errorf("rotate: %w", err)
	}
	key, err := r.awaitKey(ctx, id, func(*meta.Key) bool { return add.Publish.IsZero() }, true)
	if err == nil && inSteps {
		err = r.removeOthers(ctx, id)
	}
	return key, err
}

// signed returns the keys that may have signed something.
func signed(ring *meta.Ring) (ids []KeyID) {
	for _, key := range ring.Keys {
		if key.State != meta.StatePrepublished {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

// removeOthers has every key but one removed once nothing is sealed under it: what a rotation after a
// compromise does by itself where every server knows of it. A crash leaves some of them without that, which
// the next rotation of this kind makes good.
func (r *rotator) removeOthers(ctx context.Context, id KeyID) error {
	for _, key := range r.FSM.Ring().Keys {
		if key.ID == id || key.State == meta.StatePrepublished || key.State == meta.StateActive {
			continue
		}
		if _, err := r.remover.beginRemoval(ctx, key.ID, RemoveOptions{}); err != nil {
			return fmt.Errorf("rotate after a compromise: key %s is active, and not all others are to be removed yet, call it again: %w", id, err)
		}
	}
	return nil
}

// pendingOrNew returns a key that is on its way with the same options, or makes one. Calls take turns, so
// that the second one finds what the first has made: also while raft hangs, and all of them time out.
func (r *rotator) pendingOrNew(ctx context.Context, add meta.Add) (KeyID, error) {
	select {
	case r.creating <- struct{}{}:
	case <-ctx.Done():
		return KeyID{}, context.Cause(ctx)
	}
	defer func() { <-r.creating }()
	now := knownTo{r.Raft.CurrentTerm(), r.removals.Load(), r.FSM.Restores()}
	for _, key := range plan.SameRotation(r.FSM.Ring(), add, r.cfg.Tokens.Algorithm, r.Now()) {
		if r.made[key.ID] == now && r.Store.Holds(key) {
			return key.ID, nil
		}
	}
	id, err := r.maker.Create(ctx, add)
	ring := r.FSM.Ring()
	maps.DeleteFunc(r.made, func(id KeyID, then knownTo) bool {
		m := ring.Key(id)
		return then != now || m != nil && m.State != meta.StatePrepublished
	})
	r.made[id] = now // also after an error: it may have been added
	return id, err
}

// knownTo tells since when a pending key has been known to members alone: one that this server has made in this
// term, if no server was removed after that, and no snapshot was restored.
type knownTo struct{ term, removals, restores uint64 }

// mayRotate reports whether this server is a leader that is ready.
func (r *rotator) mayRotate() error {
	if err := r.Leading(); err != nil {
		return err
	}
	if r.FSM.Ring().Active() == nil {
		return ErrNotReady
	}
	return nil
}

// ActiveKey returns the metadata of the active key, as this server knows it. Before the first one it is ErrNotReady.
func (k *Keyring) ActiveKey() (Key, error) {
	if err := k.server.Gate.Err(); err != nil {
		return Key{}, err
	}
	active := k.server.FSM.Ring().Active()
	if active == nil {
		return Key{}, ErrNotReady
	}
	return keyOf(active), nil
}

// mayRevoke asks what the FSM will, before there is a key file that nobody needs.
func (r *rotator) mayRevoke(ids []KeyID) error {
	ring := r.FSM.Ring()
	for _, id := range ids {
		switch key := ring.Key(id); {
		case key == nil:
			return fmt.Errorf("revoke: %w %s", ErrUnknownKey, id)
		case key.State == meta.StatePrepublished:
			return fmt.Errorf("revoke: key %s has signed nothing yet", id)
		}
	}
	return nil
}

// Leading is nil on a leader that has applied the barrier of its term: what is leader only can be done here. Else the
// error matches ErrNotLeader and names the leader, or matches ErrNotReady.
func (k *Keyring) Leading() error { return k.server.Leading() }

// WaitRotated waits for a key that Rotate has made, on any server: until it is active or, if it was to be published
// later, prepublished and held by a majority of the voters. This server need not have heard of the key yet: another
// server that leads has. Errors are those of Rotate, and ErrUnknownKey if the key was dropped or removed.
func (k *Keyring) WaitRotated(ctx context.Context, id KeyID) (Key, error) {
	return led(ctx, k, func(ctx context.Context) (Key, error) {
		seen, active := false, true
		return k.server.awaitKey(ctx, id, func(m *meta.Key) bool {
			if !seen {
				seen, active = true, !m.Publish.After(k.server.Now())
			}
			return active
		}, false)
	})
}

// awaitKey waits until the new key is active or, if it need not be, held by a majority. known says that
// this server has applied what made it; if not, it follows, and that is on its way.
func (s *server) awaitKey(ctx context.Context, id KeyID, active func(*meta.Key) bool, known bool) (key Key, err error) {
	err = s.AwaitRing(ctx, &known, func(ring *meta.Ring) (bool, error) {
		m := ring.Key(id)
		known = known || m != nil || s.Leading() == nil
		switch {
		case m == nil && ring.WasRemoved(id):
			return false, fmt.Errorf("it was dropped: %w", ErrUnknownKey)
		case m == nil && known:
			return false, fmt.Errorf("%w: %w", ErrUnknownKey, local.ErrRestored)
		case m == nil, m.State == meta.StatePrepublished && (active(m) || !plan.Majority(local.Voters(s.Raft), m.Holders)):
			return false, nil
		}
		key = keyOf(m)
		return true, nil
	})
	switch {
	case err == nil:
		return key, nil
	case errors.Is(err, ErrUnknownKey), errors.Is(err, ErrClosed):
		return Key{}, fmt.Errorf("rotate: key %s: %w", id, err)
	}
	return Key{ID: id}, fmt.Errorf("rotate: key %s: %w: %w", id, ErrNotDurable, err)
}
