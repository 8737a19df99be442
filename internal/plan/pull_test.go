package plan_test

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"pgregory.net/rapid"
)

// download is one server that gets the keys it lacks from its peers, which answer well, or
// badly, or not at all. It checks every request.
type download struct {
	tb
	now    time.Time
	ring   *meta.Ring
	index  uint64
	self   string
	leader string
	peers  map[string]*source // by ID, self not among them
	has    map[meta.KeyID]bool
	jitter func() float64
	pull   plan.Pull
	wake   time.Time
	calls  []*call
	asked  map[meta.KeyID][]string // servers, since the key last changed or Retry
	events strings.Builder
}

// source is a peer that has some keys. How says what it does when it is asked: ok, empty (it
// answers, without any key), error, hang.
type source struct {
	how string
	has map[meta.KeyID]bool
}

// call is a request under way.
type call struct {
	plan.Fetch
	done time.Time
}

const (
	latency  = 10 * time.Millisecond
	deadline = 5 * time.Second
)

func newDownload(t tb, self, leader string, servers ...string) *download {
	d := &download{
		tb: t, now: start, ring: &meta.Ring{}, self: self, leader: leader,
		peers: map[string]*source{}, has: map[meta.KeyID]bool{}, asked: map[meta.KeyID][]string{},
		jitter: func() float64 { return 0 },
	}
	for _, s := range servers {
		if s != self {
			d.peers[s] = &source{"ok", map[meta.KeyID]bool{}}
		}
	}
	d.propose(meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	return d
}

func (d *download) propose(cmds ...meta.Command) {
	d.Helper()
	d.index++
	ring, err := d.ring.Apply(d.index, cmds)
	if err != nil {
		d.Fatalf("Apply: %v", err)
	}
	for _, k := range ring.Keys {
		if old := d.ring.Key(k.ID); old != nil && old.ModifyIndex != k.ModifyIndex {
			delete(d.asked, k.ID)
		}
	}
	d.ring = ring
}

// give puts keys on a server, and into the ring.
func (d *download) give(server string, ids []meta.KeyID) {
	for _, id := range ids {
		if d.ring.Key(id) == nil {
			d.propose(meta.Command{Adopt: &meta.Adopt{Key: newKey(id, start), DataOnly: true, Time: start}})
		}
		if p := d.peers[server]; p != nil {
			p.has[id] = true
		}
	}
}

func (d *download) record(server string, ids []meta.KeyID) {
	d.propose(meta.Command{Hold: &meta.Hold{Server: server, Keystore: meta.KeystoreID{server[0]}, Gained: ids}})
}

func (d *download) missing() []*meta.Key {
	return plan.Missing(d.ring, func(id meta.KeyID) bool { return d.has[id] })
}

func (d *download) sources(k *meta.Key) []string {
	return plan.Sources(k, d.self, d.leader, append(slices.Sorted(maps.Keys(d.peers)), d.self))
}

func (d *download) say(format string, args ...any) {
	fmt.Fprintf(&d.events, "%s  %s\n", clock(d.now), fmt.Sprintf(format, args...))
}

// run goes on until nothing is missing, nothing can help, or the time is over.
func (d *download) run(for_ time.Duration) {
	d.Helper()
	until := d.now.Add(for_)
	for {
		d.request()
		at := d.wake
		for _, c := range d.calls {
			if at.IsZero() || c.done.Before(at) {
				at = c.done
			}
		}
		if at.IsZero() || at.After(until) {
			if len(d.missing()) > 0 {
				d.now = until
			}
			return
		}
		d.now = at
		for i := 0; i < len(d.calls); {
			if c := d.calls[i]; c.done.After(d.now) {
				i++
			} else {
				d.calls = slices.Delete(d.calls, i, i+1)
				d.answer(c)
			}
		}
	}
}

func (d *download) request() {
	d.Helper()
	missing := d.missing()
	fetches, next := d.pull.Next(ticks(d.now), missing, d.sources, fast, d.jitter())
	wake := shown(next)
	if next != 0 && !wake.After(d.now) {
		d.Fatalf("%s Next wants to be called again at %s", d.clock(), clock(wake))
	}
	if len(missing) > 0 && len(fetches)+len(d.calls) == 0 && wake.IsZero() {
		d.Fatalf("%s Next has given up on %d keys", d.clock(), len(missing))
	}
	d.wake = wake
	for _, f := range fetches {
		d.check(f)
		after := latency
		if d.peers[f.Peer].how == "hang" {
			after = deadline
		}
		d.calls = append(d.calls, &call{f, d.now.Add(after)})
		d.say("ask %s for %s", f.Peer, ranges(f.IDs))
	}
}

func (d *download) clock() string { return clock(d.now) }

// check is what holds for every request.
func (d *download) check(f plan.Fetch) {
	d.Helper()
	if d.peers[f.Peer] == nil {
		d.Fatalf("%s asks %q, which is no peer of %s", d.clock(), f.Peer, d.self)
	}
	if len(f.IDs) == 0 || len(f.IDs) > 64 {
		d.Fatalf("%s asks %s for %d keys", d.clock(), f.Peer, len(f.IDs))
	}
	underWay := 1
	for _, c := range d.calls {
		if c.Peer == f.Peer {
			underWay++
		}
		for _, id := range f.IDs {
			if slices.Contains(c.IDs, id) {
				d.Fatalf("%s asks %s for %s while %s is asked for it", d.clock(), f.Peer, name(id), c.Peer)
			}
		}
	}
	if underWay > 2 {
		d.Fatalf("%s has %d requests to %s under way", d.clock(), underWay, f.Peer)
	}
	for i, id := range f.IDs {
		if d.has[id] || d.ring.Key(id) == nil || slices.Contains(f.IDs[:i], id) {
			d.Fatalf("%s asks %s for %s without need", d.clock(), f.Peer, name(id))
		}
		asked := append(d.asked[id], f.Peer)
		round := asked[(len(asked)-1)/len(d.peers)*len(d.peers):]
		if len(slices.Compact(slices.Sorted(slices.Values(round)))) != len(round) {
			d.Fatalf("%s asks for %s in the order %v: a peer twice in one round of %d", d.clock(), name(id), asked, len(d.peers))
		}
		d.asked[id] = asked
	}
}

func (d *download) answer(c *call) {
	p := d.peers[c.Peer]
	var got []meta.KeyID
	for _, id := range c.IDs {
		if p.how == "ok" && p.has[id] {
			got = append(got, id)
			d.has[id] = true
		}
	}
	switch {
	case p.how == "error" || p.how == "hang":
		d.say("%s: %s", c.Peer, p.how)
	case len(got) == 0:
		d.say("%s has none of them", c.Peer)
	default:
		d.say("%s gives %s", c.Peer, ranges(got))
	}
	d.pull.Answered(c.Fetch, p.how == "error" || p.how == "hang", ticks(d.now), d.jitter())
	d.pull.Done(c.Fetch)
}

// ranges shows numbered keys, runs of them as K1-5.
func ranges(ids []meta.KeyID) string {
	var out []string
	for i := 0; i < len(ids); {
		j := i + 1
		step := 1
		if j < len(ids) && number(ids[j]) < number(ids[i]) {
			step = -1
		}
		for j < len(ids) && number(ids[j]) == number(ids[j-1])+step {
			j++
		}
		text := fmt.Sprintf("K%d", number(ids[i]))
		if j > i+1 {
			text += fmt.Sprintf("-%d", number(ids[j-1]))
		}
		out = append(out, text)
		i = j
	}
	return strings.Join(out, " ")
}

func number(id meta.KeyID) int { return int(id[14])<<8 | int(id[15]) }

// parseRanges reads K1, K1-5 and 1-5.
func parseRanges(t tb, args []string) []meta.KeyID {
	var ids []meta.KeyID
	for _, a := range args {
		from, to, isRange := strings.Cut(strings.TrimPrefix(a, "K"), "-")
		if !isRange {
			to = from
		}
		lo, err1 := strconv.Atoi(from)
		hi, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || lo > hi {
			t.Fatalf("keys %q", a)
		}
		for n := lo; n <= hi; n++ {
			ids = append(ids, keyID(n))
		}
	}
	return ids
}

// TestPullStories plays the transcripts of one server that gets keys.
//
//	servers d a b c    begin: d lacks everything, a leads, b and c are there too
//	give S K1-5        a server has these keys, and the ring knows of them
//	ring K1-5          the ring knows of them, and nobody has them
//	record S K1-5      the ring records the server as their holder
//	peer S HOW         what it does from now on: ok, empty, error, hang
//	lead S             another leader, which has all keys tried again
//	have K1-5          d has these keys already
//	run TIME           until all is there, or the time is over
//	pass TIME          only the clock goes on
//	left               what is still missing
func TestPullStories(t *testing.T) {
	play(t, "testdata/pull/*.txt", func(t *testing.T) player {
		var d *download
		return func(command string, args []string) string {
			switch command {
			case "servers":
				d = newDownload(t, args[0], args[1], args...)
			case "give":
				d.give(args[0], parseRanges(t, args[1:]))
			case "ring":
				d.give("", parseRanges(t, args))
			case "record":
				d.record(args[0], parseRanges(t, args[1:]))
			case "peer":
				d.peers[args[0]].how = args[1]
			case "lead":
				d.leader = args[0]
				d.pull.Retry()
				clear(d.asked)
			case "have":
				for _, id := range parseRanges(t, args) {
					d.has[id] = true
				}
			case "run":
				d.run(duration(t, args[0]))
			case "pass":
				d.now = d.now.Add(duration(t, args[0]))
			case "left":
				var left []meta.KeyID
				for _, k := range d.missing() {
					left = append(left, k.ID)
				}
				d.say("missing: %s", list(strings.Fields(ranges(left))))
			default:
				t.Fatalf("no command %q", command)
			}
			defer d.events.Reset()
			return d.events.String()
		}
	})
}

// I9: a key that one live server has arrives, whatever the others do and whatever other
// keys are lost, and no peer is asked for it twice before.
func TestI9EveryObtainableKeyArrives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers := []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(2, 5).Draw(t, "servers")]
		self := rapid.SampledFrom(servers).Draw(t, "self")
		d := newDownload(t, self, rapid.SampledFrom(append(servers, "")).Draw(t, "leader"), servers...)
		d.jitter = func() float64 { return rapid.Float64Range(0, 0.999).Draw(t, "jitter") }
		var well []string
		for _, s := range slices.Sorted(maps.Keys(d.peers)) {
			how := rapid.SampledFrom([]string{"ok", "ok", "empty", "error", "hang"}).Draw(t, "peer "+s)
			d.peers[s].how = how
			if how == "ok" {
				well = append(well, s)
			}
		}
		keys := rapid.SampledFrom([]int{1, 2, 5, 63, 64, 65, 129, 300}).Draw(t, "keys")
		lost := rapid.IntRange(0, 4).Draw(t, "every how many is lost")
		obtainable := 0
		for n := 1; n <= keys; n++ {
			id := keyID(n)
			d.give("", []meta.KeyID{id})
			if len(well) == 0 || lost > 0 && n%lost == 0 {
				continue
			}
			d.give(rapid.SampledFrom(well).Draw(t, "has it"), []meta.KeyID{id})
			obtainable++
		}
		for _, s := range servers { // right, wrong or missing
			if from := rapid.IntRange(1, keys).Draw(t, "recorded from"); rapid.Bool().Draw(t, "recorded") {
				d.record(s, parseRanges(t, []string{fmt.Sprintf("%d-%d", from, keys)}))
			}
		}
		// A round asks every peer once, two requests of 64 keys at a time: that bounds it.
		d.run(time.Duration(len(d.peers)*(keys/128+1)) * (deadline + latency))
		for n := 1; n <= keys; n++ {
			if id := keyID(n); d.has[id] {
				obtainable--
				if asked := d.asked[id]; len(asked) > len(d.peers) {
					t.Fatalf("%s came after asking %v", name(id), asked)
				}
			}
		}
		if obtainable != 0 {
			t.Fatalf("%d keys did not come that a live server has", obtainable)
		}
	})
}

// Everything changes while requests are under way, and it still ends well.
func TestI9PullUnderChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers := []string{"a", "b", "c", "d"}
		d := newDownload(t, "d", "a", servers...)
		d.jitter = func() float64 { return rapid.Float64Range(0, 0.999).Draw(t, "jitter") }
		all := parseRanges(t, []string{"1-150"})
		d.give("a", all)
		anyPeer := rapid.SampledFrom([]string{"a", "b", "c"})
		anyKeys := rapid.Custom(func(t *rapid.T) []meta.KeyID {
			from := rapid.IntRange(1, 150).Draw(t, "from")
			return all[from-1 : min(150, from+rapid.IntRange(0, 70).Draw(t, "many"))]
		})
		t.Repeat(map[string]func(*rapid.T){
			"behave": func(t *rapid.T) {
				d.peers[anyPeer.Draw(t, "peer")].how = rapid.SampledFrom([]string{"ok", "empty", "error", "hang"}).Draw(t, "how")
			},
			"give":   func(t *rapid.T) { d.give(anyPeer.Draw(t, "peer"), anyKeys.Draw(t, "keys")) },
			"record": func(t *rapid.T) { d.record(anyPeer.Draw(t, "peer"), anyKeys.Draw(t, "keys")) },
			"lead": func(t *rapid.T) {
				d.leader = anyPeer.Draw(t, "leader")
				d.pull.Retry()
				clear(d.asked)
			},
			"lose": func(t *rapid.T) {
				for _, id := range anyKeys.Draw(t, "keys") {
					if d.has[id] {
						delete(d.has, id)
						delete(d.asked, id)
					}
				}
			},
			"run": func(t *rapid.T) {
				d.run(time.Duration(rapid.IntRange(0, 20_000).Draw(t, "milliseconds")) * time.Millisecond)
			},
		})
		for _, p := range d.peers {
			p.how = "ok"
		}
		d.run(2*time.Minute + deadline) // at most one whole backoff, and one request that hangs
		if left := d.missing(); len(left) > 0 {
			t.Fatalf("%d keys are missing", len(left))
		}
	})
}

// A hold that commits while the key is asked for elsewhere must not wait for the backoff of
// a round that began before it.
func TestHoldStartsNewRound(t *testing.T) {
	d := newDownload(t, "d", "a", "a", "b", "d")
	k1 := parseRanges(t, []string{"K1"})
	d.give("", k1)
	d.run(5 * time.Minute)                               // nobody has it: a round a minute
	d.run(d.wake.Sub(d.now) + latency + time.Nanosecond) // a has said no, b is being asked
	if len(d.calls) != 1 || d.calls[0].Peer != "b" {
		t.Fatalf("under way: %+v, want one request to b", d.calls)
	}
	d.give("a", k1)
	d.record("a", k1)
	d.run(time.Second)
	if len(d.missing()) != 0 {
		t.Errorf("the key is still missing a second after a hold of it:\n%s", d.events.String())
	}
}

func TestMissingOrder(t *testing.T) {
	key := func(n int, s meta.State, created uint64) *meta.Key {
		return &meta.Key{ID: keyID(n), State: s, CreateIndex: created}
	}
	r := &meta.Ring{Keys: []*meta.Key{
		key(1, meta.StateInactive, 10), key(2, meta.StateActive, 20), key(3, meta.StatePrepublished, 30),
		key(4, meta.StateRekeying, 12), key(5, meta.StateDeprecated, 11), key(6, meta.StatePrepublished, 31), key(7, meta.StateInactive, 9),
	}}
	var got []meta.KeyID
	for _, k := range plan.Missing(r, func(id meta.KeyID) bool { return id == keyID(5) }) {
		got = append(got, k.ID)
	}
	if want := "K2 K6 K3 K4 K1 K7"; names(got) != want {
		t.Errorf("Missing = %s, want %s", names(got), want)
	}
}

func TestSources(t *testing.T) {
	k := &meta.Key{Holders: []string{"b", "d"}}
	for _, tt := range []struct{ self, leader, servers, want string }{
		{"c", "e", "a b c d e f", "e b d a f"},
		{"c", "b", "a b c d e", "b d a e"},
		{"b", "b", "a b c d", "d a c"},
		{"c", "", "a b c d", "b d a"},
		{"c", "z", "c d a", "d a"}, // a leader outside the configuration is not asked
		{"c", "c", "c", ""},
	} {
		servers := strings.Fields(tt.servers)
		if got := strings.Join(plan.Sources(k, tt.self, tt.leader, servers), " "); got != tt.want {
			t.Errorf("Sources for %s with leader %q of %q = %q, want %q", tt.self, tt.leader, tt.servers, got, tt.want)
		}
		if strings.Join(servers, " ") != tt.servers {
			t.Errorf("Sources changed its argument to %q", servers)
		}
	}
}

// fast is what a request may be about where nothing was late.
func fast(string) plan.Batch { return plan.NewBatch(plan.MaxFetch, plan.MaxFetch) }

// TestPullAsksASlowPeerForLess: for as much as its answers have shown, and once at a time. What was asked for stays asked for.
func TestPullAsksASlowPeerForLess(t *testing.T) {
	d := newDownload(t, "d", "a", "d", "a")
	d.give("a", parseRanges(t, []string{"1-200"}))
	slow := plan.NewBatch(plan.MaxFetch, plan.MaxFetch)
	slow.Late(plan.MaxFetch)
	next := func(batch plan.Batch, want ...int) {
		t.Helper()
		fetches, _ := d.pull.Next(ticks(d.now), d.missing(), d.sources, func(string) plan.Batch { return batch }, 0)
		var got []int
		for _, f := range fetches {
			got = append(got, len(f.IDs))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("requests for %d keys, want %d", got, want)
		}
	}
	next(slow, 16)
	if next(slow); !d.pull.Asks("a") || d.pull.Asks("b") {
		t.Error("Asks does not name the one server that is asked")
	}
	next(fast(""), 64) // it is known to be fast meanwhile
}

// TestPullAsksOnWhileKeysAreWritten: an answer makes room at the peer at once, but what has come and is
// not written yet is bounded, and not asked for again.
func TestPullAsksOnWhileKeysAreWritten(t *testing.T) {
	d := newDownload(t, "d", "a", "d", "a")
	ids := parseRanges(t, []string{"1-2000"})
	d.give("a", ids)
	var unwritten []plan.Fetch
	asked := map[meta.KeyID]bool{}
	next := func() []plan.Fetch {
		fetches, _ := d.pull.Next(ticks(d.now), d.missing(), d.sources, fast, 0)
		for _, f := range fetches {
			for _, id := range f.IDs {
				if asked[id] {
					t.Fatalf("%s is asked for twice", name(id))
				}
				asked[id] = true
			}
		}
		return fetches
	}
	for fetches := next(); len(fetches) > 0; fetches = next() {
		for _, f := range fetches {
			d.pull.Answered(f, false, ticks(d.now), 0)
			unwritten = append(unwritten, f)
		}
	}
	if len(asked) != 1024 || !d.pull.Busy() {
		t.Errorf("%d keys are under way, want 1024; busy %v", len(asked), d.pull.Busy())
	}
	for _, f := range unwritten {
		for _, id := range f.IDs {
			d.has[id] = true
		}
		d.pull.Done(f)
	}
	if d.pull.Busy() {
		t.Error("busy although all is written")
	}
	if fetches := next(); len(fetches) != 2 {
		t.Errorf("%d requests when there is room again, want 2", len(fetches))
	}
}
