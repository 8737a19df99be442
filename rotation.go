package keyring

// Rotate, WaitRotated, ActiveKey, Leading, and how a new key is made.

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

// RotateOptions says how to rotate. The zero value makes a new key active as soon as a majority of the voters
// holds it.
type RotateOptions struct {
	// Publish is when the new key is to become active. Until then it is prepublished, so that verifiers can
	// fetch its public key. Five minutes from now is enough for verifiers that respect the max-age of the
	// JWKS. Zero, or a time that has passed, means at once, which is for emergencies: see Rotate.
	Publish time.Time
	// Full re-encrypts all data under the new key. Once that is active, the leader re-encrypts the data of
	// the older keys. These are rekeying until a scan finds no data under them, and then deprecated. Other
	// prepublished keys are dropped. Status reports the progress. Full needs Config.Data; without it the
	// error matches ErrNoData.
	Full bool `json:",omitempty"`
	// Revoke lists keys whose tokens are rejected, and whose public keys leave the JWKS, from the moment at
	// which the new key is active. The key that is active now may be among them. Data under them can still be
	// decrypted. Empty means none.
	Revoke []KeyID `json:",omitempty"`
	// Compromised is for the day on which somebody else has, or may have, the keys. It implies Full. From the
	// moment at which the new key is active, all other keys are revoked, including adopted and deprecated
	// ones; Revoke adds nothing. Each is removed once a scan has found no data under it. The files of removed
	// keys stay aside for RotationPolicy.Undo: a restore may need them, and the thief has the keys anyway. A
	// new leader goes on with all of it.
	//
	// If a server does not answer, or runs a build without Compromised, the leader does the same in several
	// commands, which a new leader does not continue: after an error call Rotate again. That can't be
	// combined with Publish.
	Compromised bool `json:",omitempty"`
}

// rotator has new keys made, for Rotate.
type rotator struct {
	*server
	clocks  *local.Clocks
	remover *remover
	maker   *lead.Maker

	creating chan struct{}          // has one while Rotate looks for a pending key, or makes one
	made     map[meta.KeyID]knownTo // by Rotate; guarded by creating
	removals atomic.Uint64          // how many servers this one has removed from raft's configuration as the leader
}

func newRotator(s *server, c *local.Clocks, removal *remover, m *lead.Maker) *rotator {
	return &rotator{server: s, clocks: c, remover: removal, maker: m, creating: make(chan struct{}, 1), made: map[meta.KeyID]knownTo{}}
}

// Rotate makes a new key. It returns when the key is active or, with Publish, when the key is prepublished
// and held by a majority of the voters. If ctx ends first, the error matches ErrNotDurable: the key stays
// prepublished, and the leader goes on with it. If ctx ends before there is a key, the error is that of ctx.
// A scheduled rotation waits until a wrong clock is corrected; Rotate does not, because after a theft it must
// not. Leader only.
//
// If ctx has no deadline, Rotate also ends when this server has had no leader for 30 seconds, or longer if
// raft's own timeouts are long. That error also matches ErrNoLeader. This holds for all calls of a Keyring
// that wait for the leader.
//
// Set Publish unless it is an emergency. A verifier that has not fetched the JWKS since rejects tokens of the
// new key, and libraries limit how often they fetch it for an unknown kid. By default jose fetches 30 seconds
// after its last fetch, openid-client after 60 seconds, and keyfunc once in 5 minutes. jwx's cache fetches
// only at its interval, of 15 minutes or more.
//
// The call may be repeated, and made concurrently. It then waits for the key that an earlier call with the
// same options made on this server, if that is still prepublished, and makes no other key. It does make
// another one if a server has been removed since, which may have that key; if another server has led since;
// or if the file of that key is gone.
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
	revoke := idsAs[meta.KeyID](o.Revoke)
	if err := r.mayRevoke(revoke); err != nil {
		return Key{}, fmt.Errorf("rotate: %w", err)
	}
	if o.Compromised {
		o.Full, revoke = true, nil // all are
	}
	if o.Full && r.cfg.Data == nil {
		return Key{}, fmt.Errorf("full rotation: %w: Config.Data is nil", ErrNoData)
	}
	add := meta.Add{Full: o.Full, Revoke: revoke, Compromised: o.Compromised}
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
	var id meta.KeyID
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
func signed(ring *meta.Ring) (ids []meta.KeyID) {
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
func (r *rotator) removeOthers(ctx context.Context, id meta.KeyID) error {
	for _, key := range r.FSM.Ring().Keys {
		if key.ID == id || key.State == meta.StatePrepublished || key.State == meta.StateActive {
			continue
		}
		if _, err := r.remover.beginRemoval(ctx, key.ID, RemoveOptions{}); err != nil {
			return fmt.Errorf("rotate after a compromise: key %s is active, but not all other keys are marked for removal yet: call Rotate with Compromised again: %w", id, err)
		}
	}
	return nil
}

// pendingOrNew returns a key that is on its way with the same options, or makes one. Calls take turns, so
// that the second one finds what the first has made: also while raft hangs, and all of them time out.
func (r *rotator) pendingOrNew(ctx context.Context, add meta.Add) (meta.KeyID, error) {
	select {
	case r.creating <- struct{}{}:
	case <-ctx.Done():
		return meta.KeyID{}, context.Cause(ctx)
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
	maps.DeleteFunc(r.made, func(id meta.KeyID, then knownTo) bool {
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

// ActiveKey returns the metadata of the active key, as far as this server knows it. Before the first key the
// error is ErrNotReady.
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
func (r *rotator) mayRevoke(ids []meta.KeyID) error {
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

// Leading returns nil on a leader that has applied the barrier of its term: leader-only calls work here.
// Otherwise the error matches ErrNotReady, or ErrNotLeader and names the leader.
func (k *Keyring) Leading() error { return k.server.Leading() }

// WaitRotated waits, on any server, for a key that Rotate has made on the leader: until it is active or, with
// Publish, until it is prepublished and held by a majority of the voters. This server need not know the key
// yet. Errors are those of Rotate, and ErrUnknownKey if the key was dropped or removed.
func (k *Keyring) WaitRotated(ctx context.Context, id KeyID) (Key, error) {
	return led(ctx, k, func(ctx context.Context) (Key, error) {
		seen, active := false, true
		return k.server.awaitKey(ctx, meta.KeyID(id), func(m *meta.Key) bool {
			if !seen {
				seen, active = true, !m.Publish.After(k.server.Now())
			}
			return active
		}, false)
	})
}

// awaitKey waits until the new key is active or, if it need not be, held by a majority. known says that
// this server has applied what made it; if not, it follows, and that is on its way.
func (s *server) awaitKey(ctx context.Context, id meta.KeyID, active func(*meta.Key) bool, known bool) (key Key, err error) {
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
	return Key{ID: KeyID(id)}, fmt.Errorf("rotate: key %s: %w: %w", id, ErrNotDurable, err)
}
