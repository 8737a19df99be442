// Package plan makes the keyring's decisions and does not act on them. Every function is pure: no clock, no
// randomness, no I/O, no goroutines. The ring, the raft configuration, the time and all randomness are arguments. The
// goroutines of package keyring ask it what to do, do it, and come back with the outcome.
//
//	Next      what the leader does next, and when to look again
//	IsPending     whether the leader still waits for holders of a key
//	Confirmed whether a majority of the voters holds a key that came with a snapshot
//	FirstKeyWaits  which servers the first key waits for
//	Judge     what the answers to the live question allow
//	Pull      which missing key to ask which server for, and when again
//	Report    what a server has to tell the leader about the keys it holds
//	Reached   whether a server has caught up since its start
//	Orphans   which key files the keyring does not know
//	Progress  how far another server is in raft's log
//	CleanUp      what becomes of the files of removed keys
//	DecideRemoval  what removing a key takes
//	Needed    which keys something may be sealed under, now or soon
//	Unsafe    which keys a change of voters would put at risk
//	SameRotation    which keys are on their way by the same rotation
//	Rekeying  which keys' data is to be moved
//	ScanFrom  when a scan that finds no more of it counts
//
//	NextBackup   when a backup by schedule is due
//	Promotable   which members are to get a vote
//	JoinRefusal  why a token lets a server not join
//	EndedTokens  which tokens the leader is to end
//	RingClock     which times in the ring a server can believe
//	Clocks    whose clocks are right
//
//	VerifiesUntil   how long a key's tokens verify
//	MaxAge          how long its public half may be cached
package plan

import (
	"math"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
)

// Policy is the rotation policy with every default filled in.
type Policy struct {
	Every time.Duration // from one activation to the next; zero or less disables rotation
	Lead  time.Duration // how long before its activation a scheduled key is prepublished
	// Retain is how long after its retirement a key is kept: not less than its tokens live. Zero
	// keeps it for ever.
	Retain time.Duration
}

// Settle is how long verifiers may use a cached JWKS, unless the policy's lead is shorter. A scheduled key is never
// activated sooner than this and a tenth more after it was made, however late it was made: before it is in the
// JWKS of every server, it has to be generated, written, committed and replicated.
const Settle = 5 * time.Minute

// patience is how long a prepublished key may be short of holders before the leader asks all servers about it, and how
// long a leader may lack the active key. Replication takes milliseconds; this is for when it fails.
const patience = 10 * time.Second

// Situation is what the leader knows when it asks what to do next. It has applied the
// barrier of its own term.
type Situation struct {
	Now     time.Time // by the wall clock, as the times in the ring
	Mono    mono.Time // the same moment by the monotonic clock, as all waits in memory
	Policy  Policy
	Voters  []string // of the latest raft configuration
	Servers []string // all of it, voters included
	Has     func(meta.KeyID) bool
	// HelloFrom are the servers of the configuration, once each one that has to has told its build, its keystore
	// and its orphans. It is nil before, and again after a step of the leader has failed: the answers may be
	// out of date, and a server that was left out may be up again.
	HelloFrom    []string
	Orphans      int // how many keys they have reported that the ring does not know
	Probes       map[meta.KeyID]Probe
	Retry        mono.Time // after a failed step the leader only asks questions before this
	LackingSince mono.Time // since when it has led without holding the active key; zero if it holds it
	Term         uint64    // raft's term in which it leads
	Clocks       Clocks
	SkewedSince  mono.Time // since when it has led with a wrong clock; zero if the clock is right
	// Unconfirmed says that the active key came with a snapshot, and that no majority of the voters has said
	// since then, asked live, that it holds the key.
	Unconfirmed bool
	// Unmarked says that the FSM has applied no entry of the keyring since its last restore, so that the
	// leader can't name one to servers that want to know whether they have caught up.
	Unmarked bool
	Tokens   SnapshotTokens // join tokens that are known from a snapshot only
}

// Probe is the outcome of the live question about a key. The leader keeps it in memory for its term.
type Probe struct {
	Attempts int
	Index    uint64    // the key's ModifyIndex when it was asked
	Next     mono.Time // not to be asked again before
	Blocked  bool      // most voters have answered, and nobody holds it
}

// Kind says what an Action is.
type Kind string

// What a leader can have to do.
const (
	Mark      Kind = "mark"      // make an entry that changes nothing, up to which the others can catch up
	Wait      Kind = "wait"      // nothing until Until, or until something changes
	SayHello  Kind = "hello"     // ask every server for its build, keystore and orphans
	Bootstrap Kind = "bootstrap" // name the cluster, and adopt the orphans
	Create    Kind = "create"    // make a key and add it, to be activated at At, zero at once
	Confirm   Kind = "confirm"   // ask live who of the voters holds Key, the active one
	Ask       Kind = "ask"       // ask live who holds Key, then Judge
	Forget    Kind = "forget"    // drop the records of Servers that have left
	Rekey     Kind = "rekey"     // have the data of Key moved, and then Key removed
	Remove    Kind = "remove"    // remove Key, under which nothing is sealed
	End       Kind = "end"       // end the join tokens Tokens
	Compare   Kind = "compare"   // ask every server for its time
	// EndNonvoters is to end the records of Servers as permanent non-voters: they have left, or vote.
	EndNonvoters Kind = "end non-voters"
	// HandOver is to hand leadership to one of Servers, whose clocks are right, because this clock is wrong.
	HandOver Kind = "hand over"
	Backup   Kind = "backup"  // make a backup: see NextBackup
	Resign   Kind = "resign"  // hand leadership to a voter that holds Key, the active one
	Nothing  Kind = "nothing" // wait for a change; no time helps
)

// Proves reports whether a success shows that other steps may work again. A question that was answered does not.
func (k Kind) Proves() bool { return k != SayHello && k != Ask && k != Confirm && k != Compare }

// Action is what the leader does next.
type Action struct {
	Kind      Kind
	Key       meta.KeyID
	At        time.Time // of Create
	Until     mono.Time // of Wait; a time of the wall clock is converted, as if nobody set that clock meanwhile
	Scheduled bool
	Servers   []string
	Tokens    []meta.TokenID
}

// Next returns what the leader has to do. It is level-triggered: the answer follows from the ring and the situation
// only, so a new leader goes on where the old one stopped.
func Next(r *meta.Ring, s Situation) Action {
	a := soonest{}
	if s.Unmarked && r.Cluster != (meta.ClusterID{}) && len(s.Servers) > 1 {
		if s.Retry <= s.Mono {
			return Action{Kind: Mark}
		}
		a.add(s.Retry)
	}
	if f := forget(r, s); f.Kind != "" {
		if s.Retry <= s.Mono {
			return f
		}
		a.add(s.Retry)
	}
	if k := r.Active(); k != nil && s.Unconfirmed {
		at := s.Probes[k.ID].again(k, s.Mono)
		if at <= s.Mono {
			return Action{Kind: Confirm, Key: k.ID}
		}
		a.add(at)
	}
	if end, at := endTokens(r, s); at <= s.Mono {
		return end
	} else {
		a.add(at)
	}
	if BeforeFirstKey(r) {
		if s.Retry > s.Mono {
			return Action{Kind: Wait, Until: s.Retry}
		}
		if len(s.HelloFrom) == 0 || !slices.Equal(s.HelloFrom, s.Servers) {
			return Action{Kind: SayHello}
		}
		if r.Cluster == (meta.ClusterID{}) || s.Orphans > 0 {
			return Action{Kind: Bootstrap}
		}
	}
	if at := resignAt(r, s); at <= s.Mono {
		return Action{Kind: Resign, Key: r.Active().ID}
	} else {
		a.add(at)
	}
	if hand, at := handOver(r, s); at <= s.Mono {
		return hand
	} else {
		a.add(at)
	}
	return nextForKeys(r, s, a)
}

// nextForKeys is the part of Next that goes through the keys. a is when anything else is due.
func nextForKeys(r *meta.Ring, s Situation, a soonest) Action {
	for _, k := range r.Prepublished() {
		if k.Newer() != "" {
			continue // a leader of a newer build activates it
		}
		ask, at := Action{Kind: Ask, Key: k.ID}, askAt(r, k, s)
		if k.Scheduled && !DueAt(r, k, s.Policy).After(s.Now) {
			ask, at = s.onceClockIsRight(r, ask, at)
		}
		if at <= s.Mono {
			return ask
		}
		a.add(at)
	}
	if create, at := createAt(r, s); at <= s.Mono {
		return create
	} else {
		a.add(at)
	}
	for _, k := range r.Keys {
		todo, at := nextForRetired(r, k, s)
		if at <= s.Mono {
			return todo
		}
		a.add(at)
	}
	return a.action()
}

// resignAt is when a leader that lacks the active key hands over: nothing can be sealed or signed until another server
// leads.
func resignAt(r *meta.Ring, s Situation) mono.Time {
	if r.Active() == nil || s.LackingSince == 0 || len(s.Voters) < 2 {
		return never
	}
	return max(s.LackingSince.Add(patience), s.Retry)
}

// never is later than every moment that a plan waits for.
const never = mono.Time(math.MaxInt64)

// mono returns the moment at which the wall clock will show a time, if nobody sets that clock.
func (s Situation) mono(at time.Time) mono.Time { return s.Mono.Add(at.Sub(s.Now)) }

// soonest is the earliest of the moments that were added, zero if none was.
type soonest struct{ at mono.Time }

func (s *soonest) add(at mono.Time) {
	if at != never && (s.at == 0 || at < s.at) {
		s.at = at
	}
}

func (s *soonest) action() Action {
	if s.at == 0 {
		return Action{Kind: Nothing}
	}
	return Action{Kind: Wait, Until: s.at}
}

// askAt is when the live question about a prepublished key is due. If a majority holds the key, that is its time of
// activation; if fewer do, it is when patience ends. A failed question backs off, until the key's holders change.
func askAt(r *meta.Ring, k *meta.Key, s Situation) mono.Time {
	at := s.mono(k.Created.Add(patience))
	if Majority(s.Voters, k.Holders) {
		at = s.mono(DueAt(r, k, s.Policy))
	}
	return s.Probes[k.ID].again(k, at)
}

// again is when a question is asked that is due at that time. After a failed one it backs off, until the key's holders
// change.
func (p Probe) again(k *meta.Key, due mono.Time) mono.Time {
	if p.Attempts > 0 && p.Index == k.ModifyIndex {
		return max(due, p.Next)
	}
	return due
}

// IsPending reports whether a key waits for the outcome of the live question: it is prepublished, and due or short of
// holders.
func IsPending(r *meta.Ring, id meta.KeyID, s Situation) bool {
	k := r.Key(id)
	return k != nil && k.State == meta.StatePrepublished &&
		(!Majority(s.Voters, k.Holders) || !DueAt(r, k, s.Policy).After(s.Now))
}

// DueAt is when a prepublished key is to be activated. For a scheduled key the period starts with the activation of the
// present key: a rotation by hand in between moves it.
func DueAt(r *meta.Ring, k *meta.Key, p Policy) time.Time {
	active := r.Active()
	if !k.Scheduled || active == nil || p.Every <= 0 {
		return k.Publish
	}
	if next := active.Activated.Add(p.Every); next.After(k.Publish) {
		return next
	}
	return k.Publish
}

// NextRotation is when a key is to take over from the active one: the first of the prepublished keys, or one that has
// not been made yet. Zero is never, or as soon as possible.
func NextRotation(r *meta.Ring, p Policy) time.Time {
	var next time.Time
	for _, k := range r.Prepublished() {
		if due := DueAt(r, k, p); next.IsZero() || due.Before(next) {
			next = due
		}
	}
	if active := r.Active(); next.IsZero() && active != nil && p.Every > 0 {
		next = active.Activated.Add(p.Every)
	}
	return next
}

// createAt is when the leader makes a key of its own accord, and the action that does it: a first key when there is
// none to seal with, and a scheduled key ahead of the next rotation. It makes no key while another is on its way,
// unless that one is blocked, or only a newer build can use it. It makes no successor to an active key whose material it lacks: the operator has to
// hear of that first.
func createAt(r *meta.Ring, s Situation) (Action, mono.Time) {
	active := r.Active()
	for _, k := range r.Prepublished() {
		p := s.Probes[k.ID]
		blocked := p.Blocked && p.Index == k.ModifyIndex || k.Newer() != "" // else it has been heard of since
		if !blocked && (k.Scheduled || active == nil) {
			return Action{}, never
		}
	}
	if active == nil {
		return Action{Kind: Create, Scheduled: true}, s.Retry
	}
	if s.Policy.Every <= 0 || !s.Has(active.ID) {
		return Action{}, never
	}
	due := active.Activated.Add(s.Policy.Every)
	settle := min(s.Policy.Lead, Settle)
	if earliest := s.Now.Add(settle + settle/10); due.Before(earliest) {
		due = earliest
	}
	at := s.mono(active.Activated.Add(s.Policy.Every - s.Policy.Lead))
	return s.onceClockIsRight(r, Action{Kind: Create, Scheduled: true, At: due}, max(at, s.Retry))
}

// Majority reports whether more than half of the voters are among the servers.
func Majority(voters, servers []string) bool {
	n := 0
	for _, v := range voters {
		if slices.Contains(servers, v) {
			n++
		}
	}
	return n > len(voters)/2
}
