package records_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/records"
	"pgregory.net/rapid"
)

// modelRecord is a record of the model. A part whose key is 0 is in the clear.
type modelRecord struct {
	version uint64
	meta    string
	parts   []modelPart
}

type modelPart struct {
	key  byte
	data string
}

// model is what a Map has to be: a map of values, whose answers are worked out by going through all of it.
type model struct {
	fence *fence
	log   raftLog
	all   map[string]modelRecord
	maps  []*records.Map // all were given the same
	n     uint64         // of ciphertexts

	frozen []frozenView
}

// frozenView is a View, and what it has to be for ever.
type frozenView struct {
	view  records.View
	bytes []byte
}

func newModel(t *testing.T) *model {
	f := newFence(t)
	return &model{fence: f, all: map[string]modelRecord{}, maps: []*records.Map{records.New(f.FSM), records.New(f.FSM)}}
}

var names = rapid.SampledFrom([]string{"a", "a#1", "a#1#0", "a#x", "a#64", "b", "b\x00c", "\x00", "\xff", "long name of a record/with/a/path", "d"})

// looksNumbered are the names that might be those of parts: their refs always have the part's number.
var looksNumbered = []string{"a#1", "a#1#0"}

// part draws a ciphertext: of the active key, or sometimes of an older one.
func (m *model) part(t *rapid.T) modelPart {
	m.n++
	key := m.fence.active
	if rapid.IntRange(0, 9).Draw(t, "older") == 0 {
		key = byte(rapid.IntRange(1, int(key)).Draw(t, "key"))
	}
	return modelPart{key, string(ciphertext(key, m.n))}
}

// encodeCommand writes a command by the package documentation.
func encodeCommand(kind byte, entries ...[]byte) []byte {
	b := binary.AppendUvarint([]byte("\xc1records"+string(rune(kind))+"\x01"), uint64(len(entries)))
	return append(b, bytes.Join(entries, nil)...)
}

func encodeBytes(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func encodeParts(b []byte, parts []modelPart) []byte {
	b = binary.AppendUvarint(b, uint64(len(parts)))
	for _, p := range parts {
		b = encodeBytes(b, p.data)
	}
	return b
}

// write applies a command of some writes.
func (m *model) write(t *rapid.T) {
	next, refused := maps.Clone(m.all), false
	var entries [][]byte
	seen := map[string]bool{}
	for range rapid.IntRange(1, 3).Draw(t, "writes") {
		name := names.Draw(t, "name")
		r := modelRecord{version: m.log.index + 1, meta: rapid.StringN(0, 3, -1).Draw(t, "meta")}
		var b []byte
		flags, asks := uint64(0), uint64(0)
		if rapid.Bool().Draw(t, "if") {
			flags |= 1
			if asks = m.all[name].version; rapid.IntRange(0, 3).Draw(t, "other version") == 0 {
				asks++
			}
			refused = refused || asks != m.all[name].version
		}
		if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
			flags, r.meta = flags|2, ""
			delete(next, name)
		} else {
			for range rapid.IntRange(0, 3).Draw(t, "parts") {
				p := m.part(t)
				r.parts, refused = append(r.parts, p), refused || p.key != m.fence.active
			}
			next[name] = r
		}
		b = binary.AppendUvarint(b, flags)
		if flags&1 != 0 {
			b = binary.AppendUvarint(b, asks)
		}
		entries = append(entries, encodeParts(encodeBytes(encodeBytes(b, name), r.meta), r.parts))
		refused, seen[name] = refused || seen[name], true
	}
	answers := m.apply(encodeCommand('w', entries...))
	for _, a := range answers {
		if _, failed := a.(error); failed != refused {
			t.Fatalf("refused %t: %v", refused, a)
		}
	}
	if !refused {
		m.all = next
	}
}

// swap applies a command of some swaps.
func (m *model) swap(t *rapid.T) {
	var entries [][]byte
	conflicts := 0
	for range rapid.IntRange(1, 4).Draw(t, "swaps") {
		name, i := names.Draw(t, "name"), rapid.IntRange(0, 3).Draw(t, "part")
		r, p := m.all[name], m.part(t)
		old := sha256.Sum256([]byte("another"))
		if i < len(r.parts) && rapid.IntRange(0, 4).Draw(t, "same") > 0 {
			old = sha256.Sum256([]byte(r.parts[i].data))
			if p.key == m.fence.active {
				r.parts = slices.Clone(r.parts)
				r.parts[i] = p
				m.all[name] = r
				conflicts--
			}
		}
		conflicts++
		b := binary.AppendUvarint(encodeBytes(nil, name), uint64(i))
		entries = append(entries, encodeBytes(append(b, old[:]...), p.data))
	}
	for _, a := range m.apply(encodeCommand('s', entries...)) {
		if a != conflicts {
			t.Fatalf("%v conflicts, not %d", a, conflicts)
		}
	}
}

// apply gives a command to all maps.
func (m *model) apply(cmd []byte) (answers []any) {
	entry := m.log.next(cmd)
	for _, r := range m.maps {
		answers = append(answers, r.Apply(entry))
	}
	clear(cmd) // it is raft's
	return answers
}

func (m *model) setPlain(t *rapid.T) {
	name := names.Draw(t, "name")
	r := modelRecord{version: max(1, m.log.index)}
	in := records.Record{Name: name, Version: m.log.index}
	for i := range rapid.IntRange(0, 3).Draw(t, "parts") {
		p := string(ciphertext(1, uint64(i))) // what looks sealed may be a plaintext, too
		r.parts, in.Parts = append(r.parts, modelPart{0, p}), append(in.Parts, []byte(p))
	}
	for _, one := range m.maps {
		if err := one.SetPlain(in); err != nil {
			t.Fatal(err)
		}
	}
	m.all[name] = r
}

func (m *model) delete(t *rapid.T) {
	name := names.Draw(t, "name")
	for _, one := range m.maps {
		one.Delete(name)
	}
	delete(m.all, name)
}

// restore puts a fresh server with a snapshot in the place of one that had all of the log.
func (m *model) restore(t *rapid.T) {
	fresh := records.New(m.fence.FSM)
	if err := keyringtest.RestoreFSM(fresh, keyringtest.SnapshotOf(m.fence.tb, m.maps[0])); err != nil {
		t.Fatal(err)
	}
	m.maps[1] = fresh
}

func (m *model) freeze(*rapid.T) {
	v := m.maps[0].View()
	var b bytes.Buffer
	v.WriteTo(&b)
	m.frozen = append(m.frozen, frozenView{v, b.Bytes()})
}

// check goes through the model, and wants the maps to say the same.
func (m *model) check(t *rapid.T) {
	keys := map[keyring.KeyID][]string{}
	for id := range m.fence.active + 1 {
		keys[keyring.KeyID{id}] = nil
	}
	for name, r := range m.all {
		for i, p := range r.parts {
			id := keyring.KeyID{p.key}
			ref := fmt.Sprintf("%s#%d", name, i)
			if i == 0 && !slices.Contains(looksNumbered, name) {
				ref = name
			}
			keys[id] = append(keys[id], ref)
		}
	}
	for _, one := range m.maps {
		for id, want := range keys {
			slices.Sort(want)
			if got := under(m.fence.tb, one, id); !slices.Equal(got, want) || count(m.fence.tb, one, id) != len(want) {
				t.Fatalf("under %s: %q, not %q", id, got, want)
			}
		}
		v := one.View()
		if v.Len() != len(m.all) || v.Index() != m.log.index {
			t.Fatalf("%d records, index %d", v.Len(), v.Index())
		}
		prefix := names.Draw(t, "prefix")
		want := slices.DeleteFunc(slices.Sorted(maps.Keys(m.all)), func(n string) bool { return !strings.HasPrefix(n, prefix) })
		for r := range v.All(prefix) {
			if len(want) == 0 || r.Name != want[0] {
				t.Fatalf("%q, not %q", r.Name, want)
			}
			want = want[1:]
			m.checkRecord(t, r)
		}
		if len(want) > 0 {
			t.Fatalf("%q are not there", want)
		}
	}
	if !bytes.Equal(section(m.fence.tb, m.maps[0]), section(m.fence.tb, m.maps[1])) {
		t.Fatal("the same log has given other bytes")
	}
	for _, f := range m.frozen {
		var b bytes.Buffer
		if f.view.WriteTo(&b); !bytes.Equal(b.Bytes(), f.bytes) {
			t.Fatal("a view has changed")
		}
	}
}

func (m *model) checkRecord(t *rapid.T, r records.Record) {
	want := m.all[r.Name]
	if r.Version != want.version || string(r.Meta) != want.meta || len(r.Parts) != len(want.parts) {
		t.Fatalf("%q: version %d, meta %q, %d parts", r.Name, r.Version, r.Meta, len(r.Parts))
	}
	for i, p := range want.parts {
		if string(r.Parts[i]) != p.data || r.KeyID(i) != (keyring.KeyID{p.key}) {
			t.Fatalf("%q: part %d is under %s", r.Name, i, r.KeyID(i))
		}
	}
}

// TestMapIsItsModel: two maps that get the same log, one of them by way of snapshots, say what the model says, and have the
// same bytes. Views stay as they were.
func TestMapIsItsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := newModel(t)
		rt.Repeat(map[string]func(*rapid.T){
			"write": m.write, "write again": m.write, "swap": m.swap, "plain": m.setPlain, "delete": m.delete,
			"restore": m.restore, "freeze": m.freeze, "": m.check,
			"rotate": func(*rapid.T) { m.fence.rotate() },
		})
	})
}

// TestViewsStay is for trees of several levels, which the model does not have.
func TestViewsStay(t *testing.T) {
	const names = 5000
	m, log, random := records.New(newFence(t).FSM), raftLog{}, rand.New(rand.NewPCG(1, 2))
	write := func(from, n, flags int) {
		var entries [][]byte
		for i := from; i < min(from+n, names); i++ {
			b := encodeBytes(encodeBytes(binary.AppendUvarint(nil, uint64(flags)), fmt.Sprintf("%05d", i)), "")
			var parts []modelPart
			if flags == 0 {
				parts = []modelPart{{1, string(ciphertext(1, uint64(i)))}}
			}
			entries = append(entries, encodeParts(b, parts))
		}
		if err, failed := m.Apply(log.next(encodeCommand('w', entries...))).(error); failed {
			t.Fatal(err)
		}
	}
	var frozen []frozenView
	write(0, names, 0)
	for range 40 {
		frozen = append(frozen, frozenView{m.View(), section(t, m)})
		write(random.IntN(names), random.IntN(2000)+1, 2*random.IntN(2)) // some are deleted
		if got := len(under(t, m, keyring.KeyID{1})); got != m.View().Len() {
			t.Fatalf("%d of %d records are in the index", got, m.View().Len())
		}
	}
	for _, f := range frozen {
		var b bytes.Buffer
		if f.view.WriteTo(&b); !bytes.Equal(b.Bytes(), f.bytes) {
			t.Fatal("a view has changed")
		}
	}
}

// TestFenceRefusesStaleKeys: what is sealed under a key that was active once is refused, in writes and in swaps, and the
// writer can tell.
func TestFenceRefusesStaleKeys(t *testing.T) {
	f := newFence(t)
	m, log := records.New(f.FSM), raftLog{}
	put := func(key byte) any {
		b := encodeBytes(encodeBytes([]byte{0}, "a"), "")
		return m.Apply(log.next(encodeCommand('w', encodeParts(b, []modelPart{{key, string(ciphertext(key, 1))}}))))
	}
	if a := put(1); a != uint64(1) {
		t.Fatal(a)
	}
	f.rotate()
	if err, _ := put(1).(error); !errors.Is(err, keyring.ErrStaleKey) {
		t.Error(err)
	}
	old := sha256.Sum256(ciphertext(1, 1))
	swap := encodeBytes(append(append(encodeBytes(nil, "a"), 0), old[:]...), string(ciphertext(1, 2)))
	if a := m.Apply(log.next(encodeCommand('s', swap))); a != 1 {
		t.Errorf("%v conflicts", a)
	}
	if got := count(t, m, keyring.KeyID{1}); got != 1 || m.View().Index() != 3 {
		t.Errorf("%d under the old key, index %d", got, m.View().Index())
	}
}
