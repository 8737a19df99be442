package replication

// Whether the keystore is the one that it was: its directory in its place, its ID the one under which keys were reported. The
// files that have KEKs are looked at with it.

import (
	"context"
	"slices"
	"time"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// placeEvery is how often the directory is looked for, and the files of KEKs are looked at.
const placeEvery = 30 * time.Second

// filesEvery is how often the files of the keys are looked for.
const filesEvery = 45 * time.Second

// lookAtPlace looks whether the directory of the keystore is where it was opened, and at the files of KEKs. It returns when
// to look again.
func (r *Replicator) lookAtPlace(ctx context.Context) mono.Time {
	if !r.Store.HasPlace() && !r.KEKs.HaveFiles() {
		return 0
	}
	if r.placing.due == 0 {
		r.placing.due = mono.Now().Add(placeEvery)
	}
	if wake, wait := r.placing.wait(mono.Now()); wait {
		return wake
	}
	r.start(ctx, &r.placing, func() {
		changed := r.Store.HasPlace() && r.Store.LookAtPlace()
		if r.KEKs.LookAtFiles() || changed {
			r.FSM.Notify()
		}
	})
	r.placing.due = mono.Now().Add(placeEvery)
	return 0
}

// lookForFiles looks whether the files of the keys are there, and returns when to look again. What is gone is written again from
// memory. A simulated directory, which nobody else can change, is left alone.
func (r *Replicator) lookForFiles(ctx context.Context, v local.View) mono.Time {
	if !r.Store.HasPlace() || !v.CaughtUp { // a key that is gone may have been removed
		return 0
	}
	if r.looking.due == 0 {
		r.looking.due = mono.Now().Add(filesEvery)
	}
	if wake, wait := r.looking.wait(mono.Now()); wait {
		return wake
	}
	r.start(ctx, &r.looking, func() {
		if r.Store.LookForFiles(ctx, v.Ring) {
			r.FSM.Notify()
		}
	})
	r.looking.due = mono.Now().Add(filesEvery)
	return 0
}

// isReplaced reports whether this server is recorded with another keystore than the one that it has. Before it has caught up,
// that may be outdated.
func (r *Replicator) isReplaced(ring *meta.Ring) bool {
	keystore, known := ring.Keystore(string(r.ID))
	return known && keystore != r.Store.ID()
}

// noteReplaced notes how many keys this server has held in another keystore, before its reports from this one take their
// place: until it has caught up, it sends none. Those that this one had at the start do not count: it was restored or copied.
func (r *Replicator) noteReplaced(v local.View) {
	if !v.CaughtUp || !r.isReplaced(v.Ring) {
		return
	}
	held := int64(0)
	for _, k := range v.Ring.Keys {
		if !r.found[k.ID] && slices.Contains(k.Holders, string(r.ID)) {
			held++
		}
	}
	r.replaced.Store(max(held, r.replaced.Load()))
}
