package plan_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
)

// tb is what *testing.T and *rapid.T have in common here.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

const day = 24 * time.Hour

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// world is a cluster without raft, network or disk: one ring that all servers see, what
// each of them has in its keystore, and a clock. It does what plan says, as the leader and
// the replicators of package keyring do, and checks that this was safe to do.
type world struct {
	tb
	now     time.Time     // by the wall clock
	set     time.Duration // how far the wall clock has been set ahead
	ring    *meta.Ring
	index   uint64
	policy  plan.Policy
	servers []*server // sorted by ID
	leader  *server
	keys    int                      // made so far
	first   map[time.Time]mono.Time  // see plan.RingClock: what all servers remember
	ahead   map[string]time.Duration // what the leader knows of the clocks of the others, when it asks
	late    func() time.Duration     // how long after its time the leader wakes; nil is at once
	events  strings.Builder

	// Of the leader's term.
	helloFrom []string
	compared  mono.Time
	skewed    mono.Time
	retry     mono.Time
	failed    int
	probes    map[meta.KeyID]plan.Probe
}

type server struct {
	id       string
	voter    bool
	down     bool
	stuck    bool // its replicator does nothing
	wiped    int
	files    map[meta.KeyID]bool
	departed bool

	permanent bool // it was demoted
}

func (s *server) keystore() meta.KeystoreID { return meta.KeystoreID{s.id[0], byte(s.wiped + 1)} }

func newWorld(t tb, servers ...string) *world {
	w := &world{tb: t, now: start, ring: &meta.Ring{}, policy: plan.Policy{Every: 30 * day, Lead: day}}
	for _, s := range servers {
		w.join(s, true)
	}
	w.lead(servers[0])
	return w
}

func (w *world) join(id string, voter bool) {
	w.servers = append(w.servers, &server{id: id, voter: voter, files: map[meta.KeyID]bool{}})
	slices.SortFunc(w.servers, func(a, b *server) int { return strings.Compare(a.id, b.id) })
}

func (w *world) server(id string) *server {
	w.Helper()
	for _, s := range w.servers {
		if s.id == id {
			return s
		}
	}
	w.Fatalf("no server %q", id)
	return nil
}

// lead begins a term: what a leader remembers is gone.
func (w *world) lead(id string) {
	w.leader = w.server(id)
	w.helloFrom, w.retry, w.failed, w.probes = nil, 0, 0, map[meta.KeyID]plan.Probe{}
}

func (w *world) configuration() (voters, servers []string) {
	for _, s := range w.servers {
		if s.departed {
			continue
		}
		servers = append(servers, s.id)
		if s.voter {
			voters = append(voters, s.id)
		}
	}
	return voters, servers
}

func (w *world) situation() plan.Situation {
	voters, servers := w.configuration()
	return plan.Situation{
		Clocks: plan.Clocks{Ahead: w.ahead, Leeway: time.Minute, Compared: w.compared}, SkewedSince: w.skewed,
		Now: w.now, Mono: w.mono(), Policy: w.policy, Voters: voters, Servers: servers,
		Has:       func(id meta.KeyID) bool { return w.leader.files[id] },
		HelloFrom: w.helloFrom, Orphans: len(w.orphans()), Probes: w.probes, Retry: w.retry,
	}
}

// believed is the ring with times that can be.
func (w *world) believed() *meta.Ring {
	s := plan.RingClock{Now: w.now, Mono: w.mono(), Leeway: time.Minute, First: w.first}
	w.first = s.Remember(plan.Times(w.ring)...)
	s.First = w.first
	return s.Correct(w.ring)
}

// orphans are the keys that servers have and the ring has never heard of.
func (w *world) orphans() []meta.KeyID {
	var ids []meta.KeyID
	for _, s := range w.servers {
		for id := range s.files {
			if !s.down && w.ring.Key(id) == nil && !w.ring.WasRemoved(id) && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, b meta.KeyID) int { return strings.Compare(a.String(), b.String()) })
	return ids
}

// propose commits the commands as one entry. In this world nothing comes in between the
// decision and the commit, so what plan has decided must not be refused.
func (w *world) propose(cmds ...meta.Command) {
	w.Helper()
	b, err := meta.Entry{Commands: cmds}.Encode()
	if err != nil {
		w.Fatalf("%s Encode: %v", w.clock(), err)
	}
	e, err := meta.DecodeEntry(b)
	if err != nil {
		w.Fatalf("%s DecodeEntry: %v", w.clock(), err)
	}
	w.index++
	next, err := w.ring.Apply(w.index, e.Commands)
	if err != nil {
		w.Fatalf("%s the ring refuses %s: %v", w.clock(), b, err)
	}
	if err := next.Check(); err != nil {
		w.Fatalf("%s Check: %v", w.clock(), err)
	}
	if err := w.ring.CheckStep(next); err != nil {
		w.Fatalf("%s CheckStep: %v", w.clock(), err)
	}
	w.ring = next
}

func (w *world) say(format string, args ...any) {
	fmt.Fprintf(&w.events, "%s  %s\n", w.clock(), fmt.Sprintf(format, args...))
}

func (w *world) clock() string { return clock(w.now) }

// mono is the present moment by the monotonic clock.
func (w *world) mono() mono.Time { return ticks(w.now.Add(-w.set)) }

// shown is what the wall clock shows at a moment.
func (w *world) shown(at mono.Time) time.Time { return shown(at).Add(w.set) }

// step sets the wall clock ahead, or back.
func (w *world) step(by time.Duration) { w.now, w.set = w.now.Add(by), w.set+by }

// epoch is the moment of start.
const epoch = mono.Time(1e18)

// ticks is the moment at which a wall clock that nobody sets shows t. Zero is zero.
func ticks(t time.Time) mono.Time {
	if t.IsZero() {
		return 0
	}
	return epoch.Add(t.Sub(start))
}

// shown is the other way round.
func shown(at mono.Time) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return start.Add(at.Sub(epoch))
}

// clock shows a time as days and time of day since the start.
func clock(t time.Time) string {
	d := t.Sub(start)
	text := fmt.Sprintf("day %d %s", d/day, t.Format("15:04:05"))
	if ms := d % time.Second / time.Millisecond; ms != 0 {
		text += fmt.Sprintf(".%03d", ms)
	}
	return text
}

func name(id meta.KeyID) string { return fmt.Sprintf("K%d", id[15]) }

func names(ids []meta.KeyID) string {
	var out []string
	for _, id := range ids {
		out = append(out, name(id))
	}
	return strings.Join(out, " ")
}

func keyID(n int) meta.KeyID { return meta.KeyID{14: byte(n >> 8), 15: byte(n)} }

func newKey(id meta.KeyID, created time.Time) meta.NewKey {
	return meta.NewKey{ID: id, Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{1, id[14], id[15]}, Created: created}
}

// majority reports whether the cluster can commit.
func (w *world) majority() bool {
	voters, _ := w.configuration()
	var up []string
	for _, s := range w.servers {
		if !s.down && !s.departed {
			up = append(up, s.id)
		}
	}
	return !w.leader.down && plan.Majority(voters, up)
}

// replicate lets every server fetch what it lacks and report what it has.
func (w *world) replicate() {
	for _, s := range w.servers {
		if s.down || s.stuck || s.departed {
			continue
		}
		for _, k := range plan.Missing(w.ring, func(id meta.KeyID) bool { return s.files[id] }) {
			for _, from := range w.servers {
				if !from.down && !from.departed && from.files[k.ID] {
					s.files[k.ID] = true
				}
			}
		}
		w.report(s)
	}
}

func (w *world) report(s *server) {
	gained, lost := plan.Report(w.ring, s.id, s.keystore(), func(id meta.KeyID) bool { return s.files[id] })
	if len(gained)+len(lost) == 0 {
		return
	}
	told := s.id + " reports"
	if len(gained) > 0 {
		told += " " + names(gained)
	}
	if len(lost) > 0 {
		told += ", lost " + names(lost)
	}
	w.say("%s", told)
	w.propose(meta.Command{Hold: &meta.Hold{Server: s.id, Keystore: s.keystore(), Gained: gained, Lost: lost}})
	if gained, lost := plan.Report(w.ring, s.id, s.keystore(), func(id meta.KeyID) bool { return s.files[id] }); len(gained)+len(lost) > 0 {
		w.Fatalf("%s %s reports a second time: %v %v", w.clock(), s.id, gained, lost)
	}
}

// next asks plan twice: the answer must be the same, and never a wait for the past.
func (w *world) next() plan.Action {
	w.Helper()
	s := w.situation()
	r := w.believed()
	a, again := plan.Next(r, s), plan.Next(r, s)
	if !reflect.DeepEqual(a, again) {
		w.Fatalf("%s Next says %+v, then %+v", w.clock(), a, again)
	}
	if a.Kind == plan.Wait && a.Until <= w.mono() {
		w.Fatalf("%s Next waits for %s", w.clock(), clock(w.shown(a.Until)))
	}
	return a
}

// run lets the cluster live for a while.
func (w *world) run(d time.Duration) {
	w.Helper()
	until := w.now.Add(d)
	steps, at := 0, w.now
	for {
		if !w.majority() {
			w.now = until
			return
		}
		w.replicate()
		a := w.next()
		switch a.Kind {
		case plan.Wait, plan.Nothing:
			wake := w.shown(a.Until)
			if w.late != nil {
				wake = wake.Add(w.late())
			}
			if a.Kind == plan.Nothing || wake.After(until) {
				w.now = until
				return
			}
			w.now = wake
		default:
			w.act(a)
		}
		if !w.now.Equal(at) {
			steps, at = 0, w.now
		}
		if steps++; steps > 100 {
			w.Fatalf("%s the leader spins: %+v", w.clock(), a)
		}
	}
}

func (w *world) act(a plan.Action) {
	w.Helper()
	switch a.Kind {
	case plan.SayHello:
		w.sayHello()
	case plan.Bootstrap:
		w.found()
	case plan.Create:
		add := meta.Add{Publish: a.At, Scheduled: a.Scheduled}
		w.create(w.leader, add)
	case plan.Forget:
		w.say("forget %s", strings.Join(a.Servers, " "))
		w.propose(meta.Command{Forget: &meta.Forget{Servers: a.Servers}})
	case plan.EndNonvoters:
		w.say("no permanent non-voters: %s", strings.Join(a.Servers, " "))
		w.endNonvoters(a.Servers)
	case plan.Ask:
		w.ask(a.Key)
	case plan.Compare:
		w.compared = w.mono()
	default:
		w.Fatalf("%s Next says %+v", w.clock(), a)
	}
}

func (w *world) sayHello() {
	var silent []string
	_, w.helloFrom = w.configuration()
	for _, s := range w.servers {
		if s.down && !s.departed {
			silent = append(silent, s.id)
		}
	}
	if len(silent) == 0 {
		w.say("hello: all have answered")
		return
	}
	w.helloFrom, w.retry = nil, w.mono().Add(plan.Backoff(min(w.failed, 5), 0))
	w.failed++
	w.say("hello: no answer from %s, again at %s", strings.Join(silent, " "), clock(w.shown(w.retry)))
}

func (w *world) found() {
	var cmds []meta.Command
	if w.ring.Cluster == (meta.ClusterID{}) {
		w.say("name the cluster")
		cmds = append(cmds, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	}
	for _, id := range w.orphans() {
		w.say("adopt %s", name(id))
		cmds = append(cmds, meta.Command{Adopt: &meta.Adopt{Key: newKey(id, start), DataOnly: true, Time: w.now}})
	}
	w.propose(cmds...)
}

// create makes a key on a server, its file first.
func (w *world) create(s *server, add meta.Add) meta.KeyID {
	w.keys++
	id := keyID(w.keys)
	add.Key = newKey(id, w.now)
	what := "create " + name(id)
	if add.Scheduled {
		what += ", scheduled"
	}
	if add.Full {
		what += ", full"
	}
	if !add.Publish.IsZero() {
		what += ", for " + clock(add.Publish)
	}
	w.say("%s", what)
	s.files[id] = true
	w.propose(meta.Command{Add: &add})
	return id
}

// ask puts the live question, judges the answers and acts on the verdict. It knows what
// the servers really have, and holds plan to it.
func (w *world) ask(id meta.KeyID) {
	w.Helper()
	answers, have, told := w.liveAnswers(id)
	s := w.situation()
	r := w.believed()
	v := plan.Judge(r, id, s, answers)
	if again := plan.Judge(r, id, s, answers); !reflect.DeepEqual(v, again) {
		w.Fatalf("%s Judge says %+v, then %+v", w.clock(), v, again)
	}
	switch {
	case v.Activate && v.Drop:
		w.Fatalf("%s Judge says %+v", w.clock(), v)
	case v.Activate:
		if !plan.Majority(s.Voters, have) {
			w.Fatalf("%s activates %s, which only %q have", w.clock(), name(id), have)
		}
		if due := plan.DueAt(r, r.Key(id), w.policy); due.After(w.now) {
			w.Fatalf("%s activates %s, which is due at %s", w.clock(), name(id), clock(due))
		}
		w.say("%s; activate", told)
		w.propose(meta.Command{Activate: &meta.Activate{ID: id, Voters: s.Voters, Confirmed: v.Confirmed, Time: plan.ActivateAt(w.ring, w.now)}})
	case v.Drop:
		for _, s := range w.servers {
			if s.files[id] && !s.departed {
				w.Fatalf("%s drops %s, which %s has", w.clock(), name(id), s.id)
			}
		}
		w.say("%s; drop it", told)
		w.propose(meta.Command{Remove: &meta.Remove{ID: id, From: meta.StatePrepublished, Time: w.now}})
	default:
		p := w.probes[id].Again(w.ring.Key(id), v, w.mono(), 0)
		w.probes[id] = p
		if p.Blocked {
			told += "; blocked"
		}
		w.say("%s; again at %s", told, clock(w.shown(p.Next)))
	}
	if k := w.ring.Key(id); k == nil || k.State != meta.StatePrepublished {
		delete(w.probes, id)
	}
}

// liveAnswers are what the servers answer, which of them have the key, and how a story tells it.
func (w *world) liveAnswers(id meta.KeyID) (answers map[string]plan.Answer, have []string, told string) {
	answers = map[string]plan.Answer{}
	var silent []string
	for _, s := range w.servers {
		switch {
		case s.departed:
		case s.down:
			silent = append(silent, s.id)
		case s.files[id]:
			have = append(have, s.id)
			answers[s.id] = plan.Answer{Keystore: s.keystore(), Held: []meta.KeyID{id}}
		default:
			answers[s.id] = plan.Answer{Keystore: s.keystore()}
		}
	}
	told = fmt.Sprintf("ask %s: nobody has it", name(id))
	if len(have) > 0 {
		told = fmt.Sprintf("ask %s: %s", name(id), strings.Join(have, " "))
	}
	if len(silent) > 0 {
		told += fmt.Sprintf(" (no answer from %s)", strings.Join(silent, " "))
	}
	return answers, have, told
}
