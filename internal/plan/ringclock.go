package plan

import (
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// RingClock reads the times in the ring by the clock of this server. A time that lies further ahead than clocks may differ
// can't be right: either the leader's clock was ahead when it wrote that time, or this server's clock is behind. The
// server then uses another time of the same key, or the time when it first saw the wrong one. So an event that is due
// some time after the wrong time comes that long after it was seen, and not years later.
type RingClock struct {
	Now    time.Time               // by the wall clock
	Mono   mono.Time               // the same moment by the monotonic clock
	Leeway time.Duration           // by how much two clocks may differ
	First  map[time.Time]mono.Time // when the server first saw a time that lay ahead
}

// Ahead reports whether a time lies further ahead than clocks may differ.
func (s RingClock) Ahead(t time.Time) bool { return t.After(s.Now.Add(s.Leeway)) }

// seen returns when a time that lies ahead was first seen, and any other time as it is.
func (s RingClock) seen(t time.Time) time.Time {
	if !s.Ahead(t) {
		return t
	}
	first, known := s.First[t]
	if !known {
		return s.Now
	}
	return s.Now.Add(-s.Mono.Sub(first))
}

// Remember returns First with those of these times that lie ahead, and without those that no longer do.
func (s RingClock) Remember(times ...time.Time) map[time.Time]mono.Time {
	first := map[time.Time]mono.Time{}
	for t, at := range s.First {
		if s.Ahead(t) {
			first[t] = at
		}
	}
	for _, t := range times {
		if _, known := first[t]; s.Ahead(t) && !known {
			first[t] = s.Mono
		}
	}
	return first
}

// Times are all times in the ring's keys that were in the past when they were written.
func Times(r *meta.Ring) []time.Time {
	times := make([]time.Time, 0, 3*len(r.Keys))
	for _, k := range r.Keys {
		times = append(times, k.Created, k.Activated, k.Retired)
	}
	return times
}

// Latest is the latest of them.
func Latest(r *meta.Ring) (latest time.Time) {
	for _, k := range r.Keys {
		for _, t := range []time.Time{k.Created, k.Activated, k.Retired} {
			if t.After(latest) {
				latest = t
			}
		}
	}
	return latest
}

// Correct returns the ring with times that the server can believe. It returns r itself if none lies ahead.
func (s RingClock) Correct(r *meta.Ring) *meta.Ring {
	if !s.Ahead(Latest(r)) {
		return r
	}
	return r.With(func(k *meta.Key) {
		was := *k
		k.Created = s.seen(was.Created)
		k.Publish = s.publish(&was)
		k.Activated = s.activated(&was)
		k.Retired = s.retired(r, &was)
	})
}

// publish is when the key may be activated. A time that an operator has asked for is right; a scheduled time was computed
// by the clock that wrote the key's creation.
func (s RingClock) publish(k *meta.Key) time.Time {
	if !k.Scheduled || k.Publish.IsZero() || !s.Ahead(k.Created) {
		return k.Publish
	}
	return s.seen(k.Created).Add(k.Publish.Sub(k.Created))
}

// activated is when the key became active. It was not before it was made, nor before it was due.
func (s RingClock) activated(k *meta.Key) time.Time {
	switch {
	case !s.Ahead(k.Activated):
		return k.Activated
	case s.Ahead(k.Created):
		return s.seen(k.Activated)
	case k.Publish.After(k.Created) && !k.Publish.After(s.Now):
		return k.Publish
	}
	return k.Created
}

// retired is when the key stopped being active, which is when another became so.
func (s RingClock) retired(r *meta.Ring, k *meta.Key) time.Time {
	if !s.Ahead(k.Retired) {
		return k.Retired
	}
	for _, next := range r.Keys {
		if next.ID != k.ID && next.Activated.Equal(k.Retired) {
			return s.activated(next)
		}
	}
	return s.seen(k.Retired)
}

// Implausible is a time in the ring that lies ahead.
type Implausible struct {
	Key  meta.KeyID
	What string // happened to the key
	Time time.Time
}

// Implausible returns the times in the ring that lie ahead, for each key the latest step's.
func (s RingClock) Implausible(r *meta.Ring) (all []Implausible) {
	if !s.Ahead(Latest(r)) {
		return nil
	}
	for _, k := range r.Keys {
		switch {
		case s.Ahead(k.Retired):
			all = append(all, Implausible{k.ID, "retired", k.Retired})
		case s.Ahead(k.Activated):
			all = append(all, Implausible{k.ID, "activated", k.Activated})
		case s.Ahead(k.Created):
			all = append(all, Implausible{k.ID, "created", k.Created})
		}
	}
	return all
}

// ActivateAt is the time to write for an activation: that of the clock, but after the activation before. So no key is
// retired before it was activated, and no two keys are activated at the same time.
func ActivateAt(r *meta.Ring, now time.Time) time.Time {
	if active := r.Active(); active != nil && !now.After(active.Activated) {
		return active.Activated.Add(1)
	}
	return now
}

// RemoveAt is the time to write for the removal of a key: that of the clock, but not before its retirement.
func RemoveAt(r *meta.Ring, id meta.KeyID, now time.Time) time.Time {
	if k := r.Key(id); k != nil && now.Before(k.Retired) {
		return k.Retired
	}
	return now
}
