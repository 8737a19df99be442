package replication

// How the replicator gets keys from other servers, and takes those that the leader offers.

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
)

// wanted returns the missing keys for which peers are to be asked. What a peer has must not take
// the place of a file that may be the way back: one under a KEK that does not answer, or one of a
// removed key that heal has yet to take back. Nor need it be asked for what is on its way by an
// offer. Until this server has caught up, nothing takes the place of a key that is in memory either.
func (r *Replicator) wanted(v local.View, missing []*meta.Key) []*meta.Key {
	if len(missing) == 0 || r.Store.IsMoved() {
		return nil
	}
	here := r.Store.Present()
	come := here.Closed
	if r.healing.fresh() || !v.CaughtUp {
		come = append(come, here.SetAside...)
	}
	if !v.CaughtUp {
		come = append(come, here.InMemory...)
	}
	if come = append(come, r.offered.all()...); len(come) == 0 {
		return missing
	}
	comes := make(map[meta.KeyID]bool, len(come))
	for _, id := range come {
		comes[id] = true
	}
	return slices.DeleteFunc(slices.Clone(missing), func(m *meta.Key) bool { return comes[m.ID] })
}

// fetch starts the requests that plan wants and returns when to look again.
func (r *Replicator) fetch(ctx context.Context, ring *meta.Ring, missing []*meta.Key) mono.Time {
	_, leader := r.Raft.LeaderWithID()
	members := local.ServerIDs(r.Raft)
	if string(leader) != r.leader || !slices.Equal(members, r.members) {
		r.leader, r.members = string(leader), members
		r.pull.Retry()
	}
	sources := func(k *meta.Key) []string { return plan.Sources(k, string(r.ID), r.leader, r.members) }
	fetches, wake := r.pull.Next(mono.Now(), missing, sources, r.batches.Next, rand.Float64())
	for _, f := range fetches {
		keys := newKeys(ring, f.IDs)
		r.calls.Go(func() {
			got, wrong, err := r.fetchFrom(ctx, f.Peer, keys)
			r.send(ctx, r.answered, fetched{f, wrong, err})
			r.send(ctx, r.done, fetched{Fetch: f, err: r.keep(ctx, got)})
		})
	}
	return wake
}

// newKeys returns what is known of keys of the ring.
func newKeys(ring *meta.Ring, ids []meta.KeyID) (keys []meta.NewKey) {
	for _, id := range ids {
		keys = append(keys, ring.Key(id).New())
	}
	return keys
}

// send tells the loop, unless the loop has ended.
func (r *Replicator) send(ctx context.Context, to chan<- fetched, f fetched) {
	select {
	case to <- f:
	case <-ctx.Done():
	}
}

// fetchFrom asks one peer for keys, and returns those whose check value is the one that is wanted, and the IDs of those
// whose is another one. The error says that the peer's answer, or a part of it, was of no use, or that none has come in time;
// a key it does not have is no error. What has come before an error is returned too.
func (r *Replicator) fetchFrom(ctx context.Context, from string, keys []meta.NewKey) (got []keystore.Key, wrong []meta.KeyID, err error) {
	var bad error
	_, err = local.InBatches(ctx, &r.batches, from, keys, func(ctx context.Context, batch []meta.NewKey) error {
		wanted, ids := map[meta.KeyID]meta.NewKey{}, []meta.KeyID{}
		for _, key := range batch {
			wanted[key.ID], ids = key, append(ids, key.ID)
		}
		return r.Patient.Fetch(ctx, from, func() meta.ClusterID { return r.FSM.Ring().Cluster }, ids, func(id meta.KeyID, material []byte) {
			key := wanted[id]
			m, err := nks.Decode(material)
			if err != nil || !rightCheck(m, key) {
				bad = fmt.Errorf("fetch from %s: key %s: %w: check value", from, id, fsm.ErrCorrupt)
				wrong = append(wrong, id)
				m.Wipe()
				return
			}
			got = append(got, keystore.Key{ID: key.ID, Algorithm: key.Algorithm, Check: key.Check, Created: key.Created, Secret: m})
		})
	})
	if err == nil {
		err = bad
	}
	return got, wrong, err
}

// keep makes durable what has come.
func (r *Replicator) keep(ctx context.Context, got []keystore.Key) (err error) {
	for i, failed := range r.Store.Put(ctx, got...) {
		if failed != nil && ctx.Err() == nil {
			r.Logger.Error("could not write a key file", "key", got[i].ID, "error", failed)
			err = errors.Join(err, fmt.Errorf("write key file %s: %w", got[i].ID, failed))
		}
	}
	r.FSM.Notify() // for WaitReady
	return err
}

func rightCheck(m *nks.Material, key meta.NewKey) bool {
	check := m.Check(key.ID, key.Algorithm)
	return hmac.Equal(check[:], key.Check[:])
}

// fetched is the end of one fetch, or of the writing of what it brought.
type fetched struct {
	plan.Fetch
	wrong []meta.KeyID // whose material was not that of the key
	err   error
}

// written takes into account that nothing more comes of a fetch. A file that could not be written is
// not the peer's fault: nothing is asked of anybody for a while.
func (r *Replicator) written(f fetched) {
	if f.err != nil {
		r.paused = mono.Now().Add(plan.Backoff(r.unwritten, rand.Float64()))
		r.unwritten++
	} else {
		r.unwritten = 0
	}
	r.pull.Done(f.Fetch)
}

// TakeOffer fetches a key that the leader is about to add, and says whether it is held
// now. If the leader fails in between, an orphan file is left.
func (r *Replicator) TakeOffer(ctx context.Context, from string, key meta.NewKey, configuration uint64) (peer.Held, error) {
	if _, leader := r.Raft.LeaderWithID(); string(leader) != from {
		return peer.Held{}, &peer.Refusal{Code: peer.NotLeader, Leader: string(leader)}
	}
	id := key.ID
	if why := key.Newer(); why != "" {
		r.Logger.Warn("did not take an offered key", "key", id, "reason", why)
		return r.HeldHere(ctx, []meta.KeyID{id})
	}
	// A server that is behind the leader's configuration does not know who was removed before this key
	// was made. It gets the key with the log.
	behind := r.Raft.AppliedIndex() < configuration
	if !behind && !r.FSM.Ring().WasRemoved(id) && !r.Store.InMemory(id) && r.offered.add(id) {
		got, _, err := r.fetchFrom(ctx, from, []meta.NewKey{key})
		err = errors.Join(err, r.keep(ctx, got))
		r.offered.remove(id)
		if err != nil {
			r.Logger.Debug("could not take an offered key", "key", id, "error", err)
			r.Store.Discard(id) // the ring may never know it; if it does, it is fetched
		}
	}
	return r.HeldHere(ctx, []meta.KeyID{id})
}

// offered are the keys that are on their way by an offer.
type offered struct {
	mu  sync.Mutex // guards below
	ids []meta.KeyID
}

// maxOffered bounds the offers that are taken up at a time.
const maxOffered = 16

// add notes a key, unless it is noted or there is no room.
func (o *offered) add(id meta.KeyID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if slices.Contains(o.ids, id) || len(o.ids) == maxOffered {
		return false
	}
	o.ids = append(o.ids, id)
	return true
}

func (o *offered) remove(id meta.KeyID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids = slices.DeleteFunc(o.ids, func(i meta.KeyID) bool { return i == id })
}

func (o *offered) all() []meta.KeyID {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.ids)
}
