package fsm_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// newMachine returns an FSM of this build that has applied nothing.
func newMachine() *fsm.Machine { return fsm.New(meta.This, notLeader) }

// filled returns an FSM with two keys, one of them active, and a tombstone.
func filled(t testing.TB) *fsm.Machine {
	t.Helper()
	return keyringtest.Fill(t, newMachine())
}

// errNotLeader is what a Machine of these tests answers where another server leads.
var errNotLeader = errors.New("another server leads")

func notLeader(leader raft.ServerID) error { return fmt.Errorf("%w: %s", errNotLeader, leader) }

// transcript is what a cluster of three has written to its log in a life with all that
// happens: the bootstrap, rotations, a planned one, a wiped server, refusals, entries that are not the keyring's.
func transcript(t *testing.T) (logs []*raft.Log, live [][]byte) {
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 3)
		for _, h := range hosts {
			h.Open(t, nil)
		}
		leader := keyringtest.LeaderOf(t, hosts)
		for range 3 {
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Minute)}); err != nil {
			t.Fatal(err)
		}
		foreign := leader.Raft.Apply([]byte("not the keyring's"), 0)
		if err := foreign.Error(); err != nil {
			t.Fatal(err)
		}
		if err, ok := foreign.Response().(error); !ok || !errors.Is(err, fsm.ErrCorrupt) {
			t.Errorf("a foreign entry is answered with %v", foreign.Response())
		}
		again := *keyringtest.LogEntry(t, 0, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
		refused := leader.Raft.ApplyLog(raft.Log{Data: again.Data, Extensions: again.Extensions}, 0)
		if err := refused.Error(); err != nil {
			t.Fatal(err)
		}
		if err, ok := refused.Response().(error); !ok || !errors.Is(err, meta.ErrCommandRefused) {
			t.Errorf("a second init is answered with %v", refused.Response())
		}
		wiped := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
		wiped.Stop(t)
		wiped.Disk = keyringtest.NewDisk()
		wiped.Open(t, nil)
		time.Sleep(2 * time.Minute) // the planned key becomes active
		synctest.Wait()
		for _, h := range hosts {
			live = append(live, keyringtest.SnapshotOf(t, h.FSM))
		}
		logs = keyringtest.LeaderOf(t, hosts).Entries(t)
	})
	return logs, live
}

// TestI7ReplayGivesEqualSnapshots is invariant I7: the same log gives byte-equal snapshots on
// every server, at every index, whether it was replayed from the start or from a snapshot.
func TestI7ReplayGivesEqualSnapshots(t *testing.T) {
	logs, live := transcript(t)
	if len(logs) < 15 {
		t.Fatalf("the transcript has %d entries", len(logs))
	}
	var at [][]byte // after each entry, and before the first
	first := newMachine()
	at = append(at, keyringtest.SnapshotOf(t, first))
	for _, l := range logs {
		first.Apply(l)
		at = append(at, keyringtest.SnapshotOf(t, first))
		if err := first.Ring().Check(); err != nil {
			t.Errorf("index %d: %v", l.Index, err)
		}
	}
	second, third := newMachine(), newMachine()
	for i, l := range logs {
		if a, b := second.Apply(l), third.Apply(l); fmt.Sprint(a) != fmt.Sprint(b) {
			t.Errorf("index %d: responses %v and %v", l.Index, a, b)
		}
		if !bytes.Equal(keyringtest.SnapshotOf(t, second), at[i+1]) || !bytes.Equal(keyringtest.SnapshotOf(t, third), at[i+1]) {
			t.Fatalf("index %d: snapshots differ", l.Index)
		}
	}
	for i := range at {
		f := newMachine()
		if err := keyringtest.RestoreFSM(f, at[i]); err != nil {
			t.Fatalf("restore after %d entries: %v", i, err)
		}
		for j, l := range logs[i:] {
			f.Apply(l)
			if !bytes.Equal(keyringtest.SnapshotOf(t, f), at[i+j+1]) {
				t.Fatalf("restored after %d entries, snapshots differ at index %d", i, l.Index)
			}
		}
	}
	for i, b := range live {
		if !bytes.Equal(b, at[len(logs)]) {
			t.Errorf("server %d has another snapshot than the replay of its log", i+1)
		}
	}
}

// checkUnchanged wants an error as the response, and neither a panic nor a change.
func checkUnchanged(t *testing.T, name string, l *raft.Log) {
	t.Helper()
	f := filled(t)
	before := f.Ring()
	snap, err := before.Encode()
	if err != nil {
		t.Fatal(err)
	}
	response := f.Apply(l)
	if _, ok := response.(error); !ok {
		t.Errorf("%s: the response is %v, not an error", name, response)
	}
	if after, err := before.Encode(); err != nil || f.Ring() != before || !bytes.Equal(after, snap) {
		t.Errorf("%s: it changed something", name)
	}
}

func TestApplyAnswersWithAnErrorAndChangesNothing(t *testing.T) {
	valid := string(keyringtest.LogEntry(t, 0, meta.Command{Forget: &meta.Forget{Servers: []string{"s1"}}}).Data)
	if filled(t).Apply(&raft.Log{Index: 99, Type: raft.LogCommand, Data: []byte(valid), Extensions: []byte(keyringtest.Extensions)}) != nil {
		t.Fatal("the entry that the others are made of is refused")
	}
	malformed := map[string]string{
		"nothing":             "",
		"zeros":               string(make([]byte, 64)),
		"not JSON":            "keyring",
		"null":                "null",
		"empty object":        "{}",
		"no command":          `{"version":1,"commands":[]}`,
		"null command":        `{"version":1,"commands":[null]}`,
		"empty command":       `{"version":1,"commands":[{}]}`,
		"unknown command":     `{"version":1,"commands":[{"melt":{"id":"` + meta.KeyID{1}.String() + `"}}]}`,
		"two in one":          strings.Replace(valid, `{"forget"`, `{"rekey":{"id":"`+meta.KeyID{1}.String()+`"},"forget"`, 1),
		"unknown member":      strings.Replace(valid, `"servers"`, `"x":1,"servers"`, 1),
		"repeated member":     strings.Replace(valid, `{"version":1`, `{"version":1,"version":1`, 1),
		"older version":       strings.Replace(valid, `"version":1`, `"version":0`, 1),
		"newer version":       strings.Replace(valid, `"version":1`, `"version":2`, 1),
		"newer, new command":  `{"version":2,"commands":[{"melt":{}}],"more":true}`,
		"negative version":    strings.Replace(valid, `"version":1`, `"version":-1`, 1),
		"version as text":     strings.Replace(valid, `"version":1`, `"version":"1"`, 1),
		"huge version":        strings.Replace(valid, `"version":1`, `"version":1e400`, 1),
		"trailing bytes":      valid + "x",
		"trailing space":      valid + " ",
		"deep":                strings.Repeat("[", 1<<20),
		"deep in a command":   `{"version":1,"commands":[{"forget":` + strings.Repeat(`{"servers":`, 1<<18),
		"not UTF-8":           strings.Replace(valid, "s1", "\xff\xfe", 1),
		"no server":           strings.Replace(valid, `"s1"`, "", 1),
		"unknown then known":  strings.Replace(valid, `[{"forget"`, `[{"melt":{}},{"forget"`, 1),
		"known, then unknown": strings.Replace(valid, `]}}]`, `]}},{"melt":{}}]`, 1),
	}
	for name, data := range malformed {
		checkUnchanged(t, name, &raft.Log{Index: 99, Type: raft.LogCommand, Data: []byte(data), Extensions: []byte(keyringtest.Extensions)})
	}
	for i := range len(valid) {
		data := []byte(valid[:i])
		checkUnchanged(t, fmt.Sprintf("cut to %d bytes", i), &raft.Log{Index: 99, Type: raft.LogCommand, Data: data, Extensions: []byte(keyringtest.Extensions)})
	}
	foreign := map[string]raft.Log{
		"no mark":             {Type: raft.LogCommand},
		"another version":     {Type: raft.LogCommand, Extensions: []byte("keyring/2")},
		"a longer mark":       {Type: raft.LogCommand, Extensions: []byte(keyringtest.Extensions + "\x00")},
		"a shorter mark":      {Type: raft.LogCommand, Extensions: []byte(keyringtest.Extensions[:8])},
		"a configuration":     {Type: raft.LogConfiguration, Extensions: []byte(keyringtest.Extensions)},
		"a barrier":           {Type: raft.LogBarrier, Extensions: []byte(keyringtest.Extensions)},
		"an unknown type":     {Type: 200, Extensions: []byte(keyringtest.Extensions)},
		"no mark and no data": {Type: raft.LogCommand},
	}
	for name, l := range foreign {
		l.Index = 99
		if name != "no mark and no data" {
			l.Data = []byte(valid)
		}
		checkUnchanged(t, name, &l)
	}
}

func TestApplyDoesAllCommandsOfAnEntryOrNone(t *testing.T) {
	forget := meta.Command{Forget: &meta.Forget{Servers: []string{"s1"}}}
	refused := meta.Command{Rekey: &meta.Rekey{ID: meta.KeyID{1}}}
	checkUnchanged(t, "good, then refused", keyringtest.LogEntry(t, 99, forget, refused))
	checkUnchanged(t, "refused, then good", keyringtest.LogEntry(t, 99, refused, forget))
	checkUnchanged(t, "good, refused, good", keyringtest.LogEntry(t, 99, forget, refused, forget))
	f := filled(t)
	if r := f.Apply(keyringtest.LogEntry(t, 99, forget, forget)); r != nil || len(f.Ring().Servers) != 0 {
		t.Errorf("two good ones: %v, %v", r, f.Ring().Servers)
	}
}

func TestSnapshotIsOfTheMomentItWasTaken(t *testing.T) {
	f := filled(t)
	want := keyringtest.SnapshotOf(t, f)
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if r := f.Apply(keyringtest.LogEntry(t, 99, meta.Command{Forget: &meta.Forget{Servers: []string{"s1"}}})); r != nil {
		t.Fatal(r)
	}
	var s keyringtest.Sink
	if err := snap.Persist(&s); err != nil || !bytes.Equal(s.Buf.Bytes(), want) {
		t.Errorf("the snapshot has what was applied after it was taken (%v)", err)
	}
}

// TestSnapshotOfARingUnderALowerIndexIsRestored: raft was given the ring's snapshot under an index that is lower than those
// in the ring. Whatever was applied since then, the server starts again.
func TestSnapshotOfARingUnderALowerIndexIsRestored(t *testing.T) {
	f := newMachine()
	if err := keyringtest.RestoreFSM(f, keyringtest.SnapshotOf(t, filled(t))); err != nil {
		t.Fatal(err)
	}
	hold := meta.Command{Hold: &meta.Hold{Server: "s2", Keystore: meta.KeystoreID{2}, Gained: []meta.KeyID{{1}, {2}}}}
	if r := f.Apply(keyringtest.LogEntry(t, 1, hold)); r != nil {
		t.Fatal(r)
	}
	again := newMachine()
	if err := keyringtest.RestoreFSM(again, keyringtest.SnapshotOf(t, f)); err != nil || !again.Ring().Key(meta.KeyID{1}).HeldBy("s2") {
		t.Errorf("what Snapshot wrote can't be restored: %v", err)
	}
}

func TestPersistErrorCancelsTheSinkOnce(t *testing.T) {
	f := filled(t)
	whole := len(keyringtest.SnapshotOf(t, f))
	for limit := 1; limit < whole; limit += 7 {
		snap, _ := f.Snapshot()
		s := keyringtest.Sink{Limit: limit}
		if err := snap.Persist(&s); !errors.Is(err, keyringtest.ErrDiskFull) || s.Canceled != 1 || s.Closed != 0 {
			t.Fatalf("full after %d bytes: %v, cancelled %d times, closed %d times", limit, err, s.Canceled, s.Closed)
		}
	}
}

// framed is a section with what a snapshot begins with, when it claims that length.
func framed(size uint64, section []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte("keyring-snapshot"), size)
	sum := sha256.Sum256(section)
	return append(append(b, sum[:]...), section...)
}

// sectionAt is where the section begins.
const sectionAt = 16 + 8 + sha256.Size

// checkRestore restores b over another state: an error leaves that as it is; without one
// the ring is what it says, and one that can be.
func checkRestore(t *testing.T, name string, b []byte) error {
	t.Helper()
	f := newMachine()
	if r := f.Apply(keyringtest.LogEntry(t, 1, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{9}}})); r != nil {
		t.Fatal(r)
	}
	before := f.Ring()
	err := keyringtest.RestoreFSM(f, b)
	switch ring := f.Ring(); {
	case err != nil && ring != before:
		t.Errorf("%s: %v, and the state is another", name, err)
	case err != nil && !errors.Is(err, fsm.ErrCorrupt):
		t.Errorf("%s: %v is not ErrCorrupt", name, err)
	case err == nil && ring.Check() != nil:
		t.Errorf("%s: restored what can't be: %v", name, ring.Check())
	case err == nil:
		if again, err := ring.Encode(); err != nil || !bytes.Equal(again, b[sectionAt:]) {
			t.Errorf("%s: the ring is not what the snapshot says (%v)", name, err)
		}
	}
	return err
}

func TestRestoreOfADamagedSnapshotIsAnErrorAndNoChange(t *testing.T) {
	snap := keyringtest.SnapshotOf(t, filled(t))
	if err := checkRestore(t, "the snapshot itself", snap); err != nil {
		t.Fatal(err)
	}
	section := snap[sectionAt:]
	size := uint64(len(section))
	bad := map[string][]byte{
		"nothing":             nil,
		"text":                []byte("hello"),
		"zeros":               make([]byte, 1000),
		"the magic alone":     []byte("keyring-snapshot"),
		"an empty section":    framed(0, nil),
		"a section too short": framed(size-1, section),
		"bytes after it":      append(bytes.Clone(snap), 'x'),
		"twice":               append(bytes.Clone(snap), snap...),
		"a wrong magic":       append([]byte("keyring-snapshop"), snap[16:]...),
		"a null section":      framed(4, []byte("null")),
		"an empty object":     framed(2, []byte("{}")),
		"the largest length":  framed(1<<64-1, section),
		"a negative length":   framed(1<<63, section),
	}
	for name, b := range bad {
		if checkRestore(t, name, b) == nil {
			t.Errorf("%s: restored", name)
		}
	}
	for i := range snap {
		if checkRestore(t, fmt.Sprintf("cut to %d bytes", i), snap[:i]) == nil {
			t.Errorf("cut to %d bytes: restored", i)
		}
		for bit := range 8 {
			if i > 100 && bit != i%8 {
				continue
			}
			b := bytes.Clone(snap)
			b[i] ^= 1 << bit
			if name := fmt.Sprintf("bit %d of byte %d", bit, i); checkRestore(t, name, b) == nil {
				t.Errorf("%s: restored", name)
			}
		}
	}
}

func TestRestoreReadErrorIsNoChange(t *testing.T) {
	snap := keyringtest.SnapshotOf(t, filled(t))
	for _, n := range []int{0, 10, 20, 24, 100, len(snap)} {
		f := newMachine()
		before := f.Ring()
		err := f.Restore(io.NopCloser(io.MultiReader(bytes.NewReader(snap[:n]), failingReader{})))
		if !errors.Is(err, keyringtest.ErrDiskFull) || f.Ring() != before {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, keyringtest.ErrDiskFull }

func TestRestoreAllocatesNoMoreThanThereIs(t *testing.T) {
	for _, size := range []uint64{1 << 29, 1 << 30, 1 << 40, 1<<64 - 1} {
		f := newMachine()
		b := framed(size, []byte(`{"version":1`))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := keyringtest.RestoreFSM(f, b)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; err == nil || n > 1<<20 {
			t.Errorf("a section said to have %d bytes: %v, %d bytes allocated", size, err, n)
		}
	}
}
