package meta_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/meta"
	"pgregory.net/rapid"
)

// A model small enough to be right by looking at it: keys and servers are numbers and
// letters, and the rules are written down a second time without regard to cost.
type model struct {
	at        uint64 // index of the entry
	named     bool
	keys      map[int]mkey
	removed   map[int]bool
	keystores map[string]int
	backup    uint64
	tokens    map[int]mtoken
	nonvoters map[string]bool
}

type mtoken struct {
	key  int
	user byte
}

type mkey struct {
	state             string
	full              bool
	revoke            []int
	revoked, dataOnly bool
	check             byte
	holders           string // sorted letters
	clean             uint64
	remove            bool
	compromised       bool
}

func newModel() *model {
	return &model{keys: map[int]mkey{}, removed: map[int]bool{}, keystores: map[string]int{}, tokens: map[int]mtoken{}, nonvoters: map[string]bool{}}
}

func (m *model) clone() *model {
	return &model{m.at, m.named, maps.Clone(m.keys), maps.Clone(m.removed), maps.Clone(m.keystores), m.backup, maps.Clone(m.tokens), maps.Clone(m.nonvoters)}
}

// apply says whether the command is allowed. If not, m is spoilt.
func (m *model) apply(c meta.Command) bool {
	if !m.named && c.Init == nil {
		return false
	}
	switch {
	case c.Init != nil:
		was := m.named
		m.named = true
		return !was
	case c.Add != nil:
		return m.add(c.Add)
	case c.Hold != nil:
		return m.report(c.Hold)
	case c.Forget != nil:
		for _, s := range c.Forget.Servers {
			m.drop(s)
		}
	case c.Activate != nil:
		return m.activate(c.Activate)
	case c.Rekey != nil:
		return m.rekey(c.Rekey)
	case c.Clean != nil:
		return m.scanned(c.Clean)
	case c.Deprecate != nil:
		return m.deprecate(c.Deprecate)
	case c.Remove != nil:
		return m.remove(c.Remove)
	case c.AddJoinToken != nil:
		return m.addToken(c.AddJoinToken)
	case c.UseJoinToken != nil:
		return m.useToken(c.UseJoinToken)
	case c.EndJoinTokens != nil:
		return m.endSome(c.EndJoinTokens)
	case c.Nonvoter != nil:
		if m.nonvoters[c.Nonvoter.Server] = true; c.Nonvoter.End {
			delete(m.nonvoters, c.Nonvoter.Server)
		}
	case c.Backup != nil:
		if c.Backup.Index >= m.at {
			return false
		}
		m.backup = max(m.backup, c.Backup.Index)
	case c.Adopt != nil:
		return m.adopt(c.Adopt)
	}
	return true
}

func (m *model) add(a *meta.Add) bool {
	n := number(a.Key.ID)
	if _, used := m.keys[n]; used || m.removed[n] {
		return false
	}
	k := mkey{state: "prepublished", full: a.Full, check: a.Key.Check[31], compromised: a.Compromised}
	for _, id := range a.Revoke {
		if k, ok := m.keys[number(id)]; !ok || k.state == "prepublished" {
			return false
		}
		k.revoke = append(k.revoke, number(id))
	}
	m.keys[n] = k
	return true
}

func (m *model) report(h *meta.Hold) bool {
	s, ks := h.Server, int(h.Keystore[1])
	if m.keystores[s] != ks {
		m.drop(s)
		m.keystores[s] = ks
	}
	for _, id := range h.Gained {
		m.hold(number(id), s, true)
	}
	for _, id := range h.Lost {
		m.hold(number(id), s, false)
	}
	return true
}

func (m *model) rekey(r *meta.Rekey) bool {
	n := number(r.ID)
	k := m.keys[n]
	begins, adds := k.state == "inactive", k.state == "rekeying" && r.Remove && !k.remove
	k.state, k.remove = "rekeying", r.Remove
	m.keys[n] = k
	m.endTokens(n)
	return begins || adds
}

func (m *model) scanned(c *meta.Clean) bool {
	n := number(c.ID)
	k := m.keys[n]
	k.clean = m.at
	m.keys[n] = k
	return k.state == "rekeying"
}

func (m *model) deprecate(d *meta.Deprecate) bool {
	n := number(d.ID)
	k := m.keys[n]
	was := k.state
	k.state = "deprecated"
	m.keys[n] = k
	return was == "rekeying" && k.clean == d.Clean
}

func (m *model) remove(r *meta.Remove) bool {
	n := number(r.ID)
	k, ok := m.keys[n]
	allowed := []string{"prepublished", "deprecated"}
	if r.Force {
		allowed = append(allowed, "inactive", "rekeying")
	}
	if !ok || k.state != string(r.From) || !slices.Contains(allowed, k.state) {
		return false
	}
	delete(m.keys, n)
	m.removed[n] = true
	m.endTokens(n)
	return true
}

func (m *model) addToken(a *meta.AddJoinToken) bool {
	n, key := int(a.Token.ID[15]), number(a.Token.Key)
	_, used := m.tokens[n]
	m.tokens[n] = mtoken{key: key}
	return !used && m.keys[key].state == "active" && !m.keys[key].revoked
}

func (m *model) useToken(u *meta.UseJoinToken) bool {
	n := int(u.ID[15])
	k, ok := m.tokens[n]
	free := k.user == 0 || k.user == u.User[0]
	m.tokens[n] = mtoken{k.key, u.User[0]}
	return ok && free
}

func (m *model) endSome(e *meta.EndJoinTokens) bool {
	for _, id := range e.IDs {
		delete(m.tokens, int(id[15]))
	}
	if e.All {
		clear(m.tokens)
	}
	return true
}

func (m *model) adopt(a *meta.Adopt) bool {
	n := number(a.Key.ID)
	check := a.Key.Check[31]
	if k, ok := m.keys[n]; ok {
		if !k.dataOnly || a.DataOnly || k.check != check {
			return false
		}
		k.dataOnly = false
		m.keys[n] = k
		return true
	}
	if m.removed[n] {
		return false
	}
	m.keys[n] = mkey{state: "inactive", dataOnly: a.DataOnly, check: check}
	return true
}

func (m *model) activate(c *meta.Activate) bool {
	n := number(c.ID)
	k := m.keys[n]
	if k.state != "prepublished" || 2*len(c.Confirmed) <= len(c.Voters) {
		return false
	}
	for _, s := range c.Confirmed {
		if !slices.Contains(c.Voters, s.ID) || !strings.Contains(k.holders, s.ID) || s.Keystore != keystore(s.ID, m.keystores[s.ID]) {
			return false
		}
	}
	for other, o := range m.keys {
		switch {
		case other == n:
		case o.state == "prepublished" && k.full:
			delete(m.keys, other)
			m.removed[other] = true
		case o.state == "active" && !k.full:
			o.state = "inactive"
			m.keys[other] = o
		case o.state == "active", o.state == "inactive" && k.full:
			o.state = "rekeying"
			m.keys[other] = o
		}
	}
	for other, o := range m.keys {
		if k.compromised && other != n {
			o.revoked, o.remove = true, true
			m.keys[other] = o
		}
	}
	for _, r := range k.revoke {
		if o, ok := m.keys[r]; ok {
			o.revoked = true
			m.keys[r] = o
		}
	}
	if k.full || len(k.revoke) > 0 {
		clear(m.tokens)
	}
	k.state, k.compromised = "active", false
	k.revoked = m.keys[n].revoked
	m.keys[n] = k
	return true
}

func (m *model) endTokens(key int) {
	maps.DeleteFunc(m.tokens, func(_ int, t mtoken) bool { return t.key == key })
}

func (m *model) drop(server string) {
	delete(m.keystores, server)
	for n := range m.keys {
		m.hold(n, server, false)
	}
}

func (m *model) hold(n int, server string, held bool) {
	k, ok := m.keys[n]
	if !ok {
		return
	}
	letters := strings.Split(strings.ReplaceAll(k.holders, server, ""), "")
	if held {
		letters = append(letters, server)
	}
	slices.Sort(letters)
	k.holders = strings.Join(letters, "")
	m.keys[n] = k
}

// String is all that the model knows, to compare with a ring told the same way.
func (m *model) String() string {
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(m.keys)) {
		k := m.keys[n]
		fmt.Fprintf(&b, "%d %s %q full=%t revoked=%t dataonly=%t clean=%d remove=%t compromised=%t\n", n, k.state, k.holders, k.full, k.revoked, k.dataOnly, k.clean, k.remove, k.compromised)
	}
	fmt.Fprintln(&b, "backup", m.backup, "removed", slices.Sorted(maps.Keys(m.removed)))
	for _, s := range slices.Sorted(maps.Keys(m.keystores)) {
		fmt.Fprintln(&b, s, m.keystores[s])
	}
	for _, n := range slices.Sorted(maps.Keys(m.tokens)) {
		fmt.Fprintln(&b, "token", n, m.tokens[n])
	}
	fmt.Fprintln(&b, "non-voters", slices.Sorted(maps.Keys(m.nonvoters)))
	return b.String()
}

func tell(r *meta.Ring) string {
	var b strings.Builder
	for _, k := range r.Keys {
		fmt.Fprintf(&b, "%d %s %q full=%t revoked=%t dataonly=%t clean=%d remove=%t compromised=%t\n", number(k.ID), k.State, strings.Join(k.Holders, ""), k.Full, k.Revoked, k.DataOnly, k.Clean, k.Remove, k.Compromised)
	}
	var removed []int
	for _, t := range r.Removed {
		removed = append(removed, number(t.ID))
	}
	fmt.Fprintln(&b, "backup", r.Backup.Index, "removed", removed)
	for _, s := range r.Servers {
		fmt.Fprintln(&b, s.ID, s.Keystore[1])
	}
	for _, t := range r.JoinTokens {
		fmt.Fprintln(&b, "token", t.ID[15], mtoken{number(t.Key), t.User[0]})
	}
	fmt.Fprintln(&b, "non-voters", r.Nonvoters)
	return b.String()
}

func number(id meta.KeyID) int { return int(id[14])<<8 | int(id[15]) }

// The universe of random commands is small, so that they meet.
var (
	anyKey    = rapid.IntRange(1, 6)
	anyToken  = rapid.IntRange(1, 3)
	anyServer = rapid.SampledFrom([]string{"a", "b", "c", "d"})
	anyState  = rapid.SampledFrom([]meta.State{meta.StatePrepublished, meta.StateActive, meta.StateInactive, meta.StateRekeying, meta.StateDeprecated})
)

func drawKey(t *rapid.T) meta.NewKey {
	k := newKey(anyKey.Draw(t, "key"))
	k.Check[31] = byte(rapid.IntRange(0, 1).Draw(t, "check"))
	return k
}

func someKeys(t *rapid.T, what string) []int {
	return rapid.SliceOfN(anyKey, 0, 4).Draw(t, what)
}

// commands draws each command from thin air or, where that would seldom be accepted, from
// what the ring has.
func commands(r func() *meta.Ring) map[string]func(*rapid.T) meta.Command {
	all := newKeyCommands(r)
	maps.Copy(all, oldKeyCommands(r))
	maps.Copy(all, joinTokenCommands(r))
	all["nonvoter"] = func(t *rapid.T) meta.Command { return nonvoter(anyServer.Draw(t, "server")) }
	all["votes"] = func(t *rapid.T) meta.Command { return votes(anyServer.Draw(t, "server")) }
	return all
}

func newKeyCommands(r func() *meta.Ring) map[string]func(*rapid.T) meta.Command {
	return map[string]func(*rapid.T) meta.Command{
		"backup": func(t *rapid.T) meta.Command { return backup(rapid.Uint64Range(1, 20).Draw(t, "index")) },
		"init": func(t *rapid.T) meta.Command {
			return meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{rapid.Byte().Filter(func(b byte) bool { return b > 0 }).Draw(t, "cluster")}}}
		},
		"add": func(t *rapid.T) meta.Command {
			add := meta.Add{Key: drawKey(t), Full: rapid.Bool().Draw(t, "full"), Scheduled: rapid.Bool().Draw(t, "scheduled")}
			if rapid.Bool().Draw(t, "publish") {
				add.Publish = at(rapid.IntRange(0, 99).Draw(t, "hours"))
			}
			add.Compromised = add.Full && rapid.Bool().Draw(t, "compromised")
			for _, n := range someKeys(t, "revoke") {
				if id(n) != add.Key.ID && !add.Compromised {
					add.Revoke = append(add.Revoke, id(n))
				}
			}
			return meta.Command{Add: &add}
		},
		"hold": func(t *rapid.T) meta.Command {
			return hold(anyServer.Draw(t, "server"), rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(t, "keystore"), someKeys(t, "gained"), someKeys(t, "lost"))
		},
		"hold-all": func(t *rapid.T) meta.Command {
			s := anyServer.Draw(t, "server")
			ks, ok := r().Keystore(s)
			if !ok {
				ks = keystore(s, 1)
			}
			return hold(s, int(ks[1]), []int{1, 2, 3, 4, 5, 6}, nil)
		},
		"forget": func(t *rapid.T) meta.Command {
			return meta.Command{Forget: &meta.Forget{Servers: rapid.SliceOfNDistinct(anyServer, 1, 2, rapid.ID).Draw(t, "servers")}}
		},
		"activate": func(t *rapid.T) meta.Command {
			return activate(anyKey.Draw(t, "key"), voters.Draw(t, "voters"), voters.Draw(t, "confirmed"))
		},
		"activate-held": func(t *rapid.T) meta.Command {
			keys := r().Prepublished()
			if len(keys) == 0 { // then it is one that is refused
				return activate(anyKey.Draw(t, "key"), voters.Draw(t, "voters"), voters.Draw(t, "confirmed"))
			}
			k := rapid.SampledFrom(keys).Draw(t, "key")
			c := activate(number(k.ID), voters.Draw(t, "voters"), "")
			for _, v := range c.Activate.Voters {
				if ks, ok := r().Keystore(v); ok && k.HeldBy(v) {
					c.Activate.Confirmed = append(c.Activate.Confirmed, meta.Server{ID: v, Keystore: ks})
				}
			}
			return c
		},
		"adopt": func(t *rapid.T) meta.Command {
			dataOnly := rapid.Bool().Draw(t, "data only")
			admit := !dataOnly && rapid.Bool().Draw(t, "admit")
			return meta.Command{Adopt: &meta.Adopt{Key: drawKey(t), DataOnly: dataOnly, Admit: admit, Time: at(1)}}
		},
	}
}

func oldKeyCommands(r func() *meta.Ring) map[string]func(*rapid.T) meta.Command {
	return map[string]func(*rapid.T) meta.Command{
		"rekey": func(t *rapid.T) meta.Command {
			return meta.Command{Rekey: &meta.Rekey{ID: id(anyKey.Draw(t, "key")), Remove: rapid.Bool().Draw(t, "remove")}}
		},
		"clean": func(t *rapid.T) meta.Command { return meta.Command{Clean: &meta.Clean{ID: id(anyKey.Draw(t, "key"))}} },
		"deprecate": func(t *rapid.T) meta.Command {
			n, clean := anyKey.Draw(t, "key"), uint64(1)
			if k := r().Key(id(n)); k != nil && rapid.Bool().Draw(t, "scanned") {
				clean = max(1, k.Clean)
			}
			return deprecate(n, clean)
		},
		"remove": func(t *rapid.T) meta.Command {
			return remove(anyKey.Draw(t, "key"), anyState.Draw(t, "from"), rapid.Bool().Draw(t, "force"))
		},
		"remove-as-is": func(t *rapid.T) meta.Command {
			n := anyKey.Draw(t, "key")
			if k := r().Key(id(n)); k != nil {
				return remove(n, k.State, rapid.Bool().Draw(t, "force"))
			}
			return remove(n, meta.StateDeprecated, false)
		},
	}
}

func joinTokenCommands(r func() *meta.Ring) map[string]func(*rapid.T) meta.Command {
	return map[string]func(*rapid.T) meta.Command{
		"add-token": func(t *rapid.T) meta.Command {
			key := anyKey.Draw(t, "key")
			if active := r().Active(); active != nil && rapid.IntRange(0, 3).Draw(t, "active") > 0 {
				key = number(active.ID)
			}
			return addJoinToken(anyToken.Draw(t, "token"), key)
		},
		"use-token": func(t *rapid.T) meta.Command {
			return useJoinToken(anyToken.Draw(t, "token"), rapid.ByteRange(1, 2).Draw(t, "user"))
		},
		"end-tokens": func(t *rapid.T) meta.Command {
			if rapid.IntRange(0, 3).Draw(t, "all") == 0 {
				return meta.Command{EndJoinTokens: &meta.EndJoinTokens{All: true}}
			}
			return meta.Command{EndJoinTokens: &meta.EndJoinTokens{IDs: []meta.TokenID{{15: byte(anyToken.Draw(t, "token"))}}}}
		},
	}
}

var voters = rapid.Custom(func(t *rapid.T) string {
	return strings.Join(rapid.SliceOfNDistinct(anyServer, 1, 4, rapid.ID).Draw(t, "set"), "")
})

// TestI2AgainstModel runs random commands, allowed and not, against ring and model. After
// each step at most one key is active, Check and CheckStep hold (see history), the ring
// agrees with the model, and no ring of the past has changed.
func TestI2AgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{tb: t, ring: &meta.Ring{}}
		m := newModel()
		if rapid.Bool().Draw(t, "named") {
			cmd := meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}}
			h.do(cmd)
			m.apply(cmd)
		}
		var past []*meta.Ring
		var was [][]byte
		step := func(cmds ...meta.Command) {
			next := m.clone()
			next.at = h.index + 1
			want := true
			for _, c := range cmds {
				want = want && next.apply(c)
			}
			b, err := encodeEntry(cmds...)
			if err != nil {
				return // it never reaches a log
			}
			if err := h.try(cmds...); (err == nil) != want {
				t.Fatalf("%s: %v; the model allows it: %t\n%s", b, err, want, m)
			}
			if want {
				m = next
			}
			past, was = append(past, h.ring), append(was, encode(t, h.ring))
		}
		actions := map[string]func(*rapid.T){
			"": func(t *rapid.T) { agree(t, h.ring, m) },
		}
		draw := commands(func() *meta.Ring { return h.ring })
		names := slices.Sorted(maps.Keys(draw))
		for name, f := range draw {
			actions[name] = func(t *rapid.T) { step(f(t)) }
		}
		actions["several"] = func(t *rapid.T) {
			var cmds []meta.Command
			for range rapid.IntRange(2, 4).Draw(t, "commands") {
				cmds = append(cmds, draw[rapid.SampledFrom(names).Draw(t, "command")](t))
			}
			step(cmds...)
		}
		t.Repeat(actions)
		for i, r := range past {
			if !bytes.Equal(encode(t, r), was[i]) {
				t.Fatalf("ring %d of %d changed later on", i, len(past))
			}
		}
	})
}

// agree wants a ring to be what the model says, with at most one active key.
func agree(t *rapid.T, r *meta.Ring, m *model) {
	if got, want := tell(r), m.String(); got != want {
		t.Fatalf("the ring has\n%s\nthe model\n%s", got, want)
	}
	active := 0
	for _, k := range r.Keys {
		if k.State == meta.StateActive {
			active++
		}
	}
	if active > 1 {
		t.Fatalf("%d active keys", active)
	}
}

// randomLog draws log entries, of which the FSM will refuse some and others are no entries.
func randomLog(t *rapid.T) [][]byte {
	h := &history{tb: t, ring: &meta.Ring{}}
	draw := commands(func() *meta.Ring { return h.ring })
	names := slices.Sorted(maps.Keys(draw))
	h.do(meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	log := [][]byte{must(encodeEntry(meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}}))}
	for range rapid.IntRange(1, 60).Draw(t, "length") {
		var cmds []meta.Command
		for range rapid.SampledFrom([]int{1, 1, 1, 2}).Draw(t, "commands") {
			cmds = append(cmds, draw[rapid.SampledFrom(names).Draw(t, "command")](t))
		}
		b, err := encodeEntry(cmds...)
		if err != nil {
			b = []byte(`{"version":1,"commands":[{"enlarge":{}}]}`)
		}
		_ = h.try(cmds...)
		log = append(log, b)
	}
	return log
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// replay does what an FSM does with an entry: an error is no change.
func replay(r *meta.Ring, index int, entry []byte) *meta.Ring {
	e, err := meta.DecodeEntry(entry)
	if err != nil {
		return r
	}
	next, err := r.Apply(uint64(index), e.Commands)
	if err != nil {
		return r
	}
	return next
}

// Scenario 25: three servers apply one log, and a fourth to nth are restored from the
// snapshot of each index and go on from there.
func TestI7SameLogSameBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := randomLog(t)
		servers := []*meta.Ring{{}, {}, {}}
		var restored []*meta.Ring
		for i, entry := range log {
			for s, r := range servers {
				servers[s] = replay(r, i+1, entry)
			}
			for s, r := range restored {
				restored[s] = replay(r, i+1, entry)
			}
			want := encode(t, servers[0])
			for s, r := range append(slices.Clone(servers), restored...) {
				if got := encode(t, r); !bytes.Equal(got, want) {
					t.Fatalf("server %d at index %d has\n%s\nwant\n%s", s, i+1, got, want)
				}
			}
			r, err := meta.Decode(want)
			if err != nil {
				t.Fatalf("Decode at index %d: %v\n%s", i+1, err, want)
			}
			restored = append(restored, r)
		}
	})
}

// anyRing draws rings that Check accepts, whether or not a log leads to them.
func anyRing(t *rapid.T) *meta.Ring {
	r := &meta.Ring{Cluster: meta.ClusterID{1}}
	var servers []string
	for _, s := range slices.Sorted(slices.Values(rapid.SliceOfNDistinct(anyServer, 0, 4, rapid.ID).Draw(t, "servers"))) {
		servers = append(servers, s)
		r.Servers = append(r.Servers, meta.Server{ID: s, Keystore: keystore(s, rapid.IntRange(1, 3).Draw(t, "keystore"))})
	}
	for n := 1; n <= 6; n++ {
		n8 := newKey(n)
		k := &meta.Key{
			ID: n8.ID, Algorithm: n8.Algorithm, Public: n8.Public, Check: n8.Check, Created: n8.Created, State: anyState.Draw(t, "state"),
			Full: rapid.Bool().Draw(t, "full"), Revoked: rapid.Bool().Draw(t, "revoked"), DataOnly: rapid.Bool().Draw(t, "data only"),
			Revoke: ids(someKeys(t, "revoke")...), CreateIndex: uint64(n), ModifyIndex: uint64(rapid.IntRange(1, 50).Draw(t, "index")),
			Clean: rapid.Uint64Range(0, 50).Draw(t, "clean"), Remove: rapid.Bool().Draw(t, "remove"), Compromised: rapid.Bool().Draw(t, "compromised"),
		}
		if rapid.Bool().Draw(t, "was active") {
			k.Activated = at(n)
		}
		if rapid.Bool().Draw(t, "was retired") {
			k.Retired = at(n)
		}
		for _, s := range servers {
			if rapid.Bool().Draw(t, "holds") {
				k.Holders = append(k.Holders, s)
			}
		}
		// Check decides whether this key may be there, or in its place a tombstone.
		r.Keys = append(r.Keys, k)
		if r.Check() != nil {
			r.Keys = r.Keys[:len(r.Keys)-1]
			r.Removed = append(r.Removed, meta.Tombstone{ID: k.ID, Removed: at(n), Index: 1})
		}
	}
	r.Nonvoters = slices.Sorted(slices.Values(rapid.SliceOfNDistinct(anyServer, 0, 2, rapid.ID).Draw(t, "non-voters")))
	for n, k := range r.Keys {
		was := r.JoinTokens
		if r.JoinTokens = append(was, addJoinToken(n+1, number(k.ID)).AddJoinToken.Token); r.Check() != nil {
			r.JoinTokens = was
		}
	}
	return r
}

// Apply is total, and Check is enough: from whatever ring it accepts, any command leads to
// a refusal or to a ring that it accepts too. So it does at an index behind those in the ring: raft may have been given a
// snapshot under a lower one.
func TestI7ApplyIsTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := &history{tb: t, ring: anyRing(t), index: rapid.Uint64Range(0, 60).Draw(t, "index")}
		back, err := meta.Decode(encode(t, h.ring))
		if err != nil {
			t.Fatalf("Decode: %v", err)
		}
		h.ring = back
		draw := commands(func() *meta.Ring { return h.ring })
		names := slices.Sorted(maps.Keys(draw))
		for range 10 {
			_ = h.try(draw[rapid.SampledFrom(names).Draw(t, "command")](t))
		}
	})
}
