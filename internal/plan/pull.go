package plan

import (
	"cmp"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// Bounds on what one server asks of others.
const (
	MaxFetch    = 64            // key IDs in one request
	maxUnderWay = 16 * MaxFetch // keys that are asked for, or have come and are being written
)

// Missing returns the keys of the ring that the server lacks, in the order in which it needs them: the active one,
// those that are about to be active, and then the newest first. Keys that only a newer build can use are left to that.
func Missing(r *meta.Ring, has func(meta.KeyID) bool) []*meta.Key {
	var keys []*meta.Key
	for _, k := range r.Keys {
		if !has(k.ID) && k.Newer() == "" {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b *meta.Key) int {
		return cmp.Or(cmp.Compare(urgency(a), urgency(b)), cmp.Compare(b.CreateIndex, a.CreateIndex))
	})
	return keys
}

func urgency(k *meta.Key) int {
	switch k.State {
	case meta.StateActive:
		return 0
	case meta.StatePrepublished:
		return 1
	}
	return 2
}

// Sources returns the servers to ask for a key, in order: the leader, the recorded holders, and then every other server,
// since the records can be out of date.
func Sources(k *meta.Key, self, leader string, servers []string) []string {
	order := func(s string) int {
		switch {
		case s == leader:
			return 0
		case k.HeldBy(s):
			return 1
		}
		return 2
	}
	sources := slices.DeleteFunc(slices.Clone(servers), func(s string) bool { return s == self })
	slices.SortStableFunc(sources, func(a, b string) int { return order(a) - order(b) })
	return sources
}

// Fetch is one request for keys.
type Fetch struct {
	Peer string
	IDs  []meta.KeyID
}

// Pull keeps track of the keys that a server lacks and has asked for. Keys are independent: a key that nobody has delays
// no other key. A peer that has failed is asked last for a while. The zero value is ready to use.
type Pull struct {
	keys  map[meta.KeyID]*pulling
	peers map[string]*peer
}

// pulling is one missing key. A round asks every source once.
type pulling struct {
	index    uint64   // the key's ModifyIndex: when it changes, there may be a new holder
	asked    []string // in this round
	attempts int      // rounds that ended without it
	next     mono.Time
	inFlight bool
}

type peer struct {
	inFlight int
	failures int
	badUntil mono.Time
}

// Next returns the requests to make now, and when to call it again if nothing happens before: zero is never. missing is
// in the order of urgency. batch says how many keys a request to a server may be about.
func (p *Pull) Next(now mono.Time, missing []*meta.Key, sources func(*meta.Key) []string, batch func(server string) Batch, jitter float64) ([]Fetch, mono.Time) {
	p.track(missing)
	var fetches []Fetch
	var wake soonest
	underWay := p.underWay()
	for _, m := range missing {
		k := p.keys[m.ID]
		if k.inFlight {
			continue
		}
		if underWay == maxUnderWay {
			break // there is room again when some of them are Done
		}
		if k.next > now {
			wake.add(k.next)
			continue
		}
		from, more := p.source(now, k, sources(m))
		if !more { // the round is over
			k.next = now.Add(pause(k.attempts, jitter))
			k.attempts++
			k.asked = nil
			wake.add(k.next)
			continue
		}
		if fetches = p.ask(fetches, from, batch(from), m.ID); k.inFlight {
			underWay++
		}
	}
	return fetches, wake.at
}

// Asks reports whether a request to a server is under way.
func (p *Pull) Asks(server string) bool {
	return p.peers[server] != nil && p.peers[server].inFlight > 0
}

// Busy reports whether keys are under way.
func (p *Pull) Busy() bool { return p.underWay() > 0 }

func (p *Pull) underWay() (n int) {
	for _, k := range p.keys {
		if k.inFlight {
			n++
		}
	}
	return n
}

// pause is how long a key waits for its next round. A round asks every server, and a change that can help starts a new
// one at once. So after some minutes there are ten between two rounds.
func pause(attempts int, jitter float64) time.Duration {
	d := Backoff(attempts, jitter)
	if attempts >= 15 {
		d *= 10
	}
	return d
}

// source picks the server to ask next in the key's round: the first that has not been asked, with those that failed
// lately last.
func (p *Pull) source(now mono.Time, k *pulling, sources []string) (string, bool) {
	last, more := "", false
	for _, s := range sources {
		if slices.Contains(k.asked, s) {
			continue
		}
		if pr := p.peers[s]; pr == nil || pr.badUntil <= now {
			return s, true
		}
		if !more {
			last, more = s, true
		}
	}
	return last, more
}

// ask adds the key to a request for the peer, while the peer has room for one.
func (p *Pull) ask(fetches []Fetch, from string, batch Batch, id meta.KeyID) []Fetch {
	k := p.keys[id]
	for i := range fetches {
		if f := &fetches[i]; f.Peer == from && len(f.IDs) < batch.Size() {
			f.IDs = append(f.IDs, id)
			k.inFlight = true
			k.asked = append(k.asked, from)
			return fetches
		}
	}
	if p.peers[from] == nil {
		p.peers[from] = &peer{}
	}
	if p.peers[from].inFlight >= batch.AtOnce() {
		return fetches // there is room again when one of them is Done
	}
	p.peers[from].inFlight++
	k.inFlight = true
	k.asked = append(k.asked, from)
	return append(fetches, Fetch{Peer: from, IDs: []meta.KeyID{id}})
}

// Answered takes the end of a request into account: the peer has room for another one while the keys that came are
// written. failed says that its answer could not be used.
func (p *Pull) Answered(f Fetch, failed bool, now mono.Time, jitter float64) {
	pr := p.peers[f.Peer]
	if pr == nil {
		return
	}
	pr.inFlight--
	if !failed {
		pr.failures, pr.badUntil = 0, 0
		return
	}
	pr.badUntil = now.Add(Backoff(pr.failures+3, jitter))
	pr.failures++
}

// Done says that the keys of a request have been written or given up. Next learns from the missing keys which of them
// are here. Done comes after Answered.
func (p *Pull) Done(f Fetch) {
	for _, id := range f.IDs {
		if k := p.keys[id]; k != nil {
			k.inFlight = false
		}
	}
}

// Retry starts a new round for every key that waits for one, because a change may help, such as a new leader or
// configuration.
func (p *Pull) Retry() {
	for _, k := range p.keys {
		k.newRound()
	}
}

// track drops the keys that are no longer missing, makes room for new ones, and starts a
// new round for those whose metadata has changed.
func (p *Pull) track(missing []*meta.Key) {
	if p.peers == nil {
		p.peers = map[string]*peer{}
	}
	keys := make(map[meta.KeyID]*pulling, len(missing))
	for _, m := range missing {
		k := p.keys[m.ID]
		if k == nil {
			k = &pulling{}
		}
		if k.index != m.ModifyIndex {
			k.index = m.ModifyIndex
			k.newRound()
		}
		keys[m.ID] = k
	}
	p.keys = keys
}

// newRound has every source asked once more. While a request is under way its peer is asked again too: it may have got
// the key since then.
func (k *pulling) newRound() {
	k.asked, k.next = nil, 0
}

// Report returns what the server has to tell the leader: the keys of the ring that it holds without being recorded as a
// holder, and those that it is recorded for and does not hold. If another keystore is recorded than the present
// one, every key that it holds is new.
func Report(r *meta.Ring, self string, keystore meta.KeystoreID, has func(meta.KeyID) bool) (gained, lost []meta.KeyID) {
	recorded, known := r.Keystore(self)
	same := known && recorded == keystore
	for _, k := range r.Keys {
		switch held := has(k.ID); {
		case held && (!same || !k.HeldBy(self)):
			gained = append(gained, k.ID)
		case !held && k.HeldBy(self):
			lost = append(lost, k.ID)
		}
	}
	return gained, lost
}

// IsUrgent reports whether a report is urgent: it is about a key that seals, or is about to.
func IsUrgent(r *meta.Ring, gained []meta.KeyID) bool {
	return slices.ContainsFunc(gained, func(id meta.KeyID) bool {
		k := r.Key(id)
		return k != nil && urgency(k) < urgency(&meta.Key{State: meta.StateInactive})
	})
}
