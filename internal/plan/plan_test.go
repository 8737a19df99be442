package plan_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"pgregory.net/rapid"
)

func TestMajority(t *testing.T) {
	for _, tt := range []struct {
		voters, servers string
		want            bool
	}{
		{"", "", false}, {"", "a", false}, {"a", "", false}, {"a", "a", true}, {"a", "b", false},
		{"a b", "a", false}, {"a b", "a b", true}, {"a b c", "a", false}, {"a b c", "c a", true},
		{"a b c", "a d e f", false}, {"a b c", "a a a", false}, {"a b c d", "a b", false}, {"a b c d", "b c d", true},
		{"a b c d e", "a b", false}, {"a b c d e", "a c e", true}, {"a b c d e f", "a b c", false},
	} {
		if got := plan.Majority(strings.Fields(tt.voters), strings.Fields(tt.servers)); got != tt.want {
			t.Errorf("Majority(%q, %q) = %t", tt.voters, tt.servers, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	for attempt, most := range []time.Duration{
		100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms, 51200 * ms, 60 * s, 60 * s,
	} {
		if got := plan.Backoff(attempt, 0); got != most {
			t.Errorf("Backoff(%d, 0) = %v, want %v", attempt, got, most)
		}
		if got := plan.Backoff(attempt, 0.999999); got < most/2 || got > most/2+most/1000 {
			t.Errorf("Backoff(%d, 1) = %v, want half of %v", attempt, got, most)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		attempt := rapid.IntRange(0, math.MaxInt).Draw(t, "attempt")
		if got := plan.Backoff(attempt, rapid.Float64Range(0, 0.9999999).Draw(t, "jitter")); got < 50*ms || got > time.Minute {
			t.Fatalf("Backoff = %v", got)
		}
	})
}

func hours(n int) time.Time { return start.Add(time.Duration(n) * time.Hour) }

func TestDueAt(t *testing.T) {
	monthly := plan.Policy{Every: 30 * day, Lead: day}
	tests := []struct {
		name      string
		activated time.Time // of the active key; zero is none
		scheduled bool
		publish   time.Time
		policy    plan.Policy
		want      time.Time
	}{
		{"first key", time.Time{}, false, time.Time{}, monthly, time.Time{}},
		{"at once", hours(1), false, time.Time{}, monthly, time.Time{}},
		{"on a day", hours(1), false, hours(100), monthly, hours(100)},
		{"scheduled", hours(0), true, hours(720), monthly, hours(720)},
		{"scheduled, rotated by hand since", hours(500), true, hours(720), monthly, hours(1220)},
		{"scheduled, late", hours(0), true, hours(2000), monthly, hours(2000)},
		{"scheduled, active key gone", time.Time{}, true, hours(720), monthly, hours(720)},
		{"scheduled, rotation now off", hours(500), true, hours(720), plan.Policy{}, hours(720)},
		{"scheduled, period now shorter", hours(0), true, hours(720), plan.Policy{Every: day}, hours(720)},
		{"scheduled, period now longer", hours(0), true, hours(720), plan.Policy{Every: 60 * day}, hours(1440)},
	}
	for _, tt := range tests {
		w := newWorld(t, "a")
		w.now = tt.activated
		w.propose(meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
		if !tt.activated.IsZero() {
			w.run(0)
		}
		k := &meta.Key{Scheduled: tt.scheduled, Publish: tt.publish}
		if got := plan.DueAt(w.ring, k, tt.policy); !got.Equal(tt.want) {
			t.Errorf("%s: DueAt = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// cluster returns a world in which K1 is active, K2 inactive, K3 and K4 prepublished, all
// held by a, b and c of the servers.
func cluster(t tb, servers ...string) *world {
	w := newWorld(t, "a", "b", "c")
	w.policy = plan.Policy{}
	w.run(time.Second)
	w.create(w.leader, meta.Add{})
	w.run(time.Second)
	w.create(w.leader, meta.Add{Publish: hours(1)})
	w.create(w.leader, meta.Add{Publish: hours(2)})
	w.run(time.Second)
	for _, s := range servers {
		w.join(s, true)
	}
	return w
}

func TestUnsafe(t *testing.T) {
	has := func(ns ...int) plan.Answer {
		var a plan.Answer
		for _, n := range ns {
			a.Held = append(a.Held, keyID(n))
		}
		return a
	}
	tests := []struct {
		name, voters string
		answers      map[string]plan.Answer
		want         string
	}{
		{"all hold all", "a b c", map[string]plan.Answer{"a": has(1, 2), "b": has(1, 2), "c": has(1, 2)}, ""},
		{"a majority is enough", "a b c", map[string]plan.Answer{"a": has(1, 2), "b": has(2, 1)}, ""},
		{"half is not", "a b c d", map[string]plan.Answer{"a": has(1, 2), "b": has(2, 1)}, "K1 K2"},
		{"one key is short", "a b c", map[string]plan.Answer{"a": has(1, 2), "b": has(1), "c": has(1)}, "K2"},
		{"two halves make no whole", "a b c", map[string]plan.Answer{"a": has(1), "b": has(2)}, "K1 K2"},
		{"who leaves does not count", "a d e", map[string]plan.Answer{"a": has(1, 2), "b": has(1, 2), "c": has(1, 2)}, "K1 K2"},
		{"nobody answers", "a b c", nil, "K1 K2"},
		{"no voters", "", map[string]plan.Answer{"a": has(1, 2)}, "K1 K2"},
		{"one voter", "a", map[string]plan.Answer{"a": has(1, 2)}, ""},
		{"an answer that repeats itself", "a b c", map[string]plan.Answer{"a": has(1, 1, 2, 2)}, "K1 K2"},
		{"unknown keys", "a", map[string]plan.Answer{"a": has(1, 2, 3, 99)}, ""},
	}
	for _, tt := range tests {
		if got := names(plan.Unsafe(cluster(t).ring, nil, strings.Fields(tt.voters), tt.answers)); got != tt.want {
			t.Errorf("%s: Unsafe = %q, want %q", tt.name, got, tt.want)
		}
	}
	// What most of the present voters hold may be active before they change.
	all := map[string]plan.Answer{"a": has(1, 2), "b": has(1, 2), "c": has(1, 2)}
	if got := names(plan.Unsafe(cluster(t).ring, []string{"a", "b", "c"}, []string{"a", "b"}, all)); got != "K3 K4" {
		t.Errorf("prepublished keys: Unsafe = %q, want K3 K4", got)
	}
}

// A prepublished key is needed from when most of the voters hold it: only then can it be activated.
func TestNeeded(t *testing.T) {
	w := cluster(t)
	w.create(w.leader, meta.Add{}) // K5, which a alone has
	w.report(w.leader)
	for _, tt := range []struct{ voters, want string }{
		{"a b c", "K1 K2 K3 K4"}, {"a", "K1 K2 K3 K4 K5"}, {"a d e", "K1 K2"}, {"", "K1 K2"},
	} {
		var ids []meta.KeyID
		for _, k := range plan.Needed(w.ring, strings.Fields(tt.voters)) {
			ids = append(ids, k.ID)
		}
		if got := names(ids); got != tt.want {
			t.Errorf("voters %q need %q, want %q", tt.voters, got, tt.want)
		}
	}
}

func TestReport(t *testing.T) {
	w := cluster(t)
	w.propose(meta.Command{Hold: &meta.Hold{Server: "b", Keystore: w.server("b").keystore(), Lost: []meta.KeyID{keyID(2)}}})
	old, wiped := w.server("b").keystore(), meta.KeystoreID{9}
	for _, tt := range []struct {
		name, server string
		keystore     meta.KeystoreID
		has          string
		gained, lost string
	}{
		{"nothing new", "b", old, "K1 K3 K4", "", ""},
		{"one more", "b", old, "K1 K2 K3 K4", "K2", ""},
		{"one less", "b", old, "K1 K4", "", "K3"},
		{"both", "b", old, "K2 K3 K4", "K2", "K1"},
		{"files the ring does not know", "b", old, "K1 K3 K4 K77", "", ""},
		{"wiped and fetched", "b", wiped, "K1 K3 K4", "K1 K3 K4", ""},
		{"wiped", "b", wiped, "", "", "K1 K3 K4"},
		{"newcomer", "d", wiped, "", "", ""},
		{"newcomer with keys", "d", wiped, "K2", "K2", ""},
	} {
		gained, lost := plan.Report(w.ring, tt.server, tt.keystore, func(id meta.KeyID) bool {
			return slices.Contains(strings.Fields(tt.has), name(id))
		})
		if names(gained) != tt.gained || names(lost) != tt.lost {
			t.Errorf("%s: Report = %q, %q, want %q, %q", tt.name, names(gained), names(lost), tt.gained, tt.lost)
		}
	}
}

// flags are the names of what a verdict says.
func flags(v plan.Verdict) (set []string) {
	for _, flag := range []struct {
		name string
		set  bool
	}{{"activate", v.Activate}, {"drop", v.Drop}, {"blocked", v.Blocked}} {
		if flag.set {
			set = append(set, flag.name)
		}
	}
	return set
}

// answers adds to all that each of the servers holds these keys.
func answers(w *world, all map[string]plan.Answer, held []meta.KeyID, servers []string) map[string]plan.Answer {
	for _, s := range servers {
		all[s] = plan.Answer{Keystore: w.server(s).keystore(), Held: held}
	}
	return all
}

func TestJudge(t *testing.T) {
	w := cluster(t, "d")
	w.join("n", false)
	ks := func(s string) meta.KeystoreID { return w.server(s).keystore() }
	w.propose(
		meta.Command{Hold: &meta.Hold{Server: "d", Keystore: ks("d"), Gained: []meta.KeyID{keyID(1)}}},
		meta.Command{Hold: &meta.Hold{Server: "n", Keystore: ks("n"), Gained: []meta.KeyID{keyID(1), keyID(3)}}},
	)
	yes := func(servers ...string) map[string]plan.Answer {
		return answers(w, map[string]plan.Answer{}, []meta.KeyID{keyID(1), keyID(3)}, servers)
	}
	no := func(m map[string]plan.Answer, servers ...string) map[string]plan.Answer {
		return answers(w, m, []meta.KeyID{keyID(1)}, servers)
	}
	wiped := yes("a", "b", "c")
	wiped["c"] = plan.Answer{Keystore: meta.KeystoreID{9}, Held: []meta.KeyID{keyID(3)}}
	late := hours(1)
	tests := []struct {
		name    string
		key     int
		now     time.Time
		answers map[string]plan.Answer
		want    string
	}{
		{"3 of 4", 3, late, yes("a", "b", "c"), "activate a b c"},
		{"2 of 4", 3, late, yes("a", "b"), "a b"},
		{"too early", 3, late.Add(-1), yes("a", "b", "c"), "a b c"},
		{"the fourth is not recorded", 3, late, yes("a", "b", "d"), "a b"},
		{"a non-voter", 3, late, yes("a", "b", "n"), "a b"},
		{"another keystore than recorded", 3, late, wiped, "a b"},
		{"nobody answers", 3, late, nil, ""},
		{"2 of 4 say no", 3, late, no(yes(), "a", "b"), ""},
		{"3 of 4 say no", 3, late, no(yes(), "a", "b", "c"), "blocked"},
		{"all voters say no", 3, late, no(yes(), "a", "b", "c", "d"), "blocked"},
		{"the non-voter has it", 3, late, no(yes("n"), "a", "b", "c", "d"), ""},
		{"all servers say no", 3, late, no(yes(), "a", "b", "c", "d", "n"), "drop blocked"},
		{"one has it under another keystore", 3, late, no(map[string]plan.Answer{"c": wiped["c"]}, "a", "b", "d", "n"), ""},
		{"a non-member has it", 3, late, no(map[string]plan.Answer{"z": {Held: []meta.KeyID{keyID(3)}}}, "a", "b", "c", "d", "n"), "drop blocked"},
		{"non-members say no", 3, late, map[string]plan.Answer{"x": {}, "y": {}, "z": {}, "u": {}, "v": {}}, ""},
		{"active already", 1, late, no(yes(), "a", "b", "c", "d", "n"), ""},
		{"inactive", 2, late, no(yes(), "a", "b", "c", "d", "n"), ""},
		{"unknown", 99, late, no(yes(), "a", "b", "c", "d", "n"), ""},
	}
	for _, tt := range tests {
		s := w.situation()
		s.Now = tt.now
		v := plan.Judge(w.ring, keyID(tt.key), s, tt.answers)
		got := flags(v)
		for _, c := range v.Confirmed {
			if got = append(got, c.ID); c.Keystore != tt.answers[c.ID].Keystore {
				t.Errorf("%s: keystore of %s is %x", tt.name, c.ID, c.Keystore)
			}
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: Judge = %q, want %q", tt.name, got, tt.want)
		}
	}
	judgeEmpty(t, w, yes("a", "b", "c"))
}

func judgeEmpty(t *testing.T, w *world, answers map[string]plan.Answer) {
	t.Helper()
	s := w.situation()
	s.Voters, s.Servers, s.Now = nil, nil, hours(1)
	if v := plan.Judge(w.ring, keyID(3), s, answers); !reflect.DeepEqual(v, plan.Verdict{}) {
		t.Errorf("Judge in an empty configuration = %+v", v)
	}
}

func TestProbeAgain(t *testing.T) {
	k := &meta.Key{ModifyIndex: 5}
	p := plan.Probe{}
	for i, want := range []time.Duration{100, 200, 400, 800} {
		p = p.Again(k, plan.Verdict{Blocked: i%2 == 0}, epoch, 0)
		if got := p.Next.Sub(epoch); got != want*time.Millisecond || p.Blocked != (i%2 == 0) || p.Attempts != i+1 || p.Index != 5 {
			t.Errorf("attempt %d: %+v, put off by %v", i, p, got)
		}
	}
	k.ModifyIndex = 6 // another holder: worth asking soon
	if p = p.Again(k, plan.Verdict{}, epoch, 0); p.Attempts != 1 || p.Next != epoch.Add(100*time.Millisecond) {
		t.Errorf("after a change of the key: %+v", p)
	}
}

// What the leader learnt about a key before its record changed no longer blocks it.
func TestHoldUnblocksKey(t *testing.T) {
	w := newWorld(t, "a", "b", "c")
	w.run(10 * day)
	w.create(w.leader, meta.Add{Scheduled: true, Publish: start.Add(30 * day)}) // K2
	w.replicate()
	k := w.ring.Key(keyID(2))
	w.now = start.Add(29*day + time.Hour)
	for _, tt := range []struct {
		probe plan.Probe
		want  plan.Kind
	}{
		{plan.Probe{}, plan.Wait},
		{plan.Probe{Attempts: 3, Index: k.ModifyIndex, Next: w.mono().Add(time.Minute), Blocked: true}, plan.Create},
		{plan.Probe{Attempts: 3, Index: k.ModifyIndex - 1, Next: w.mono().Add(time.Minute), Blocked: true}, plan.Wait},
	} {
		w.probes, w.compared = map[meta.KeyID]plan.Probe{k.ID: tt.probe}, w.mono()
		if a := w.next(); a.Kind != tt.want {
			t.Errorf("%+v: Next says %s, want %s", tt.probe, a.Kind, tt.want)
		}
	}
}

// A leader that could not say hello or create does not try again before Retry.
func TestRetryPutsOff(t *testing.T) {
	w := newWorld(t, "a")
	later := start.Add(time.Minute)
	w.retry = ticks(later)
	if a := w.next(); a.Kind != plan.Wait || a.Until != w.retry {
		t.Errorf("before hello: %+v", a)
	}
	_, w.helloFrom = w.configuration()
	if a := w.next(); a.Kind != plan.Wait || a.Until != w.retry {
		t.Errorf("before the bootstrapping: %+v", a)
	}
	w.propose(meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	_, w.helloFrom = w.configuration()
	if a := w.next(); a.Kind != plan.Wait || a.Until != w.retry {
		t.Errorf("before the first key: %+v", a)
	}
	w.now = later
	if a := w.next(); a.Kind != plan.Create {
		t.Errorf("at the time: %+v", a)
	}
	w.run(29 * day)
	w.now = w.now.Add(time.Second)
	w.retry = w.mono().Add(time.Minute)
	w.probes, w.ring = nil, firstKeyOnly(w)
	if a := w.next(); a.Kind != plan.Wait || a.Until != w.retry {
		t.Errorf("before a scheduled key: %+v", a)
	}
	w.policy = plan.Policy{}
	w.propose(meta.Command{Hold: &meta.Hold{Server: "gone", Keystore: meta.KeystoreID{9}}})
	if a := w.next(); a.Kind != plan.Wait || a.Until != w.retry {
		t.Errorf("before a server that has left is forgotten: %+v", a)
	}
	w.now = w.now.Add(time.Minute)
	if a := w.next(); a.Kind != plan.Forget || !slices.Equal(a.Servers, []string{"gone"}) {
		t.Errorf("at the time: %+v", a)
	}
}

// firstKeyOnly is the ring without what was prepublished after the first key.
func firstKeyOnly(w *world) *meta.Ring {
	for _, k := range w.ring.Prepublished() {
		w.propose(meta.Command{Remove: &meta.Remove{ID: k.ID, From: k.State, Time: w.now}})
	}
	return w.ring
}

// happenings are what can happen to a cluster.
func happenings(w *world) map[string]func(*rapid.T) {
	joined, some := 0, w.some
	// Skip says that an action can't happen now: rapid draws another.
	all := map[string]func(*rapid.T){
		"run": func(t *rapid.T) { w.run(time.Duration(rapid.IntRange(0, 600).Draw(t, "seconds")) * time.Second) },
		"days": func(t *rapid.T) {
			if w.ring.Active() == nil {
				t.Skip("the hellos go on and on")
			}
			w.run(time.Duration(rapid.IntRange(1, 36).Draw(t, "hours")) * time.Hour)
		},
		"down":  func(t *rapid.T) { some(t).down = true },
		"up":    func(t *rapid.T) { some(t).down = false },
		"stuck": func(t *rapid.T) { some(t).stuck = true },
		"free":  func(t *rapid.T) { some(t).stuck = false },
		"wipe": func(t *rapid.T) {
			s := some(t)
			s.wiped++
			clear(s.files)
		},
		"lose": func(t *rapid.T) {
			if len(w.ring.Keys) == 0 {
				t.Skip("none")
			}
			delete(some(t).files, rapid.SampledFrom(w.ring.Keys).Draw(t, "key").ID)
		},
		"lead": func(t *rapid.T) {
			if s := some(t); !s.down {
				w.lead(s.id)
			}
		},
		"rotate": func(t *rapid.T) {
			if !w.majority() || w.ring.Active() == nil {
				t.Skip("not ready")
			}
			add := meta.Add{Full: rapid.Bool().Draw(t, "full")}
			if in := rapid.IntRange(0, 5).Draw(t, "in days"); in > 0 {
				add.Publish = w.now.Add(time.Duration(in) * day)
			}
			w.create(w.leader, add)
		},
		"part": func(t *rapid.T) {
			if s := some(t); s != w.leader && w.majority() {
				s.departed = true
			}
		},
		"join": func(t *rapid.T) {
			if joined++; joined < 5 {
				w.join(string(rune('m'+joined)), rapid.Bool().Draw(t, "voter"))
			}
		},
	}
	maps.Copy(all, votes(w))
	return all
}

// TestI3AnyCluster has all sorts of things happen to a cluster. The world checks at every
// step that Next is a pure function and never waits for the past, that meta takes what
// Judge has decided, that a majority of the voters really has what is activated, and that
// nobody has what is dropped. In the end everything works, and so does rotation.
func TestI3AnyCluster(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(1, 5).Draw(t, "servers")]...)
		w.policy.Every = rapid.SampledFrom([]time.Duration{30 * day, day, 12 * time.Hour}).Draw(t, "every")
		w.policy.Lead = rapid.SampledFrom([]time.Duration{day, time.Hour, time.Minute, 0}).Draw(t, "lead")
		t.Repeat(happenings(w))
		anywhere := false
		for _, s := range w.servers {
			s.down, s.stuck = false, false
			if a := w.ring.Active(); a != nil && !s.departed {
				anywhere = anywhere || s.files[a.ID]
			}
		}
		w.leader.voter = true
		w.run(10 * day) // longer than any Publish
		w.run(2*w.policy.Every + 10*time.Minute)
		w.checkNonvoters()
		active := w.ring.Active()
		if active == nil {
			t.Fatalf("no active key in the end:\n%s", w.events.String())
		}
		for _, k := range w.ring.Prepublished() {
			if len(w.really(k.ID)) == 0 {
				t.Fatalf("%s is still prepublished, and nobody has it", name(k.ID))
			}
		}
		if age := w.now.Sub(active.Activated); anywhere && age > w.policy.Every+10*time.Minute {
			t.Fatalf("the active key is %v old:\n%s", age, w.events.String())
		}
	})
}

// A year of leader changes, restarts and a loop that is never quite on
// time, with a rotation every 30 days, counted from the one before.
func TestYear(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 0))
		upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
		w := newWorld(t, "a", "b", "c")
		w.late = func() time.Duration { return upTo(time.Minute) }
		for w.now.Before(start.AddDate(1, 0, 0)) {
			w.run(upTo(5 * day))
			switch s := w.servers[random.IntN(len(w.servers))]; random.IntN(4) {
			case 0: // an election
				w.lead(s.id)
			case 1: // a restart, of the leader perhaps
				s.down = true
				if s == w.leader {
					w.lead(w.servers[(slices.Index(w.servers, s)+1)%3].id)
				}
				w.run(upTo(time.Hour))
				s.down = false
			case 2: // a power cut
				w.now = w.now.Add(upTo(time.Hour))
				w.lead(s.id)
			}
		}
		var at []time.Time
		for _, k := range w.ring.Keys {
			if k.State != meta.StatePrepublished {
				at = append(at, k.Activated)
			}
		}
		slices.SortFunc(at, time.Time.Compare)
		if len(at) != 13 {
			t.Errorf("seed %d: %d keys in a year, want the first and twelve more:\n%s", seed, len(at), w.events.String())
		}
		for i := 1; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d < 30*day || d > 30*day+2*time.Hour {
				t.Errorf("seed %d: rotation %d came after %v", seed, i, d)
			}
		}
		for _, k := range w.ring.Keys {
			if !first(w, k) && !k.Activated.IsZero() && k.Activated.Sub(k.Created) < day-2*time.Hour {
				t.Errorf("seed %d: %s was known for %v before it signed", seed, name(k.ID), k.Activated.Sub(k.Created))
			}
		}
	}
}

// first reports whether k is the cluster's first key, for which no verifier waits.
func first(w *world, k *meta.Key) bool {
	for _, other := range w.ring.Keys {
		if other.CreateIndex < k.CreateIndex {
			return false
		}
	}
	return true
}

// A scheduled key is activated later than Settle after it was made, however late. The
// first one has none before it.
func TestLateKeySettles(t *testing.T) {
	for _, off := range []time.Duration{0, 29 * day, 30 * day, 31 * day, 365 * day} {
		w := newWorld(t, "a", "b", "c")
		w.run(time.Hour)
		w.now = w.now.Add(off)
		w.run(31 * day)
		for _, k := range w.ring.Keys {
			if !first(w, k) && !k.Activated.IsZero() && k.Activated.Sub(k.Created) <= plan.Settle {
				t.Errorf("off for %v: %s was activated %v after it was made", off, name(k.ID), k.Activated.Sub(k.Created))
			}
		}
	}
}

// Reading the source: plan decides from its arguments alone.
func TestSourceIsPure(t *testing.T) {
	allowed := []string{"bytes", "cmp", "slices", "math", "time", "example.com/keyring/internal/meta", "example.com/keyring/internal/mono"}
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		read++
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, file.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			if path, _ := strconv.Unquote(spec.Path.Value); !slices.Contains(allowed, path) || spec.Name != nil {
				t.Errorf("%s imports %s", file.Name(), path)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt, *ast.SelectStmt:
				t.Errorf("%s: concurrency", fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && (x.Name == "time" || x.Name == "mono") && slices.Contains(clock, n.Sel.Name) {
					t.Errorf("%s: %s.%s", fset.Position(n.Pos()), x.Name, n.Sel.Name)
				}
			}
			return true
		})
	}
	if read == 0 {
		t.Error("no source read")
	}
}
