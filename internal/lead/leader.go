// Package lead is what a server does while it leads. [Leader] is one goroutine that asks internal/plan what is next, and
// does it. It also runs what must not come between a question to the servers and what their answers allow: see
// BetweenSteps. [Maker] makes keys, for it and for rotations by hand. [Adopter] takes in keys whose files an operator trusts.
package lead

// The goroutine in which the leader acts: it does what package plan says.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// Leader is the goroutine that does what plan says while this server leads. All it
// remembers is of its term; what it has begun, a new leader finishes from the ring.
type Leader struct {
	*local.Server
	Config
	leadership
	Maker *Maker

	reports   reports               // of what servers hold, until they are in the log
	turns     chan func(leads bool) // run between two steps
	confirmed atomic.Uint64         // the last restore of the FSM after which a majority has confirmed that it holds the active key

	mu    sync.Mutex // guards below
	waits Status
}

// Config says how a leader acts, and what it is made of.
type Config struct {
	Policy     plan.Policy // when keys rotate
	EveryBuild bool        // every build that a server may run has the keyring
	Clocks     *local.Clocks
	Watch      *local.Watch
	CaughtUp   *local.CaughtUp
	Algorithm  string // of the signing keys that it makes
}

// New returns what acts on s while it leads.
func New(s *local.Server, c Config) *Leader {
	l := &Leader{Server: s, Config: c, turns: make(chan func(leads bool))}
	l.Maker = newMaker(s, c.Algorithm, c.Clocks, l.Report)
	return l
}

// leadership is what the leader's loop remembers, for one term.
type leadership struct {
	term      uint64
	began     mono.Time
	helloFrom []string // see plan.Situation
	orphans   []meta.NewKey
	seen      map[string]mono.Time // the last sign of each server, until all have answered a hello
	probes    map[meta.KeyID]plan.Probe
	retry     mono.Time // see plan.Situation
	lacking   mono.Time // see plan.Situation
	skewed    mono.Time // see plan.Situation
	failed    int       // failures in a row
}

// Run acts while this server leads, until ctx ends.
func (l *Leader) Run(ctx context.Context) {
	for {
		changed := l.FSM.Changed()
		delay := l.step(ctx)
		select {
		case turn := <-l.turns: // comes first, however much is due
			turn(l.begin())
			continue
		default:
		}
		timer := time.NewTimer(delay)
		select {
		case <-changed:
		case <-timer.C:
		case turn := <-l.turns:
			turn(l.begin())
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// BetweenSteps runs do between two steps of the leader's loop, never during one: what
// it finds out about who holds which key no activation overtakes. Only on a leader that has
// applied its barrier.
func (l *Leader) BetweenSteps(ctx context.Context, do func(context.Context) error) error {
	ctx, done, err := l.Gate.Enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	result := make(chan error, 1)
	select {
	case l.turns <- func(leads bool) {
		if !leads {
			result <- l.Leading()
			return
		}
		if ctx.Err() != nil { // the caller has gone, and what it found out may no longer be true
			result <- context.Cause(ctx)
			return
		}
		if err := l.MayForward(ctx); err != nil {
			result <- err // who forwarded the call was removed while it waited for its turn
			return
		}
		result <- do(ctx)
	}:
		return <-result
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pause is how long there is nothing to do for a server that could not act as the leader.
func (l *Leader) pause() time.Duration {
	if l.Raft.State() == raft.Leader && l.FSM.Complete() != nil {
		// Nothing can be sealed until a server leads that applies what this one can't.
		l.Logger.Warn("transferring leadership: the build of this server is too old", "error", l.FSM.Complete())
		if err := l.Raft.LeadershipTransfer().Error(); err != nil {
			l.Logger.Warn("could not transfer leadership", "error", err)
		}
		return helloPatience
	}
	if l.Raft.State() == raft.Leader {
		return local.RetryAfter // it still is: raft was busy, or a transfer has failed
	}
	return local.Idle
}

// step does one thing, if there is one to do now, and returns how long there is nothing to do: zero
// if there may be more.
func (l *Leader) step(ctx context.Context) time.Duration {
	if !l.begin() {
		return l.pause()
	}
	ring, holds := project(l.FSM.Ring(), l.reports.take())
	s := l.situation(ring)
	ring = l.Clocks.RingClock(ring).Correct(ring)
	a := plan.Next(ring, s)
	l.forgetPassed(ring, s, a)
	var err error
	switch {
	case a.Kind != plan.Wait && a.Kind != plan.Nothing:
		err = l.act(ctx, a, ring, s, holds)
	case len(holds) > 0:
		err = l.proposeWith(ctx, holds)
	case l.reports.waiting(): // those taken told nothing new
	case a.Kind == plan.Wait:
		return min(local.LookAgain, max(0, mono.Until(a.Until)))
	default:
		return local.Idle
	}
	if errors.Is(err, fsm.ErrNotLeader) || errors.Is(err, fsm.ErrClosed) {
		return l.pause() // what was not done, the next leader does
	}
	return 0
}

// forgetPassed forgets what was waited for and is gone: nobody asks again about a key that was removed, or
// for a command that need not be proposed.
func (l *Leader) forgetPassed(ring *meta.Ring, s plan.Situation, a plan.Action) {
	maps.DeleteFunc(l.probes, func(id meta.KeyID, _ plan.Probe) bool { return ring.Key(id) == nil })
	l.retainPending(func(id meta.KeyID) bool { return plan.IsPending(ring, id, s) })
	if !plan.BeforeFirstKey(ring) { // it may have come with a snapshot, or be dropped again
		l.helloFrom = nil
		l.noteFirstKey(nil)
	}
	if (a.Kind == plan.Wait || a.Kind == plan.Nothing) && s.Mono >= l.retry {
		l.noteCommand(nil)
		l.noteCreate(nil)
	}
}

// act does one thing and sees to it that what fails is not tried again at once.
func (l *Leader) act(ctx context.Context, a plan.Action, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	err := l.do(ctx, a, ring, s, holds)
	if a.Kind == plan.Create && ctx.Err() == nil {
		l.noteCreate(err)
	}
	if err == nil {
		if a.Kind.Proves() {
			l.failed = 0
		}
		return nil
	}
	l.helloFrom = nil // a server that was left out may be up when the step is tried again
	failed := l.failed
	if a.Kind == plan.SayHello {
		failed = min(failed, 5) // a server that is late should not wait for a minute
	}
	l.retry = mono.Now().Add(plan.Backoff(failed, mathrand.Float64()))
	l.failed++
	l.Logger.Warn("could not do the leader's next step", "step", a.Kind, "key", a.Key, "error", err)
	return err
}

// begin reports whether this server leads, with the barrier of its term applied: from then
// on the ring has all that earlier leaders committed, and this one may seal and act.
func (l *Leader) begin() bool {
	term := l.Raft.CurrentTerm()
	if l.Raft.State() != raft.Leader {
		l.reports.drop()
		l.note(func(s *Status) { *s = Status{} })
		return false
	}
	if l.Server.Term.Load() == term && l.leadership.term == term {
		return true
	}
	if l.FSM.Complete() != nil {
		return false
	}
	if err := l.Raft.Barrier(fsm.ProposeTimeout).Error(); err != nil || !l.Leads(term) || l.FSM.Complete() != nil {
		return false
	}
	l.leadership = leadership{term: term, began: mono.Now(), probes: map[meta.KeyID]plan.Probe{}, seen: map[string]mono.Time{}}
	l.Barrier.Store(l.Raft.AppliedIndex())
	l.Server.Term.Store(term)
	l.CaughtUp.Set()
	l.FSM.Notify()
	return true
}

// project is the ring as it will be once the reports are in the log, and the commands that
// bring them there. Reports that tell nothing new are left out.
func project(ring *meta.Ring, holds []meta.Hold) (*meta.Ring, []meta.Command) {
	var cmds []meta.Command
	for _, h := range holds {
		c := meta.Command{Hold: &h}
		next, err := ring.Apply(math.MaxUint64, []meta.Command{c}) // later than all that is known
		if err != nil || sameHolds(ring, next) {
			continue
		}
		ring, cmds = next, append(cmds, c)
	}
	return ring, cmds
}

// sameHolds reports whether a Hold changed nothing: it replaces every key it touches.
func sameHolds(a, b *meta.Ring) bool {
	return slices.Equal(a.Servers, b.Servers) && slices.Equal(a.Keys, b.Keys)
}

// proposeWith proposes reports, and with them what follows from them. If some servers do not apply
// that yet, the reports alone: what every server has does not wait.
func (l *Leader) proposeWith(ctx context.Context, holds []meta.Command, more ...meta.Command) error {
	err := l.Server.Propose(ctx, slices.Concat(holds, more)...)
	if len(more) == 0 {
		return err
	}
	behind := local.BehindError{}
	if !errors.As(err, &behind) {
		l.noteCommand(nil)
		return err
	}
	l.noteCommand(behind.Servers)
	return errors.Join(err, l.deliver(ctx, holds))
}

func (l *Leader) situation(ring *meta.Ring) plan.Situation {
	if active := ring.Active(); active == nil || l.Store.Holds(active) {
		l.lacking = 0
	} else if l.lacking == 0 {
		l.lacking = mono.Now()
	}
	l.Watch.Holders(ring, local.ServerIDs(l.Raft))
	clocks := l.Clocks.Known()
	if !clocks.Wrong() {
		l.skewed = 0
	} else if l.skewed == 0 {
		l.skewed = mono.Now()
	}
	return plan.Situation{
		Term: l.leadership.term, Clocks: clocks, SkewedSince: l.skewed,
		Now: l.Now(), Mono: mono.Now(), Policy: l.Policy, Voters: local.Voters(l.Raft), Servers: local.ServerIDs(l.Raft),
		Has: l.Held(ring), HelloFrom: l.helloFrom, Orphans: len(l.orphans), Probes: l.probes, Retry: l.retry,
		LackingSince: l.lacking, Unconfirmed: l.Unconfirmed(ring), Unmarked: l.FSM.Entry() == 0, Tokens: l.FSM.LastRestore().Tokens,
	}
}

// do is the only place where the leader acts.
func (l *Leader) do(ctx context.Context, a plan.Action, ring *meta.Ring, s plan.Situation, holds []meta.Command) error {
	switch a.Kind {
	case plan.Mark: // a report of what is known already is an entry that every build applies
		return l.proposeWith(ctx, holds, meta.Command{Hold: &meta.Hold{Server: string(l.ID), Keystore: l.Store.ID()}})
	case plan.Forget:
		return l.proposeWith(ctx, holds, meta.Command{Forget: &meta.Forget{Servers: a.Servers}})
	case plan.EndNonvoters:
		return l.endNonvoters(ctx, a.Servers, holds)
	case plan.End:
		if err := l.deliver(ctx, holds); err != nil {
			return err
		}
		l.Logger.Info("ending join tokens", "tokens", a.Tokens)
		return l.FSM.Propose(ctx, l.Raft, []meta.Command{{EndJoinTokens: &meta.EndJoinTokens{IDs: a.Tokens}}}) // all know of tokens
	case plan.SayHello:
		return l.sayHello(ctx, s) // there is nothing to hold yet
	case plan.Bootstrap:
		return l.bootstrap(ctx, ring, holds)
	case plan.Create:
		if err := l.deliver(ctx, holds); err != nil {
			return err
		}
		_, err := l.Maker.Create(ctx, meta.Add{Publish: a.At, Scheduled: a.Scheduled})
		return err
	case plan.Ask:
		return l.decide(ctx, a.Key, ring, s, holds)
	case plan.Confirm:
		return l.confirm(ctx, a.Key, ring, s, holds)
	case plan.Compare:
		l.Clocks.CompareWithMost(ctx)
		return nil
	case plan.HandOver:
		if err := l.deliver(ctx, holds); err != nil {
			return err
		}
		return l.handOver(a.Servers)
	case plan.Resign:
		if err := l.deliver(ctx, holds); err != nil {
			return err
		}
		return l.resign(ctx, a.Key, s)
	case plan.Rekey:
		l.Logger.Info("re-encrypting the data of a key that is not retained any longer", "key", a.Key)
		return l.proposeWith(ctx, holds, meta.Command{Rekey: &meta.Rekey{ID: a.Key, Remove: true}})
	case plan.Remove:
		l.Logger.Info("removing a key: no data is encrypted under it", "key", a.Key)
		return l.proposeWith(ctx, holds, meta.Command{Remove: &meta.Remove{ID: a.Key, From: meta.StateDeprecated, Time: l.Clocks.RemovalTime(ctx, a.Key)}})
	}
	return fmt.Errorf("unknown step %s", a.Kind)
}

// endNonvoters ends what is recorded of servers that are no permanent non-voters any more. As with tokens, all servers know
// of such commands: else there was no record.
func (l *Leader) endNonvoters(ctx context.Context, servers []string, holds []meta.Command) error {
	if err := l.deliver(ctx, holds); err != nil {
		return err
	}
	var ends []meta.Command
	for _, s := range servers {
		ends = append(ends, meta.Command{Nonvoter: &meta.Nonvoter{Server: s, End: true}})
	}
	l.Logger.Info("ending the records of permanent non-voters that vote or have left", "servers", servers)
	return l.FSM.Propose(ctx, l.Raft, ends)
}

// handOver hands leadership to a server whose clock is right.
func (l *Leader) handOver(to []string) error {
	for _, server := range l.Raft.GetConfiguration().Configuration().Servers {
		if !slices.Contains(to, string(server.ID)) {
			continue
		}
		l.Logger.Warn("transferring leadership: the clock of this server is wrong", "to", server.ID, "difference", l.Clocks.Known().Correction())
		if err := l.Raft.LeadershipTransferToServer(server.ID, server.Address).Error(); err != nil {
			return l.FSM.Outcome(l.Raft, err)
		}
		return l.FSM.NotLeader(l.Raft)
	}
	return fmt.Errorf("servers %q have left", to)
}

func (l *Leader) deliver(ctx context.Context, holds []meta.Command) error {
	if len(holds) == 0 {
		return nil
	}
	return l.proposeWith(ctx, holds)
}

// helloPatience is how long servers that are all of this build are waited for.
const helloPatience = 10 * time.Second
