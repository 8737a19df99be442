package records_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"iter"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

var update = flag.Bool("update", false, "write testdata")

const golden = "testdata/v1.snapshot"

// goldenMap has one of everything, under keys that are active on its fence.
func goldenMap(tb testing.TB) *records.Map {
	tb.Helper()
	f := newFence(tb)
	m, log := records.New(f.FSM), raftLog{300}
	one := func(name, meta string, parts ...modelPart) {
		cmd := encodeCommand('w', encodeParts(encodeBytes(encodeBytes([]byte{0}, name), meta), parts))
		if err, failed := m.Apply(log.next(cmd)).(error); failed {
			tb.Fatal(err)
		}
	}
	one("db/password", "", modelPart{1, string(ciphertext(1, 1))})
	one("moved", "by host", modelPart{1, string(ciphertext(1, 2))}, modelPart{1, string(ciphertext(1, 3))})
	f.rotate()
	one("meta alone", "x")
	old := sha256.Sum256(ciphertext(1, 3))
	swap := encodeBytes(append(append(encodeBytes(nil, "moved"), 1), old[:]...), string(ciphertext(2, 4)))
	if a := m.Apply(log.next(encodeCommand('s', swap))); a != 0 {
		tb.Fatal(a)
	}
	if err := m.SetPlain(records.Record{Name: "plain", Version: 7, Meta: []byte("old"), Parts: [][]byte{[]byte("secret"), nil}}); err != nil {
		tb.Fatal(err)
	}
	return m
}

// TestGoldenSnapshot: version 1 of the format is what it was, and is read.
func TestGoldenSnapshot(t *testing.T) {
	m := goldenMap(t)
	if *update {
		if err := os.WriteFile(golden, section(t, m), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(section(t, m), want) {
		t.Error("the same state has other bytes than in version 1")
	}
	read := records.New(keyring.NewFSM())
	if err := keyringtest.RestoreFSM(read, want); err != nil {
		t.Fatal(err)
	}
	if got := section(t, read); !bytes.Equal(got, want) {
		t.Error("what was restored has other bytes")
	}
	r, ok := read.Get("moved")
	if !ok || r.Version != 302 || r.KeyID(0) != (keyring.KeyID{1}) || r.KeyID(1) != (keyring.KeyID{2}) || string(r.Meta) != "by host" {
		t.Errorf("%+v", r)
	}
	if got := under(t, read, keyring.KeyID{}); !slices.Equal(got, []string{"plain", "plain#1"}) || read.View().Index() != 304 {
		t.Errorf("in the clear: %q, index %d", got, read.View().Index())
	}
}

// sum puts the right checksum behind what somebody has altered.
func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return append(b, h[:]...)
}

// handmade is a section of these records, with its length and its checksum.
func handmade(parts ...string) []byte {
	b := []byte("\xc1recordsS\x01")
	body := strings.Join(parts, "")
	return sum(append(binary.BigEndian.AppendUint64(b, uint64(len(body))), body...))
}

// TestRestoreRefuses what is no snapshot, in every way, and keeps what it had.
func TestRestoreRefuses(t *testing.T) {
	good := section(t, goldenMap(t))
	sealed := string(ciphertext(1, 1))
	of := func(name string, version, mask byte, parts ...string) string {
		b := append(encodeBytes(nil, name), version, 0, mask, byte(len(parts)))
		for _, p := range parts {
			b = encodeBytes(b, p)
		}
		return string(b)
	}
	if err := keyringtest.RestoreFSM(records.New(keyring.NewFSM()), handmade("\x05", of("a", 1, 0, sealed), of("b", 1, 1, "x"))); err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"nothing":               nil,
		"JSON":                  []byte(`{"records":[]}  and more`),
		"a command":             encodeCommand('w', []byte{0}),
		"something after it":    append(bytes.Clone(good), 0),
		"a length that lies":    sum(append([]byte("\xc1recordsS\x01"), 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 5)),
		"a negative length":     sum(append([]byte("\xc1recordsS\x01"), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 5)),
		"no index":              handmade(),
		"wrong order":           handmade("\x05", of("b", 1, 0, sealed), of("a", 1, 0, sealed)),
		"one name twice":        handmade("\x05", of("a", 1, 0, sealed), of("a", 1, 0, sealed)),
		"no name":               handmade("\x05", of("", 1, 0, sealed)),
		"a long name":           handmade("\x05", of(strings.Repeat("a", records.MaxName+1), 1, 0, sealed)),
		"version 0":             handmade("\x05", of("a", 0, 0, sealed)),
		"no ciphertext":         handmade("\x05", of("a", 1, 0, "x")),
		"the zero key":          handmade("\x05", of("a", 1, 0, string(ciphertext(0, 1)))),
		"a mask beyond":         handmade("\x05", of("a", 1, 3, "x")),
		"too many parts":        handmade("\x05", of("a", 1, 0, slices.Repeat([]string{sealed}, records.MaxParts+1)...)),
		"a varint in two bytes": handmade("\x85\x00", of("a", 1, 0, sealed)),
		"an endless varint":     handmade("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
		"half a record":         handmade("\x05", of("a", 1, 0, sealed)[:20]),
		"a part that lies":      handmade("\x05", "\x01a\x01\x00\x00\x01\xff\xff\xff\xff\x0f"),
	} {
		m := goldenMap(t)
		err := keyringtest.RestoreFSM(m, bad)
		if !errors.Is(err, keyring.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		if !bytes.Equal(section(t, m), good) {
			t.Errorf("%s has changed the map", what)
		}
	}
	for i := range good {
		cut, bad := good[:i], bytes.Clone(good)
		bad[i] ^= 0x10
		for what, b := range map[string][]byte{"cut": cut, "altered": bad} {
			if err := keyringtest.RestoreFSM(records.New(keyring.NewFSM()), b); err == nil {
				t.Errorf("%s at byte %d: it is restored", what, i)
			}
		}
	}
}

// TestLengthsThatLieTakeNoMemory beyond what is there.
func TestLengthsThatLieTakeNoMemory(t *testing.T) {
	b := binary.BigEndian.AppendUint64([]byte("\xc1recordsS\x01"), 1<<40)
	b = append(append(b, "\x05\x01a\x01\x00\x00\x01"...), binary.AppendUvarint(nil, records.MaxBytes)...)
	b = append(b, make([]byte, 100)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := records.New(keyring.NewFSM()).RestoreFrom(bytes.NewReader(b))
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, keyring.ErrCorrupt) || took > 4<<20 {
		t.Errorf("%d bytes of memory, %v", took, err)
	}
}

// TestSectionEndsWhereItEnds: a host's own state may stand before and after it.
func TestSectionEndsWhereItEnds(t *testing.T) {
	m := goldenMap(t)
	in := bytes.NewReader(append(section(t, m), "the host's"...))
	read := records.New(keyring.NewFSM())
	if err := read.RestoreFrom(in); err != nil {
		t.Fatal(err)
	}
	if rest := make([]byte, in.Len()); in.Len() != 10 {
		in.Read(rest)
		t.Errorf("%q is left", rest)
	}
}

// TestNewerVersionsWait: what a newer build has written is refused with both versions, no snapshot is made that lacks it,
// and no scan proves anything. A snapshot that this build can read ends that.
func TestNewerVersionsWait(t *testing.T) {
	m := goldenMap(t)
	before := section(t, m)
	newer := bytes.Replace(before, []byte("recordsS\x01"), []byte("recordsS\x02"), 1)
	if err := keyringtest.RestoreFSM(m, newer); err == nil || !strings.Contains(err.Error(), "version 2") || errors.Is(err, keyring.ErrCorrupt) {
		t.Error(err)
	}
	log := raftLog{400}
	if err, _ := m.Apply(log.next([]byte("\xc1recordsw\x02what only a newer build knows"))).(error); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Error(err)
	}
	if err, _ := m.Apply(log.next(encodeCommand('w', encodeParts(encodeBytes(encodeBytes([]byte{0}, "b"), ""), nil)))).(error); err == nil {
		t.Error("a command after it was applied")
	}
	if _, err := m.Snapshot(); err == nil {
		t.Error("it makes a snapshot")
	}
	var b bytes.Buffer
	if n, err := m.View().WriteTo(&b); err == nil || n != 0 || b.Len() != 0 {
		t.Errorf("%d bytes of a section, %v", b.Len(), err)
	}
	if _, err := m.Count(t.Context(), keyring.KeyID{1}); err == nil {
		t.Error("it counts")
	}
	for _, err := range m.Under(t.Context(), keyring.KeyID{9}) {
		if err == nil {
			t.Error("it yields")
		}
		err = keyringtest.RestoreFSM(m, before)
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Snapshot(); err != nil {
		t.Error(err)
	}
}

// TestPersistTellsOfAFullDisk and cancels the snapshot.
func TestPersistTellsOfAFullDisk(t *testing.T) {
	all := goldenMap(t)
	for _, limit := range []int{1, 100, len(section(t, all)) - 1} {
		snap, err := all.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		sink := &keyringtest.Sink{Limit: limit}
		if err := snap.Persist(sink); !errors.Is(err, keyringtest.ErrDiskFull) || sink.Canceled != 1 || sink.Closed != 0 {
			t.Errorf("%d bytes: %v, cancelled %d times", limit, err, sink.Canceled)
		}
	}
}

// TestRestorePlainIsAllOrNothing.
func TestRestorePlainIsAllOrNothing(t *testing.T) {
	m := goldenMap(t)
	before := section(t, m)
	yield := func(err error, names ...string) iter.Seq2[records.Record, error] {
		return func(yield func(records.Record, error) bool) {
			for _, name := range names {
				if !yield(records.Record{Name: name, Parts: [][]byte{[]byte(name)}}, nil) {
					return
				}
			}
			if err != nil {
				yield(records.Record{}, err)
			}
		}
	}
	broken := errors.New("broken")
	if err := m.RestorePlain(yield(broken, "a", "b")); !errors.Is(err, broken) {
		t.Error(err)
	}
	for _, bad := range [][]string{{"a", ""}, {"a", "b", "a"}} {
		if err := m.RestorePlain(yield(nil, bad...)); err == nil {
			t.Errorf("%q is restored", bad)
		}
	}
	if !bytes.Equal(section(t, m), before) {
		t.Error("a restore that failed has changed the map")
	}
	if err := m.RestorePlain(nil); err != nil || m.View().Len() != 0 || m.View().Index() != 0 {
		t.Errorf("none: %v, %d records", err, m.View().Len())
	}
	if err := m.RestorePlain(yield(nil, "b", "a")); err != nil || count(t, m, keyring.KeyID{}) != 2 {
		t.Errorf("%v, %d in the clear", err, count(t, m, keyring.KeyID{}))
	}
	if r, _ := m.Get("a"); r.Version != 1 || string(r.Parts[0]) != "a" || m.View().Len() != 2 {
		t.Errorf("%+v", r)
	}
}

// FuzzApply gives two maps the same bytes: neither panics, and both answer and become the same.
func FuzzApply(f *testing.F) {
	w := func(n uint64) []byte {
		return encodeParts(encodeBytes(encodeBytes([]byte{0}, "a"), "m"), []modelPart{{1, string(ciphertext(1, n))}})
	}
	old := sha256.Sum256(ciphertext(1, 1))
	f.Add(encodeCommand('w', w(1)), encodeCommand('s', encodeBytes(append(append(encodeBytes(nil, "a"), 0), old[:]...), string(ciphertext(1, 2)))))
	f.Add(encodeCommand('w', w(1)), encodeCommand('w', []byte("\x03\x01\x01a\x00\x00")))
	f.Add([]byte("\xc1recordsw\x02"), encodeCommand('w', w(2)))
	f.Add([]byte(nil), []byte("\xc1recordss\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	fence := newFence(f)
	f.Fuzz(func(t *testing.T, one, two []byte) {
		a, b, log := records.New(fence.FSM), records.New(fence.FSM), raftLog{}
		for _, cmd := range [][]byte{one, two} {
			before := a.View()
			entry := log.next(cmd)
			first, second := a.Apply(entry), b.Apply(entry)
			if fmt.Sprint(first) != fmt.Sprint(second) {
				t.Fatalf("%v and %v", first, second)
			}
			if _, failed := first.(error); failed && a.View().Len() != before.Len() {
				t.Fatalf("%v, and it has changed the map", first)
			}
			if _, err := a.Snapshot(); err != nil { // of a newer build
				if _, err := b.Snapshot(); err == nil {
					t.Fatal("the same log has given a snapshot")
				}
				continue
			}
			if !bytes.Equal(section(t, a), section(t, b)) {
				t.Fatal("the same log has given other bytes")
			}
			if err := records.New(fence.FSM).RestoreFrom(bytes.NewReader(section(t, a))); err != nil {
				t.Fatalf("its own snapshot: %v", err)
			}
		}
		if a.Apply(&raft.Log{Data: one}) == nil {
			t.Fatal("an entry without an index is taken")
		}
	})
}

// FuzzRestore: what is restored has the bytes that were read, and nothing else is taken.
func FuzzRestore(f *testing.F) {
	f.Add(section(f, goldenMap(f)), true)
	f.Add(handmade("\x05"), false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= sha256.Size { // or none gets past the checksum
			b = sum(slices.Clone(b[:len(b)-sha256.Size]))
		}
		m := records.New(keyring.NewFSM())
		empty := section(t, m)
		err := keyringtest.RestoreFSM(m, b)
		if got := section(t, m); err == nil && !bytes.Equal(got, b) || err != nil && !bytes.Equal(got, empty) {
			t.Fatalf("%v: %x of %x", err, got, b)
		}
	})
}
