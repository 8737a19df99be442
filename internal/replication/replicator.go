// Package replication brings a server the keys that it lacks, and tells the leader which it holds. [Replicator] is one
// goroutine: changes of the ring and of the keystore wake it, and internal/plan says what it fetches and from which server. It also
// sees to files that have come back or are gone, and to those of removed keys.
package replication

// The goroutine that fetches the keys that this server lacks, and reports those that it holds.

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/plan"
)

const (
	reportRetry    = 2 * time.Second // until a report that had no effect is sent again
	maxReportRetry = time.Minute     // the longest of these waits; each is twice the one before, if the report has arrived
	firstScan      = time.Second     // until the directory is read again when a key is missing
	scanRetry      = time.Minute     // until it is read yet again, at most
	reportBatch    = 1024            // keys in one report: 36 KiB, which a slow link carries in time
	renewEvery     = time.Second     // between two tables of Decrypt while keys are under way
	reportEvery    = time.Second     // between reports while keys are under way, unless one is pressing
)

// Replicator is the goroutine that brings this server what it lacks and tells the leader
// what it holds. It is woken by the FSM and asks plan what to do.
type Replicator struct {
	*local.Server
	Config
	unlinker unlinker

	offered  offered // to this server, and being fetched
	pull     plan.Pull
	batches  local.Batches // of keys, by the server that is asked
	calls    sync.WaitGroup
	done     chan fetched
	answered chan fetched
	leader   string
	members  []string
	reported report       // the last one sent
	told     mono.Time    // when that was
	resend   mono.Time    // when it is due again if nothing came of it
	repeats  atomic.Int32 // how often it has arrived and nothing came of it

	restores  uint64 // of the FSM, before this step read the ring
	refreshed keySet
	renewed   mono.Time            // when the table of Decrypt was built last
	counted   *meta.Ring           // in which
	empty     int                  // so many keys have nothing sealed under them
	seen      look                 // what was found when the ring or the keystore changed last
	lacking   []meta.KeyID         // what was missing when it was looked at last
	healed    bool                 // and whether this server had caught up then
	healing   backgroundTask       // reads the directory again while keys are missing
	cleaning  backgroundTask       // sees to the files of removed keys
	placing   backgroundTask       // looks whether the directory is in its place
	looking   backgroundTask       // looks for the files of keys
	found     map[meta.KeyID]bool  // in the keystore at this start
	replaced  atomic.Int64         // so many other keys this server had in another keystore, by raft
	asking    backgroundTask       // asks the other servers which key files they read
	ended     chan *backgroundTask // its goroutine has ended
	paused    mono.Time            // no fetches before
	unwritten int                  // fetches in a row whose keys could not be written

	failures  failures
	lackingBy atomic.Pointer[map[meta.KeyID]mono.Time] // since when each key is missing; replaced whole
	rechecked chan fetched                             // from a server that had failed
}

// Config is what a replicator is made of.
type Config struct {
	Undo       time.Duration // how long the file of a removed key is kept aside
	CaughtUp   *local.CaughtUp
	Clocks     *local.Clocks
	Confirming *local.Confirming
	Public     *local.PublicKeys
	ReportTo   func(meta.Hold)  // takes in what this server holds, if it leads
	Refresh    func(local.View) // brings what Decrypt goes by up to date
}

// New returns what brings s the keys that it lacks.
func New(s *local.Server, c Config) *Replicator {
	found, here := map[meta.KeyID]bool{}, s.Store.Present()
	for _, id := range slices.Concat(here.InMemory, here.Closed) { // a KEK may be slow or away at the start
		found[id] = true
	}
	return &Replicator{
		Server: s, Config: c, batches: local.Batches{First: plan.MaxFetch, Most: plan.MaxFetch}, done: make(chan fetched), answered: make(chan fetched), ended: make(chan *backgroundTask),
		rechecked: make(chan fetched), found: found, unlinker: unlinker{s, c.Undo, c.Clocks, c.Confirming},
	}
}

// keySet tells one set of keys, in the ring and in memory, from every other: since no ID is
// used twice, the ring's is known by its size and the number of keys that have left it.
type keySet struct {
	restores, stored uint64
	keys, removed    int
	empty            int // of the keys
	caughtUp         bool
}

func (r *Replicator) keySet(v local.View) keySet {
	if r.counted != v.Ring {
		r.counted, r.empty = v.Ring, 0
		for _, key := range v.Ring.Keys {
			if key.IsEmpty() {
				r.empty++
			}
		}
	}
	return keySet{r.restores, r.Store.Version(), len(v.Ring.Keys), len(v.Ring.Removed), r.empty, v.CaughtUp}
}

// look is what the ring and the keystore say together. There may be thousands of keys, and most of what
// wakes the replicator changes nothing about them.
type look struct {
	ring         *meta.Ring
	stored       uint64       // the keystore's version
	missing      []*meta.Key  // in the order of urgency
	gained, lost []meta.KeyID // as plan.Report has them
	unknown      bool         // there are keys that the ring does not know
}

func (r *Replicator) look(ring *meta.Ring) look {
	stored := r.Store.Version()
	if r.seen.ring == ring && r.seen.stored == stored {
		return r.seen
	}
	lacks, unknown := r.Store.Compare(ring)
	has := func(id meta.KeyID) bool { return !lacks[id] }
	r.seen = look{ring: ring, stored: stored, missing: plan.Missing(ring, has), unknown: unknown}
	r.noteLacking(r.seen.missing)
	r.seen.gained, r.seen.lost = plan.Report(ring, string(r.ID), r.Store.ID(), has)
	return r.seen
}

// report is what a server last told the leader.
type report struct {
	leader       string
	gained, lost []meta.KeyID
}

func (r report) equal(o report) bool {
	return r.leader == o.leader && slices.Equal(r.gained, o.gained) && slices.Equal(r.lost, o.lost)
}

// Run runs until ctx ends.
func (r *Replicator) Run(ctx context.Context) {
	defer r.calls.Wait()
	for {
		changed := r.FSM.Changed()
		timer := time.NewTimer(r.step(ctx))
		select {
		case <-changed:
		case <-timer.C:
		case t := <-r.ended:
			t.running = false
			if t == &r.healing {
				r.goOn()
			}
		case f := <-r.answered:
			r.pull.Answered(f.Fetch, f.err != nil, mono.Now(), rand.Float64())
			r.failures.note(f)
		case f := <-r.rechecked:
			if r.failures.ended(f.Peer); r.failures.note(f) {
				r.pull.Retry() // it may have what is missing
			}
		case f := <-r.done:
			r.written(f)
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// step does what can be done now and returns how long nothing else need be.
func (r *Replicator) step(ctx context.Context) time.Duration {
	r.restores = r.FSM.Restores()
	v := r.CaughtUp.View()
	r.noteReplaced(v)
	wake, ring := r.renew(v), v.Ring
	look := r.look(ring)
	wake = mono.Earliest(wake, r.heal(ctx, v, look), r.cleanUp(ctx, v), r.askFiles(ctx, v), r.lookAtPlace(ctx), r.lookForFiles(ctx, v))
	if r.paused > mono.Now() {
		wake = mono.Earliest(wake, r.paused)
	} else {
		wake = mono.Earliest(wake, r.fetch(ctx, ring, r.wanted(v, look.missing)))
	}
	wake = mono.Earliest(wake, r.recheck(ctx, ring), r.report(ctx, v, look), r.Public.Compare(look.ring, look.stored))
	if wake == 0 {
		return local.Idle
	}
	return min(local.Idle, max(0, mono.Until(wake)))
}

// renew brings the table of Decrypt up to date, or returns when it is due. It is built whole, and
// Decrypt finds a key without it: while keys come in by the thousand it waits for some of them.
func (r *Replicator) renew(v local.View) mono.Time {
	set := r.keySet(v)
	if set == r.refreshed {
		return 0
	}
	same := r.refreshed // in the ring
	same.stored = set.stored
	if due := r.renewed.Add(renewEvery); set == same && r.pull.Busy() && mono.Now() < due {
		return due
	}
	r.Refresh(v)
	r.refreshed, r.renewed = set, mono.Now()
	return 0
}

// heal gets back what needs no other server: keys in memory whose file is gone, files that
// were set aside when their key was removed, and files that appeared, or whose KEK answers
// again. And it sees what an operator has put right. It returns when to look again.
func (r *Replicator) heal(ctx context.Context, v local.View, l look) mono.Time {
	missing := l.missing
	probe := r.KEKs.NextProbe()
	if len(missing) == 0 && probe > 0 && !l.unknown && !r.Store.IsCurable(v.Ring) && !r.Store.HasToRenew() {
		r.healing.idle()
		return mono.Now().Add(probe)
	}
	var lacking []meta.KeyID
	for _, m := range missing {
		lacking = append(lacking, m.ID)
	}
	if !slices.Equal(lacking, r.lacking) || v.CaughtUp != r.healed { // one that is lost for good must not slow the others
		r.lacking, r.healed = lacking, v.CaughtUp
		r.healing.expedite(mono.Now().Add(firstScan))
	}
	if r.healing.due == 0 { // most of what is missing is on its way
		r.healing.due = mono.Now().Add(firstScan)
	}
	if wake, wait := r.healing.wait(mono.Now()); wait {
		return wake
	}
	r.start(ctx, &r.healing, func() { r.reread(ctx, v, missing) })
	return 0
}

// reread reads the files of keys that are missing, if their KEKs answer, and takes back those that were set aside.
func (r *Replicator) reread(ctx context.Context, v local.View, missing []*meta.Key) {
	r.KEKs.Probe(ctx)
	before := r.Store.Version()
	restored := missing
	if !v.CaughtUp { // they may be removed all the same
		restored = nil
	}
	if err := r.Store.Heal(ctx, v.Ring, missing, restored); err != nil && ctx.Err() == nil {
		r.Logger.Error("could not read the keystore", "error", err)
	}
	r.Store.Renew(ctx)
	down := r.KEKs.Down() != nil
	r.healing.more = !down && r.Store.Unopened() > 0 && r.Store.Version() != before
	r.healing.paused = down && r.Store.Waiting() > 0
	r.FSM.Notify() // for this loop and for WaitReady
}

// goOn has files opened as fast as their KEKs allow: at once where the last turn opened some, and where a KEK has refused
// as soon as that is to be probed.
func (r *Replicator) goOn() {
	switch now := mono.Now(); {
	case r.healing.more:
		r.healing.expedite(now)
	case r.healing.paused:
		r.healing.due = min(r.healing.due, now.Add(r.KEKs.NextProbe()))
	}
}

// askFiles asks the other servers which key files they read, until it is known that all read those that this build writes. It
// returns when to ask again. A server that has not caught up may not know all of them.
func (r *Replicator) askFiles(ctx context.Context, v local.View) mono.Time {
	if !v.CaughtUp || r.Store.Files() >= nks.FileVersion {
		r.asking.idle()
		return 0
	}
	if wake, wait := r.asking.wait(mono.Now()); wait {
		return wake
	}
	r.start(ctx, &r.asking, func() {
		if err := r.AskFiles(ctx); err != nil {
			r.Logger.Debug("not every server reads newer key files yet", "error", err)
		}
	})
	return 0
}

// report tells the leader what the ring does not know of this server's keys, and returns
// when to tell it again: never, if there is nothing to tell.
func (r *Replicator) report(ctx context.Context, v local.View, l look) mono.Time {
	gained, lost := l.gained, l.lost
	unnoted := !v.CaughtUp && r.isReplaced(v.Ring) // see noteReplaced
	if len(gained)+len(lost) == 0 || r.leader == "" || unnoted {
		r.reported = report{}
		return 0
	}
	next := report{r.leader, gained[:min(len(gained), reportBatch)], lost[:min(len(lost), reportBatch)]}
	if next.equal(r.reported) && mono.Now() < r.resend {
		return r.resend
	}
	// Each report is an entry of raft's log: what is on its way may come along.
	due := r.told.Add(reportEvery)
	if r.pull.Busy() && mono.Now() < due && len(lost) == 0 && !plan.IsUrgent(l.ring, gained) {
		return due
	}
	if !next.equal(r.reported) {
		r.repeats.Store(0)
	}
	r.reported, r.told = next, mono.Now()
	r.resend = r.told.Add(min(reportRetry<<min(r.repeats.Load(), 8), maxReportRetry)) // each is an entry of raft's log
	hold := meta.Hold{Server: string(r.ID), Keystore: r.Store.ID(), Gained: next.gained, Lost: next.lost}
	if next.leader == string(r.ID) {
		r.repeats.Add(1)
		r.ReportTo(hold)
		return r.resend
	}
	r.calls.Go(func() {
		if err := r.Peers.Report(ctx, next.leader, hold); err != nil {
			r.Logger.Debug("could not report the held keys", "leader", next.leader, "error", err)
			return
		}
		r.repeats.Add(1)
	})
	return r.resend
}
