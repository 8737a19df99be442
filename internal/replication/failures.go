package replication

// Servers whose answers to a fetch were of no use, for Status, until they answer.

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
)

// failure is that of a server that gave no usable answer to the last fetches from it. It is looked into: the server is asked
// again, now and then, also when nothing is missing here any more. So Status does not tell of what has passed.
type failure struct {
	local.Failure
	ids     []meta.KeyID // what it is asked for again
	wrong   bool         // their material was not right: other keys don't tell that it is now
	tries   int
	due     mono.Time // when it is asked again, unless a key is missing that it is asked for before
	running bool      // it is being asked
}

// failures are those of all servers.
type failures struct {
	mu sync.Mutex // guards below
	by map[string]*failure
}

func (f *failures) status() map[string]local.Failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]local.Failure{}
	for server, one := range f.by {
		all[server] = one.Failure
	}
	return all
}

// Status is what a server lacks, and of which others it gets no usable answer.
type Status struct {
	Failures map[string]local.Failure // by server
	Lacking  map[meta.KeyID]mono.Time // since when a key of the ring is missing here; not to be changed
	Replaced int                      // how many keys that this keystore lacked at the start this server had in another one, by raft
}

// Status is what is known now.
func (r *Replicator) Status() Status {
	s := Status{Failures: r.failures.status(), Replaced: int(r.replaced.Load())}
	if lacking := r.lackingBy.Load(); lacking != nil {
		s.Lacking = *lacking
	}
	return s
}

// noteLacking notes which keys are missing. The loop calls it.
func (r *Replicator) noteLacking(missing []*meta.Key) {
	was, next, now := r.Status().Lacking, make(map[meta.KeyID]mono.Time, len(missing)), mono.Now()
	for _, m := range missing {
		if next[m.ID] = was[m.ID]; next[m.ID] == 0 {
			next[m.ID] = now
		}
	}
	r.lackingBy.Store(&next)
}

// note notes how a fetch has ended, and reports whether the server had failed before and has not now.
func (f *failures) note(of fetched) (cured bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.by[of.Peer]
	if of.err == nil {
		return f.answered(of, was)
	}
	now := mono.Now()
	next := &failure{Failure: local.Failure{Err: of.err, Since: now}, ids: of.wrong, wrong: len(of.wrong) > 0}
	if was != nil {
		next.Since, next.tries, next.running = was.Since, was.tries+1, was.running
		if was.wrong {
			next.ids, next.wrong = union(was.ids, of.wrong), true
		}
	}
	if !next.wrong {
		next.ids = of.IDs[:1] // any answer tells
	}
	next.due = now.Add(plan.Backoff(next.tries+3, rand.Float64()))
	if f.by == nil {
		f.by = map[string]*failure{}
	}
	f.by[of.Peer] = next
	return false
}

// answered notes that a server has answered, and reports whether that is the end of its failure.
func (f *failures) answered(of fetched, was *failure) (cured bool) {
	if was == nil {
		return false
	}
	if was.wrong {
		was.ids = slices.DeleteFunc(slices.Clone(was.ids), func(id meta.KeyID) bool { return slices.Contains(of.IDs, id) })
		if len(was.ids) > 0 {
			return false
		}
	}
	delete(f.by, of.Peer)
	return true
}

// union has each ID once.
func union(a, b []meta.KeyID) []meta.KeyID {
	all := slices.Concat(a, b)
	slices.SortFunc(all, func(a, b meta.KeyID) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(all)
}

// due returns the fetches that are to be made again now, and when to look again. It forgets servers that have left, and
// those of which only keys were wanted that have gone. A server that is being asked anyway will tell.
func (f *failures) due(ring *meta.Ring, members []string, asks func(server string) bool) (again []plan.Fetch, wake mono.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.by, func(server string, one *failure) bool {
		one.ids = slices.DeleteFunc(slices.Clone(one.ids), func(id meta.KeyID) bool { return ring.Key(id) == nil })
		return len(one.ids) == 0 || !slices.Contains(members, server)
	})
	for server, one := range f.by {
		switch {
		case one.running || asks(server):
		case one.due > mono.Now():
			wake = mono.Earliest(wake, one.due)
		default:
			one.running = true
			again = append(again, plan.Fetch{Peer: server, IDs: one.ids})
		}
	}
	return again, wake
}

// ended notes that a server was asked again.
func (f *failures) ended(server string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one := f.by[server]; one != nil {
		one.running = false
	}
}

// recheck asks servers again that gave no usable answer, and returns when to look again.
func (r *Replicator) recheck(ctx context.Context, ring *meta.Ring) mono.Time {
	again, wake := r.failures.due(ring, r.members, r.pull.Asks)
	for _, f := range again {
		keys := newKeys(ring, f.IDs)
		r.calls.Go(func() {
			got, wrong, err := r.fetchFrom(ctx, f.Peer, keys)
			for _, k := range got {
				k.Secret.Wipe()
			}
			r.send(ctx, r.rechecked, fetched{f, wrong, err})
		})
	}
	return wake
}
