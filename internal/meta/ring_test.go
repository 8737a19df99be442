package meta_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/meta"
)

// tb is what *testing.T, *testing.B and *rapid.T have in common here.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
}

// history is a ring and the raft log that led to it. It checks every step.
type history struct {
	tb
	ring  *meta.Ring
	index uint64
}

// begin returns the history of a cluster that has its ID and nothing else.
func begin(t tb) *history {
	h := &history{tb: t, ring: &meta.Ring{}}
	h.do(meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	return h
}

func encodeEntry(cmds ...meta.Command) ([]byte, error) { return meta.Entry{Commands: cmds}.Encode() }

// try sends the commands through the log as one entry. An entry that is malformed never
// gets that far.
func (h *history) try(cmds ...meta.Command) error {
	h.Helper()
	b, err := encodeEntry(cmds...)
	if err != nil {
		return err
	}
	decoded, err := meta.DecodeEntry(b)
	if err != nil {
		h.Fatalf("an entry does not decode: %v\n%s", err, b)
	}
	return h.apply(decoded.Commands)
}

func (h *history) apply(cmds []meta.Command) error {
	h.Helper()
	before, was := h.ring, encode(h, h.ring)
	h.index++
	next, err := before.Apply(h.index, cmds)
	if now := encode(h, before); !bytes.Equal(was, now) {
		h.Fatalf("Apply changed the ring it was called on:\n%s\n%s", was, now)
	}
	if err != nil {
		if next != nil || !errors.Is(err, meta.ErrCommandRefused) {
			h.Fatalf("Apply = %v, %v; want no ring and ErrCommandRefused", next, err)
		}
		return err
	}
	if err := next.Check(); err != nil {
		h.Fatalf("Check after %s: %v", show(cmds), err)
	}
	if err := before.CheckStep(next); err != nil {
		h.Fatalf("CheckStep after %s: %v", show(cmds), err)
	}
	for _, k := range next.Keys {
		if (k.State == meta.StateActive) != (k == next.Active()) {
			h.Fatalf("key %s is %s, and Active says %+v", k.ID, k.State, next.Active())
		}
	}
	h.ring = next
	return nil
}

func (h *history) do(cmds ...meta.Command) {
	h.Helper()
	if err := h.try(cmds...); err != nil {
		h.Fatalf("%s: %v", show(cmds), err)
	}
}

func (h *history) refused(want error, cmds ...meta.Command) {
	h.Helper()
	before := encode(h, h.ring)
	if err := h.try(cmds...); !errors.Is(err, want) {
		h.Fatalf("%s: error %v, want %v", show(cmds), err, want)
	}
	if after := encode(h, h.ring); !bytes.Equal(before, after) {
		h.Fatalf("a refused command left a change:\n%s\n%s", before, after)
	}
}

// deprecate records a clean scan and deprecates the key.
func (h *history) deprecate(n int) {
	h.Helper()
	h.do(meta.Command{Clean: &meta.Clean{ID: id(n)}})
	h.do(deprecate(n, h.index))
}

func backup(index uint64) meta.Command {
	return meta.Command{Backup: &meta.Backup{Index: index, Time: at(2), Digest: meta.Digest{31: byte(index) + 1}}}
}

func deprecate(n int, clean uint64) meta.Command {
	return meta.Command{Deprecate: &meta.Deprecate{ID: id(n), Clean: clean}}
}

// prepublish adds a key and has servers a, b and c report it.
func (h *history) prepublish(n int, change ...func(*meta.Add)) {
	h.Helper()
	add := meta.Add{Key: newKey(n)}
	for _, f := range change {
		f(&add)
	}
	h.do(meta.Command{Add: &add})
	h.hold(n, "a", "b", "c")
}

func (h *history) hold(n int, servers ...string) {
	h.Helper()
	for _, s := range servers {
		h.do(hold(s, 1, []int{n}, nil))
	}
}

// rotate prepublishes and activates a key.
func (h *history) rotate(n int, change ...func(*meta.Add)) {
	h.Helper()
	h.prepublish(n, change...)
	h.do(activate(n, "abc", "ab"))
}

// state is where the ring has the key: its state, or absent, or tombstone.
func (h *history) state(n int) string {
	switch k := h.ring.Key(id(n)); {
	case k != nil:
		return string(k.State)
	case h.ring.WasRemoved(id(n)):
		return "tombstone"
	}
	return "absent"
}

func (h *history) wantHolders(n int, want ...string) {
	h.Helper()
	if got := h.ring.Key(id(n)).Holders; !slices.Equal(got, want) {
		h.Fatalf("key %d is held by %q, want %q", n, got, want)
	}
}

func (h *history) wantState(n int, want string) {
	h.Helper()
	if got := h.state(n); got != want {
		h.Fatalf("key %d is %s, want %s", n, got, want)
	}
}

func id(n int) meta.KeyID { return meta.KeyID{14: byte(n >> 8), 15: byte(n)} }

func ids(ns ...int) []meta.KeyID {
	var out []meta.KeyID
	for _, n := range ns {
		out = append(out, id(n))
	}
	return out
}

// at is n hours into the test.
func at(n int) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Hour)
}

func newKey(n int) meta.NewKey {
	return meta.NewKey{ID: id(n), Algorithm: "EdDSA", Public: []byte{0x30, byte(n)}, Check: meta.CheckValue{1, byte(n >> 8), byte(n)}, Created: at(n)}
}

// keystore is the nth keystore of a server.
func keystore(server string, n int) meta.KeystoreID {
	return meta.KeystoreID{server[0], byte(n)}
}

func hold(server string, ks int, gained, lost []int) meta.Command {
	return meta.Command{Hold: &meta.Hold{Server: server, Keystore: keystore(server, ks), Gained: ids(gained...), Lost: ids(lost...)}}
}

// activate names voters and confirmed servers by a letter each, all with their first keystore.
func activate(n int, voters, confirmed string) meta.Command {
	c := meta.Activate{ID: id(n), Time: at(100 + n)}
	for _, v := range voters {
		c.Voters = append(c.Voters, string(v))
	}
	for _, s := range confirmed {
		c.Confirmed = append(c.Confirmed, meta.Server{ID: string(s), Keystore: keystore(string(s), 1)})
	}
	return meta.Command{Activate: &c}
}

func remove(n int, from meta.State, force bool) meta.Command {
	return meta.Command{Remove: &meta.Remove{ID: id(n), From: from, Force: force, Time: at(200)}}
}

func adopt(n int, dataOnly bool) meta.Command {
	return meta.Command{Adopt: &meta.Adopt{Key: newKey(n), DataOnly: dataOnly, Time: at(10)}}
}

func full(a *meta.Add) { a.Full = true }

func revoke(ns ...int) func(*meta.Add) { return func(a *meta.Add) { a.Revoke = ids(ns...) } }

func encode(t tb, r *meta.Ring) []byte {
	t.Helper()
	b, err := r.Encode()
	if err != nil {
		t.Fatalf("Encode: %v", err)
	}
	return b
}

func show(cmds []meta.Command) string {
	b, err := encodeEntry(cmds...)
	if err != nil {
		return fmt.Sprintf("%+v (%v)", cmds, err)
	}
	return string(b)
}

// edges is the state diagram of the design: what each command does to a key in each state.
// A dash is a refusal, an equals sign an accepted command that leaves the state alone.
// Remove names the state the key is in; rotate and full rotate activate another key.
const edges = `
               absent        prepublished  active    inactive   rekeying    deprecated  tombstone
init           -             -             -         -          -           -           -
add            prepublished  -             -         -          -           -           -
hold           =             =             =         =          =           =           =
lose           =             =             =         =          =           =           =
forget         =             =             =         =          =           =           =
activate       -             active        -         -          -           -           -
rotate         =             =             inactive  =          =           =           =
full-rotate    =             tombstone     rekeying  rekeying   =           =           =
rekey          -             -             -         rekeying   -           -           -
rekey-remove   -             -             -         rekeying   =           -           -
clean          -             -             -         -          =           -           -
deprecate      -             -             -         -          deprecated  -           -
deprecate-old  -             -             -         -          -           -           -
remove         -             tombstone     -         -          -           tombstone   -
force-remove   -             tombstone     -         tombstone  tombstone   tombstone   -
adopt          inactive      -             -         -          -           -           -
adopt-data     inactive      -             -         -          -           -           -
`

func TestI5StatesMoveAsDrawn(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(edges), "\n")
	states := strings.Fields(lines[0])
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		for i, state := range states {
			t.Run(f[0]+"/"+state, func(t *testing.T) {
				h := inState(t, state)
				cmd := edge(h, f[0])
				if f[1+i] == "-" {
					h.refused(meta.ErrCommandRefused, cmd)
					return
				}
				h.do(cmd)
				h.wantState(1, strings.ReplaceAll(f[1+i], "=", state))
			})
		}
	}
}

// inState returns a history in which key 1 has come to the state.
func inState(t *testing.T, state string) *history {
	h := begin(t)
	steps := []struct {
		state string
		do    func()
	}{
		{"absent", func() { h.hold(1, "a", "b", "c") }},
		{"prepublished", func() { h.prepublish(1) }},
		{"active", func() { h.do(activate(1, "abc", "abc")) }},
		{"inactive", func() { h.rotate(2) }},
		{"rekeying", func() { h.do(meta.Command{Rekey: &meta.Rekey{ID: id(1)}}) }},
		{"deprecated", func() { h.deprecate(1) }},
		{"tombstone", func() { h.do(remove(1, meta.StateDeprecated, false)) }},
	}
	for _, s := range steps {
		s.do()
		h.wantState(1, s.state)
		if s.state == state {
			return h
		}
	}
	t.Fatalf("no state %q", state)
	return nil
}

// edge returns the command of a row of the table, for key 1 in its present state.
func edge(h *history, row string) meta.Command {
	from := meta.State(h.state(1))
	switch row {
	case "init":
		return meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}}
	case "add":
		return meta.Command{Add: &meta.Add{Key: newKey(1)}}
	case "hold":
		return hold("d", 1, []int{1}, nil)
	case "lose":
		return hold("a", 1, nil, []int{1})
	case "forget":
		return meta.Command{Forget: &meta.Forget{Servers: []string{"a", "nobody"}}}
	case "activate":
		return activate(1, "abc", "abc")
	case "rotate":
		h.prepublish(9)
		return activate(9, "abc", "abc")
	case "full-rotate":
		h.prepublish(9, full)
		return activate(9, "abc", "abc")
	case "rekey":
		return meta.Command{Rekey: &meta.Rekey{ID: id(1)}}
	case "rekey-remove":
		return meta.Command{Rekey: &meta.Rekey{ID: id(1), Remove: true}}
	case "clean":
		return meta.Command{Clean: &meta.Clean{ID: id(1)}}
	case "deprecate":
		if h.try(meta.Command{Clean: &meta.Clean{ID: id(1)}}) != nil {
			return deprecate(1, 1)
		}
		return deprecate(1, h.index)
	case "deprecate-old":
		return deprecate(1, 1)
	case "remove":
		return remove(1, from, false)
	case "force-remove":
		return remove(1, from, true)
	case "adopt":
		return adopt(1, false)
	case "adopt-data":
		return adopt(1, true)
	}
	h.Fatalf("no command %q", row)
	return meta.Command{}
}

// A Remove that was meant for an earlier state must not hit a key that has moved on.
func TestRemoveRefusesOtherState(t *testing.T) {
	states := []string{"prepublished", "active", "inactive", "rekeying", "deprecated"}
	for _, state := range states {
		for _, from := range append(states, "", "tombstone") {
			if from != state {
				inState(t, state).refused(meta.ErrCommandRefused, remove(1, meta.State(from), true))
			}
		}
	}
}

func TestEverythingNeedsInit(t *testing.T) {
	for _, cmd := range []meta.Command{
		{Add: &meta.Add{Key: newKey(1)}}, hold("a", 1, nil, nil), adopt(1, true), remove(1, meta.StatePrepublished, true),
		{Forget: &meta.Forget{Servers: []string{"a"}}}, activate(1, "a", "a"),
		{Rekey: &meta.Rekey{ID: id(1)}}, {Clean: &meta.Clean{ID: id(1)}}, deprecate(1, 1),
	} {
		h := &history{tb: t, ring: &meta.Ring{}}
		h.refused(meta.ErrCommandRefused, cmd)
	}
}

func TestInitOnlyOnce(t *testing.T) {
	h := begin(t)
	for _, c := range []meta.ClusterID{{1}, {2}} {
		h.refused(meta.ErrCommandRefused, meta.Command{Init: &meta.Init{Cluster: c}})
	}
	h.refused(meta.ErrMalformed, meta.Command{Init: &meta.Init{}})
}

func TestI3ActivationNeedsMajorityOfConfirmedHolders(t *testing.T) {
	with := func(cmd meta.Command, change func(*meta.Activate)) meta.Command {
		change(cmd.Activate)
		return cmd
	}
	tests := []struct {
		name string
		cmd  meta.Command
		want error // nil: accepted
	}{
		{"1 of 1", activate(1, "a", "a"), nil},
		{"1 of 2", activate(1, "ab", "a"), meta.ErrCommandRefused},
		{"2 of 2", activate(1, "ab", "ab"), nil},
		{"1 of 3", activate(1, "abc", "a"), meta.ErrCommandRefused},
		{"2 of 3", activate(1, "abc", "bc"), nil},
		{"2 of 4", activate(1, "abcd", "ab"), meta.ErrCommandRefused},
		{"3 of 4", activate(1, "abcd", "abc"), nil},
		{"2 of 5", activate(1, "abcde", "ab"), meta.ErrCommandRefused},
		{"3 of 5", activate(1, "abcde", "abc"), nil},
		{"3 of 6", activate(1, "abcdef", "abc"), meta.ErrCommandRefused},
		{"holder without a vote", activate(1, "abd", "abc"), meta.ErrCommandRefused},
		{"vote without a hold", activate(1, "abd", "abd"), meta.ErrCommandRefused},
		{"server never heard of", activate(1, "abz", "abz"), meta.ErrCommandRefused},
		{"other keystore", with(activate(1, "abc", "ab"), func(c *meta.Activate) {
			c.Confirmed[1].Keystore = keystore("b", 2)
		}), meta.ErrCommandRefused},
		{"keystore of another", with(activate(1, "abc", "ab"), func(c *meta.Activate) {
			c.Confirmed[1].Keystore = keystore("a", 1)
		}), meta.ErrCommandRefused},
		{"one bad answer spoils a good majority", activate(1, "abcd", "abcd"), meta.ErrCommandRefused},
		{"unknown key", activate(7, "abc", "abc"), meta.ErrCommandRefused},
		{"key nobody holds", activate(2, "abc", "abc"), meta.ErrCommandRefused},
		{"confirmed twice", activate(1, "abc", "aa"), meta.ErrMalformed},
		{"voter named twice", activate(1, "aab", "ab"), meta.ErrMalformed},
		{"nobody confirmed", activate(1, "abc", ""), meta.ErrMalformed},
		{"no voters", activate(1, "", "a"), meta.ErrMalformed},
		{"no time", with(activate(1, "abc", "ab"), func(c *meta.Activate) { c.Time = time.Time{} }), meta.ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := begin(t)
			h.prepublish(1)
			h.do(meta.Command{Add: &meta.Add{Key: newKey(2)}})
			h.do(hold("d", 1, nil, nil)) // known, holds nothing
			if tt.want != nil {
				h.refused(tt.want, tt.cmd)
				return
			}
			h.do(tt.cmd)
			h.wantState(1, "active")
			if k := h.ring.Active(); k == nil || k.ID != id(1) || !k.Activated.Equal(tt.cmd.Activate.Time) {
				t.Errorf("Active = %+v", k)
			}
			h.refused(meta.ErrCommandRefused, tt.cmd) // safe to repeat
		})
	}
}

// Scenario 26: the record outlives the disk, and a new keystore ID ends it.
func TestActivationRefusesWipedHolder(t *testing.T) {
	h := begin(t)
	h.prepublish(1)
	h.do(hold("a", 2, nil, nil))
	h.refused(meta.ErrCommandRefused, activate(1, "abc", "ab"))
	h.do(activate(1, "abc", "bc"))
}

func TestI2ActivationRetiresPredecessor(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	h.prepublish(3)
	h.rotate(2)
	h.wantState(1, "inactive")
	h.wantState(2, "active")
	h.wantState(3, "prepublished")
	if k := h.ring.Key(id(1)); !k.Retired.Equal(at(102)) || !k.Activated.Equal(at(101)) {
		t.Errorf("key 1: activated %v, retired %v", k.Activated, k.Retired)
	}
	if k := h.ring.Key(id(2)); !k.Retired.IsZero() {
		t.Errorf("the active key is retired since %v", k.Retired)
	}
}

func TestFullActivationRekeysAllOlderKeys(t *testing.T) {
	h := begin(t)
	h.do(adopt(8, true))
	h.rotate(1)
	h.rotate(2)
	h.do(meta.Command{Rekey: &meta.Rekey{ID: id(1)}})
	h.deprecate(1)
	h.rotate(3)
	h.prepublish(4) // scheduled perhaps, made before the compromise
	h.prepublish(5, full)
	h.prepublish(6) // after it, yet not asked for
	h.do(activate(5, "abc", "abc"))
	for n, want := range map[int]string{1: "deprecated", 2: "rekeying", 3: "rekeying", 4: "tombstone", 5: "active", 6: "tombstone", 8: "rekeying"} {
		h.wantState(n, want)
	}
	if k := h.ring.Key(id(2)); !k.Retired.Equal(at(103)) {
		t.Errorf("a key that was inactive is retired since %v now", k.Retired)
	}
}

// Scenario 20: the second begins before the first has ended, and nothing goes backwards.
func TestSecondFullRotationDuringFirst(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	h.rotate(2, full)
	h.rotate(3, full)
	h.wantState(1, "rekeying")
	h.wantState(2, "rekeying")
	h.deprecate(2)
	h.wantState(1, "rekeying")
	h.deprecate(1)
}

func TestActivationRevokes(t *testing.T) {
	h := begin(t)
	h.rotate(1)
	h.rotate(2)
	h.prepublish(3, revoke(1, 2))
	if h.ring.Key(id(1)).Revoked {
		t.Error("revoked before the activation")
	}
	h.do(remove(1, meta.StateInactive, true)) // what is gone by then needs no revoking
	h.do(activate(3, "abc", "abc"))
	if !h.ring.Key(id(2)).Revoked || h.ring.Key(id(3)).Revoked {
		t.Errorf("revoked: 2 %t, 3 %t", h.ring.Key(id(2)).Revoked, h.ring.Key(id(3)).Revoked)
	}
	add := meta.Add{Key: newKey(4), Revoke: ids(99)}
	h.refused(meta.ErrCommandRefused, meta.Command{Add: &add})
	h.prepublish(5)
	add.Revoke = ids(5) // it would come to sign tokens that nobody takes
	h.refused(meta.ErrCommandRefused, meta.Command{Add: &add})
	add.Revoke = ids(4)
	h.refused(meta.ErrMalformed, meta.Command{Add: &add})
}

func TestHold(t *testing.T) {
	h := begin(t)
	h.prepublish(1)
	h.prepublish(2)
	h.wantHolders(1, "a", "b", "c")

	modified := h.ring.Key(id(1)).ModifyIndex
	h.do(hold("b", 1, []int{1, 1, 2}, nil)) // known already
	if got := h.ring.Key(id(1)).ModifyIndex; got != modified {
		t.Errorf("a repeated hold moved ModifyIndex from %d to %d", modified, got)
	}
	h.do(hold("b", 2, []int{1, 77}, []int{78})) // another keystore; unknown keys
	h.wantHolders(1, "a", "b", "c")
	h.wantHolders(2, "a", "c")
	if ks, ok := h.ring.Keystore("b"); !ok || ks != keystore("b", 2) {
		t.Errorf("Keystore(b) = %x, %t", ks, ok)
	}
	h.do(hold("b", 2, []int{2}, []int{1, 2})) // gained first, then lost
	h.wantHolders(1, "a", "c")
	h.wantHolders(2, "a", "c")

	h.do(hold("a", 3, nil, nil)) // a wiped server that has nothing yet
	h.wantHolders(1, "c")
	h.do(hold("c", 1, nil, []int{1}))
	h.wantHolders(1)

	h.do(remove(2, meta.StatePrepublished, false))
	h.do(hold("a", 3, []int{2}, nil)) // of a tombstone
	h.wantState(2, "tombstone")
}

func TestForget(t *testing.T) {
	h := begin(t)
	h.prepublish(1)
	h.rotate(2)
	h.do(meta.Command{Forget: &meta.Forget{Servers: []string{"b", "nobody", "c"}}})
	h.wantHolders(1, "a")
	h.wantHolders(2, "a")
	if _, ok := h.ring.Keystore("b"); ok {
		t.Error("b is still known")
	}
	h.refused(meta.ErrCommandRefused, activate(1, "abc", "ab"))
	h.do(hold("b", 1, []int{1}, nil)) // it is back
	h.do(activate(1, "abc", "ab"))
	h.refused(meta.ErrMalformed, meta.Command{Forget: &meta.Forget{}})
}

func TestAdopt(t *testing.T) {
	h := begin(t)
	h.do(adopt(1, true))
	if k := h.ring.Key(id(1)); !k.DataOnly || k.State != meta.StateInactive || !k.Retired.Equal(at(10)) || !k.Activated.IsZero() || !k.Sealed() {
		t.Errorf("adopted as %+v", k)
	}
	h.refused(meta.ErrCommandRefused, adopt(1, true))
	other := adopt(1, false)
	other.Adopt.Key.Check[0]++
	h.refused(meta.ErrCommandRefused, other)

	h.do(meta.Command{Rekey: &meta.Rekey{ID: id(1)}})
	h.do(adopt(1, false)) // its tokens are admitted; the state stays
	if k := h.ring.Key(id(1)); k.DataOnly || k.State != meta.StateRekeying {
		t.Errorf("upgraded to %+v", k)
	}
	h.refused(meta.ErrCommandRefused, adopt(1, false))
	h.refused(meta.ErrCommandRefused, adopt(1, true)) // no way back

	h.do(remove(1, meta.StateRekeying, true))
	h.refused(meta.ErrCommandRefused, adopt(1, false))
	h.refused(meta.ErrCommandRefused, meta.Command{Add: &meta.Add{Key: newKey(1)}})
}

func TestEntryIsAllOrNothing(t *testing.T) {
	h := begin(t)
	h.refused(meta.ErrCommandRefused,
		meta.Command{Add: &meta.Add{Key: newKey(1)}},
		hold("a", 1, []int{1}, nil),
		adopt(1, true))
	h.wantState(1, "absent")
	h.do(meta.Command{Add: &meta.Add{Key: newKey(1)}}, hold("a", 1, []int{1}, nil), activate(1, "a", "a"))
	h.wantState(1, "active")
}

func TestLookups(t *testing.T) {
	h := begin(t)
	for _, n := range []int{5, 3, 4} {
		h.prepublish(n)
	}
	var order []meta.KeyID
	for _, k := range h.ring.Prepublished() {
		order = append(order, k.ID)
	}
	if !slices.Equal(order, ids(5, 3, 4)) {
		t.Errorf("Prepublished = %v, want the oldest first", order)
	}
	if h.ring.Active() != nil || h.ring.Key(id(6)) != nil || h.ring.Key(id(3)) == nil {
		t.Error("Active or Key")
	}
	for _, s := range []meta.State{meta.StateActive, meta.StateInactive, meta.StateRekeying, meta.StateDeprecated} {
		if !s.Opens() {
			t.Errorf("%s opens nothing", s)
		}
	}
	if meta.StatePrepublished.Opens() || meta.State("what").Opens() {
		t.Error("a state opens that can't have sealed")
	}
}

func TestKeyIDText(t *testing.T) {
	const text = "00112233-4455-6677-8899-aabbccddeeff"
	k, err := meta.ParseKeyID(text)
	if err != nil || k.String() != text {
		t.Fatalf("ParseKeyID(%q) = %v, %v", text, k, err)
	}
	for _, bad := range []string{
		"", text[:35], text + "0", strings.ToUpper(text), "{" + text[1:35] + "}", strings.ReplaceAll(text, "-", "_"),
		"urn:uuid:" + text, "0011223-34455-6677-8899-aabbccddeeff", text[:35] + "g", text[:34] + "é",
	} {
		if k, err := meta.ParseKeyID(bad); err == nil || k != (meta.KeyID{}) {
			t.Errorf("ParseKeyID(%q) = %v, %v", bad, k, err)
		}
	}
}
