package plan_test

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// protocol is the whole life of keys and of the data under them with an abstract raft: three servers
// that see one ring and one store of records, the leader's work in its smallest steps, and everything
// that can come in between. A search visits every order of events.
type protocol struct {
	ring     *meta.Ring
	index    uint64
	restores int
	records  [2]int // the key that each is sealed under
	disks    [3]disk
	leader   int
	made     int // keys so far

	saved *protocol // a snapshot: its ring and its records

	// What is on its way. A leader that dies takes all of it with it, but for the writer's.
	activate *activation
	scan     *scan
	replace  *replacement
	writer   int // the key under which somebody has sealed what is yet to be stored; zero for none

	left budgets
}

type disk struct {
	wiped int
	keys  map[int]bool
}

type activation struct {
	cmd      meta.Activate
	restores int
	checked  bool // against restores: nothing is looked at any more
}

type scan struct {
	key, seen int // records found not to be under it
	restores  int
	marked    bool   // the clean scan is recorded
	clean     uint64 // its index, once that no restore came before it
}

type replacement struct{ record, old, new int }

// budgets bound the search.
type budgets struct{ rotations, removals, writes, crashes, wipes, snapshots, restores int }

func keyNumber(id meta.KeyID) int { return int(id[15]) }

func ringID(n int) meta.KeyID { return meta.KeyID{15: byte(n)} }

func serverID(s int) string { return string(rune('a' + s)) }

func (p *protocol) keystore(s int) meta.KeystoreID {
	return meta.KeystoreID{byte('a' + s), byte(p.disks[s].wiped + 1)}
}

func (p *protocol) clone() *protocol {
	c := *p
	for s := range c.disks {
		c.disks[s].keys = maps.Clone(p.disks[s].keys)
	}
	if p.activate != nil {
		a := *p.activate
		c.activate = &a
	}
	if p.scan != nil {
		s := *p.scan
		c.scan = &s
	}
	return &c
}

// apply sends commands through the log, and reports whether they had an effect.
func (p *protocol) apply(cmds ...meta.Command) bool {
	p.index++
	next, err := p.ring.Apply(p.index, cmds)
	if err != nil {
		return false
	}
	p.ring = next
	return true
}

// admit is the fence.
func (p *protocol) admit(key int) bool {
	active := p.ring.Active()
	return active != nil && keyNumber(active.ID) == key
}

func (p *protocol) situation() plan.Situation {
	ids := []string{"a", "b", "c"}
	return plan.Situation{Now: start.Add(time.Hour), Voters: ids, Servers: ids, Greeted: true}
}

// event is one thing that can happen.
type event struct {
	name string
	do   func(*protocol) bool // false if it can't happen now, or changes nothing
}

func protocolEvents() []event {
	var all []event
	add := func(name string, do func(*protocol) bool) { all = append(all, event{name, do}) }
	add("full rotation", (*protocol).rotate)
	add("ask", (*protocol).ask)
	add("check the answers' time", func(p *protocol) bool {
		if p.activate == nil || p.activate.checked {
			return false
		}
		if p.activate.restores != p.restores {
			p.activate = nil
			return true
		}
		p.activate.checked = true
		return true
	})
	add("activate", func(p *protocol) bool {
		if p.activate == nil || !p.activate.checked {
			return false
		}
		cmd := p.activate.cmd
		p.activate = nil
		p.apply(meta.Command{Activate: &cmd})
		return true
	})
	for s := range 3 {
		add(fmt.Sprint("fetch to ", serverID(s)), func(p *protocol) bool { return p.fetch(s) })
		add(fmt.Sprint("report of ", serverID(s)), func(p *protocol) bool { return p.report(s) })
		add(fmt.Sprint("wipe ", serverID(s)), func(p *protocol) bool {
			if p.left.wipes == 0 {
				return false
			}
			p.left.wipes--
			p.disks[s] = disk{p.disks[s].wiped + 1, map[int]bool{}}
			if s == p.leader {
				p.newLeader()
			}
			return true
		})
	}
	add("crash", func(p *protocol) bool {
		if p.left.crashes == 0 {
			return false
		}
		p.left.crashes--
		p.newLeader()
		return true
	})
	add("seal", func(p *protocol) bool {
		if p.left.writes == 0 || p.writer != 0 || p.ring.Active() == nil {
			return false
		}
		p.left.writes--
		p.writer = keyNumber(p.ring.Active().ID)
		return true
	})
	add("store", func(p *protocol) bool {
		if p.writer == 0 {
			return false
		}
		if p.admit(p.writer) {
			p.records[0] = p.writer
		}
		p.writer = 0
		return true
	})
	add("scan", (*protocol).beginScan)
	add("look at a record", (*protocol).look)
	add("replace", func(p *protocol) bool {
		if p.replace == nil {
			return false
		}
		if r := *p.replace; p.records[r.record] == r.old && p.admit(r.new) {
			p.records[r.record] = r.new
		}
		p.replace = nil
		return true
	})
	add("record the clean scan", func(p *protocol) bool {
		if p.scan == nil || p.scan.seen < len(p.records) || p.scan.marked {
			return false
		}
		if !p.apply(meta.Command{Clean: &meta.Clean{ID: ringID(p.scan.key)}}) {
			p.scan = nil
			return true
		}
		p.scan.marked = true
		return true
	})
	add("check the scan's time", func(p *protocol) bool {
		if p.scan == nil || !p.scan.marked || p.scan.clean != 0 {
			return false
		}
		k := p.ring.Key(ringID(p.scan.key))
		if k == nil || p.scan.restores != p.restores {
			p.scan = nil
			return true
		}
		p.scan.clean = k.Clean
		return true
	})
	add("deprecate", func(p *protocol) bool {
		if p.scan == nil || p.scan.clean == 0 {
			return false
		}
		s := *p.scan
		p.scan = nil
		p.apply(meta.Command{Deprecate: &meta.Deprecate{ID: ringID(s.key), Clean: s.clean}})
		return true
	})
	add("remove", func(p *protocol) bool {
		for _, k := range p.ring.Keys {
			if k.State == meta.StateDeprecated && p.left.removals > 0 {
				p.left.removals--
				return p.apply(meta.Command{Remove: &meta.Remove{ID: k.ID, From: k.State, Time: start}})
			}
		}
		return false
	})
	add("snapshot", func(p *protocol) bool {
		if p.left.snapshots == 0 {
			return false
		}
		p.left.snapshots--
		p.saved = &protocol{ring: p.ring, records: p.records}
		return true
	})
	add("restore", func(p *protocol) bool {
		if p.saved == nil || p.left.restores == 0 {
			return false
		}
		p.left.restores--
		p.restores++
		p.index += 1000 // raft goes on behind all that it had
		p.ring, p.records = p.saved.ring, p.saved.records
		return true
	})
	return all
}

func (p *protocol) newLeader() {
	p.leader = (p.leader + 1) % 3
	p.activate, p.scan, p.replace = nil, nil, nil
}

// rotate makes a key, its file on the leader first.
func (p *protocol) rotate() bool {
	if p.left.rotations == 0 {
		return false
	}
	p.left.rotations--
	p.made++
	p.disks[p.leader].keys[p.made] = true
	hold := meta.Hold{Server: serverID(p.leader), Keystore: p.keystore(p.leader), Gained: []meta.KeyID{ringID(p.made)}}
	add := meta.Add{Full: true, Key: meta.NewKey{
		ID: ringID(p.made), Algorithm: "EdDSA", Public: []byte{1}, Check: meta.CheckValue{byte(p.made)}, Created: start,
	}}
	return p.apply(meta.Command{Add: &add}, meta.Command{Hold: &hold})
}

// fetch brings a server what it lacks and another has.
func (p *protocol) fetch(s int) bool {
	for _, k := range p.ring.Keys {
		n := keyNumber(k.ID)
		if p.disks[s].keys[n] {
			continue
		}
		for other := range 3 {
			if p.disks[other].keys[n] {
				p.disks[s].keys[n] = true
				return true
			}
		}
	}
	return false
}

// report records what a server holds.
func (p *protocol) report(s int) bool {
	held := func(id meta.KeyID) bool { return p.disks[s].keys[keyNumber(id)] }
	gained, lost := plan.Report(p.ring, serverID(s), p.keystore(s), held)
	if len(gained)+len(lost) == 0 {
		return false
	}
	return p.apply(meta.Command{Hold: &meta.Hold{Server: serverID(s), Keystore: p.keystore(s), Gained: gained, Lost: lost}})
}

// ask has every server say what it holds at this moment.
func (p *protocol) ask() bool {
	if p.activate != nil {
		return false
	}
	for _, k := range p.ring.Prepublished() {
		answers := map[string]plan.Answer{}
		for s := range 3 {
			a := plan.Answer{Keystore: p.keystore(s)}
			if p.disks[s].keys[keyNumber(k.ID)] {
				a.Held = []meta.KeyID{k.ID}
			}
			answers[serverID(s)] = a
		}
		sit := p.situation()
		if v := plan.Judge(p.ring, k.ID, sit, answers); v.Activate {
			p.activate = &activation{
				cmd:      meta.Activate{ID: k.ID, Voters: sit.Voters, Confirmed: v.Confirmed, Time: start},
				restores: p.restores,
			}
			return true
		}
	}
	return false
}

func (p *protocol) beginScan() bool {
	keys := plan.Rekeying(p.ring)
	if p.scan != nil || p.replace != nil || len(keys) == 0 {
		return false
	}
	p.scan = &scan{key: keyNumber(keys[0].ID), restores: p.restores}
	return true
}

// look takes the scan one record further. One that is under the key is sealed anew.
func (p *protocol) look() bool {
	if p.scan == nil || p.scan.seen == len(p.records) {
		return false
	}
	if p.records[p.scan.seen] == p.scan.key {
		p.replace = &replacement{p.scan.seen, p.scan.key, keyNumber(p.ring.Active().ID)}
		p.scan = nil
		return true
	}
	p.scan.seen++
	return true
}

// wrong says which invariant does not hold, if any.
func (p *protocol) wrong() string {
	if err := p.ring.Check(); err != nil {
		return "I2: " + err.Error()
	}
	for r, n := range p.records {
		k := p.ring.Key(ringID(n))
		if k == nil || k.State == meta.StateDeprecated || k.State == meta.StatePrepublished {
			return fmt.Sprintf("I5: record %d is under key %d, which is %+v", r, n, k)
		}
		if !slices.ContainsFunc(p.disks[:], func(d disk) bool { return d.keys[n] }) {
			return fmt.Sprintf("I3: no disk has key %d, which record %d is under", n, r)
		}
	}
	return ""
}

// String is all that makes a difference to what can still happen: of indexes, only their order.
func (p *protocol) String() string {
	indexes := []uint64{0}
	rings := []*meta.Ring{p.ring}
	if p.saved != nil {
		rings = append(rings, p.saved.ring)
	}
	for _, r := range rings {
		for _, k := range r.Keys {
			indexes = append(indexes, k.Clean)
		}
	}
	if p.scan != nil {
		indexes = append(indexes, p.scan.clean)
	}
	slices.Sort(indexes)
	indexes = slices.Compact(indexes)
	order := func(index uint64) int { return slices.Index(indexes, index) }

	var b strings.Builder
	for _, r := range rings {
		for _, k := range r.Keys {
			fmt.Fprint(&b, keyNumber(k.ID), k.State, k.Holders, order(k.Clean), ";")
		}
		for _, t := range r.Removed {
			fmt.Fprint(&b, "-", keyNumber(t.ID))
		}
		fmt.Fprintln(&b, r.Servers)
	}
	fmt.Fprintln(&b, p.records, p.disks, p.leader, p.writer, p.left, p.made)
	if p.saved != nil {
		fmt.Fprintln(&b, "saved", p.saved.records)
	}
	if s := p.scan; s != nil {
		fmt.Fprintln(&b, "scan", s.key, s.seen, s.marked, order(s.clean), p.restores-s.restores)
	}
	if a := p.activate; a != nil {
		fmt.Fprintln(&b, "activate", a.cmd.ID, a.cmd.Confirmed, a.checked, p.restores-a.restores)
	}
	if p.replace != nil {
		fmt.Fprintln(&b, "replace", *p.replace)
	}
	return b.String()
}

// newProtocol is a cluster in which everybody holds key 1, and both records are under it.
func newProtocol(left budgets) *protocol {
	p := &protocol{ring: &meta.Ring{}, records: [2]int{1, 1}, left: budgets{rotations: 1}}
	for s := range p.disks {
		p.disks[s].keys = map[int]bool{}
	}
	p.apply(meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	p.rotate()
	for s := range 3 {
		p.fetch(s)
		p.report(s)
	}
	p.ask()
	p.activate.checked = true
	p.apply(meta.Command{Activate: &p.activate.cmd})
	p.activate, p.left = nil, left
	return p
}

// TestI2I3I5EveryOrderOfEvents: rotations, scans, writers, a removal, with a crash, a wiped disk
// and a restored snapshot at every point.
func TestI2I3I5EveryOrderOfEvents(t *testing.T) {
	searches := map[string]budgets{
		"two rotations and a removal": {rotations: 2, removals: 1, writes: 1},
		"a crash":                     {rotations: 1, removals: 1, writes: 1, crashes: 1},
		"a wiped disk":                {rotations: 1, removals: 1, writes: 1, wipes: 1},
		"a restored snapshot":         {rotations: 1, removals: 1, writes: 1, snapshots: 1, restores: 1},
	}
	if *everything {
		searches = map[string]budgets{
			"all of it": {rotations: 1, removals: 1, writes: 1, crashes: 1, wipes: 1, snapshots: 1, restores: 1},
		}
	}
	for name, left := range searches {
		t.Run(name, func(t *testing.T) {
			events := protocolEvents()
			type node struct {
				p     *protocol
				trace *step
			}
			first := newProtocol(left)
			seen, queue := map[string]bool{first.String(): true}, []node{{first, nil}}
			removed, moved := 0, 0
			for len(queue) > 0 {
				n := queue[0]
				queue = queue[1:]
				for _, e := range events {
					next := n.p.clone()
					if !e.do(next) {
						continue
					}
					trace := &step{e.name, n.trace}
					if wrong := next.wrong(); wrong != "" {
						t.Fatalf("%s\nafter %s\n%s", wrong, trace, next)
					}
					if key := next.String(); !seen[key] {
						seen[key] = true
						queue = append(queue, node{next, trace})
						removed += len(next.ring.Removed)
						moved += next.records[1] - 1
					}
				}
			}
			if t.Logf("%d states", len(seen)); removed == 0 || moved == 0 {
				t.Errorf("%d removals, %d moves: that was no search", removed, moved)
			}
		})
	}
}

var everything = flag.Bool("everything", false, "one search with every kind of event, of three minutes")

// step is an event and what came before it.
type step struct {
	name   string
	before *step
}

func (s *step) String() string {
	if s.before == nil {
		return s.name
	}
	return s.before.String() + ", " + s.name
}
