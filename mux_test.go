package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// app is a host's FSM: the list of what was applied, as text with a line each.
type app struct {
	mu        sync.Mutex // guards below
	lines     []string
	batches   []string // the lines of each batch
	configs   []raft.Configuration
	persisted error // what Persist of its snapshots ends with
	restored  error // what Restore ends with
	released  int
}

func (a *app) apply(l *raft.Log) any {
	if l.Type != raft.LogCommand {
		return nil
	}
	a.lines = append(a.lines, string(l.Data))
	return fmt.Sprintf("%d: %s", l.Index, l.Data)
}

func (a *app) Apply(l *raft.Log) any {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.apply(l)
}

func (a *app) text() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.lines, "\n")
}

func (a *app) Snapshot() (raft.FSMSnapshot, error) { return appSnapshot{a, a.text()}, nil }

func (a *app) Restore(rc io.ReadCloser) error {
	b, err := io.ReadAll(rc)
	if err := errors.Join(err, a.restored, rc.Close()); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lines = nil
	if len(b) > 0 {
		a.lines = strings.Split(string(b), "\n")
	}
	return nil
}

type appSnapshot struct {
	app  *app
	text string
}

func (s appSnapshot) Persist(sink raft.SnapshotSink) error {
	_, err := io.WriteString(sink, s.text)
	if err := errors.Join(err, s.app.persisted); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (s appSnapshot) Release() { s.app.released++ }

// The host's other forms.
type (
	batching struct{ *app }
	storing  struct{ *app }
	both     struct {
		batching
		store storing
	}
)

func (b batching) ApplyBatch(logs []*raft.Log) []any {
	b.mu.Lock()
	defer b.mu.Unlock()
	var responses []any
	var lines []string
	for _, l := range logs {
		if l.Type == raft.LogConfiguration { // raft gives it to ApplyBatch, and not to StoreConfiguration
			b.configs = append(b.configs, raft.DecodeConfiguration(l.Data))
		}
		responses = append(responses, b.apply(l))
		lines = append(lines, string(l.Data))
	}
	b.batches = append(b.batches, strings.Join(lines, ","))
	return responses
}

func (s storing) StoreConfiguration(_ uint64, c raft.Configuration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.configs = append(s.configs, c)
}

func (b both) StoreConfiguration(i uint64, c raft.Configuration) { b.store.StoreConfiguration(i, c) }

// forms are the four things that a host can be.
var forms = []struct {
	name           string
	batches, store bool
	of             func(*app) raft.FSM
}{
	{"plain", false, false, func(a *app) raft.FSM { return a }},
	{"batching", true, false, func(a *app) raft.FSM { return batching{a} }},
	{"storing", false, true, func(a *app) raft.FSM { return storing{a} }},
	{"both", true, true, func(a *app) raft.FSM { return both{batching{a}, storing{a}} }},
}

func TestMuxIsWhatTheHostIs(t *testing.T) {
	for _, form := range forms {
		a, keys := &app{}, keyring.NewFSM()
		m := keyring.Mux(keys, form.of(a))
		if _, ok := m.(raft.BatchingFSM); ok != form.batches {
			t.Errorf("%s: a BatchingFSM: %v", form.name, ok)
		}
		m.(raft.ConfigurationStore).StoreConfiguration(1, raft.Configuration{})
		if got := len(a.configs) > 0; got != form.store {
			t.Errorf("%s: the configuration has reached the host: %t", form.name, got)
		}
		want := uint64(1)
		if batches, ok := m.(raft.BatchingFSM); ok { // to which raft gives its entries instead
			batches.ApplyBatch([]*raft.Log{{Type: raft.LogConfiguration, Index: 2, Data: raft.EncodeConfiguration(raft.Configuration{})}})
			want++
		}
		if got := keyring.Configurations(keys); got != want {
			t.Errorf("%s: of %d configurations the keyring was told of %d", form.name, want, got)
		}
	}
}

func TestMuxSplitsBatchesInOrder(t *testing.T) {
	ours := func(i uint64) *raft.Log {
		return command(t, i, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	}
	theirs := func(i uint64, typ raft.LogType, data string) *raft.Log {
		return &raft.Log{Index: i, Type: typ, Data: []byte(data)}
	}
	a := &app{}
	keys := keyring.NewFSM()
	m := keyring.Mux(keys, batching{a}).(raft.BatchingFSM)
	got := m.ApplyBatch([]*raft.Log{
		theirs(1, raft.LogCommand, "a"), theirs(2, raft.LogCommand, "b"), ours(3), ours(4),
		theirs(5, raft.LogCommand, string(ours(0).Data)), theirs(6, raft.LogNoop, "noop"), ours(7),
		theirs(8, raft.LogCommand, "c"),
	})
	imitation := string(ours(0).Data)
	if want := []string{"a,b", imitation + ",noop", "c"}; !slices.Equal(a.batches, want) {
		t.Errorf("the host's batches: %q", a.batches)
	}
	want := []any{"1: a", "2: b", nil, "refused", "5: " + imitation, nil, "refused", "8: c"}
	if len(got) != len(want) {
		t.Fatalf("%d responses to %d entries", len(got), len(want))
	}
	for i := range got {
		if err, ok := got[i].(error); ok && errors.Is(err, meta.ErrRefused) {
			got[i] = "refused"
		}
		if got[i] != want[i] {
			t.Errorf("response %d: %v, want %v", i, got[i], want[i])
		}
	}
	if keyring.Ring(keys).Cluster != (meta.ClusterID{1}) {
		t.Error("the keyring's entry did not reach it")
	}
	if got := m.ApplyBatch(nil); len(got) != 0 || len(a.batches) != 3 {
		t.Errorf("no entries: %v", got)
	}
	if got := m.ApplyBatch([]*raft.Log{ours(9)}); len(got) != 1 || len(a.batches) != 3 {
		t.Errorf("the keyring's alone: %v, the host's batches: %q", got, a.batches)
	}
}

func TestMuxCarriesBothThroughRaft(t *testing.T) {
	t.Parallel()
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := newHosts(t, 3)
				apps := map[*host]*app{}
				for _, h := range hosts {
					apps[h] = &app{}
					h.open(t, form.of(apps[h]))
				}
				leader := leaderOf(t, hosts)

				// Many at once, so that raft makes batches of both kinds.
				type answer struct {
					data string
					f    raft.ApplyFuture
				}
				var answers []answer
				bad := meta.Command{Rekey: &meta.Rekey{ID: keyring.KeyID{7}}}
				for i := range 100 {
					data := fmt.Sprintf("entry %d", i)
					answers = append(answers, answer{data, leader.raft.Apply([]byte(data), 0)})
					if i%10 == 3 {
						l := command(t, 0, bad)
						answers = append(answers, answer{"", leader.raft.ApplyLog(raft.Log{Data: l.Data, Extensions: l.Extensions}, 0)})
					}
					if i == 50 {
						if _, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
							t.Fatal(err)
						}
					}
				}
				var want []string
				for _, a := range answers {
					if err := a.f.Error(); err != nil {
						t.Fatal(err)
					}
					if a.data == "" {
						if err, ok := a.f.Response().(error); !ok || !errors.Is(err, meta.ErrRefused) {
							t.Errorf("a refused command of the keyring's is answered with %v", a.f.Response())
						}
						continue
					}
					want = append(want, a.data)
					if r := fmt.Sprintf("%d: %s", a.f.Index(), a.data); a.f.Response() != r {
						t.Errorf("%q is answered with %v, not %q", a.data, a.f.Response(), r)
					}
				}
				if err := leader.raft.Barrier(0).Error(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				for _, h := range hosts {
					if got := apps[h].text(); got != strings.Join(want, "\n") {
						t.Errorf("%s: the host has applied\n%s", h.id, got)
					}
					if n := len(h.keyring.Keys()); n != 2 {
						t.Errorf("%s: %d keys", h.id, n)
					}
					apps[h].mu.Lock()
					if n := len(apps[h].configs); (n > 0) != (form.store || form.batches) {
						t.Errorf("%s: %d configurations", h.id, n)
					} else if n > 0 && len(apps[h].configs[n-1].Servers) != 3 {
						t.Errorf("%s: the last configuration is %v", h.id, apps[h].configs[n-1])
					}
					if n := len(apps[h].batches); (n > 0) != form.batches {
						t.Errorf("%s: %d batches", h.id, n)
					}
					apps[h].mu.Unlock()
				}
			})
		})
	}
}

func TestHostEntryThatSpellsACommandIsTheHosts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 1)
		a := &app{}
		hosts[0].open(t, a)
		leader := leaderOf(t, hosts)
		key := leader.keyring.Keys()[0]
		posing := command(t, 0, meta.Command{Forget: &meta.Forget{Servers: []string{string(leader.id)}}})
		before := keyring.Ring(leader.fsm)
		f := leader.raft.Apply(posing.Data, 0)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if f.Response() != fmt.Sprintf("%d: %s", f.Index(), posing.Data) || a.text() != string(posing.Data) {
			t.Errorf("the host was not given its entry: %v", f.Response())
		}
		if keyring.Ring(leader.fsm) != before || !slices.Equal(leader.keyring.Keys()[0].Holders, key.Holders) {
			t.Error("the keyring was given the host's entry")
		}
	})
}

func TestMuxedSnapshotRestoresBoth(t *testing.T) {
	t.Parallel()
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := newHosts(t, 1)
				apps := map[*host]*app{}
				start := func(h *host) {
					apps[h] = &app{}
					h.open(t, form.of(apps[h]))
				}
				start(hosts[0])
				leader := leaderOf(t, hosts)
				sealed, err := leader.keyring.Encrypt([]byte("data"), nil)
				if err != nil {
					t.Fatal(err)
				}
				apply := func(data string) {
					if err := leader.raft.Apply([]byte(data), 0).Error(); err != nil {
						t.Fatal(err)
					}
				}
				apply("one")
				if _, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				if err := leader.raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
				apply("two")

				leader.stop(t)
				start(leader)
				leaderOf(t, hosts)
				check := func(h *host) {
					t.Helper()
					if got := apps[h].text(); got != "one\ntwo" {
						t.Errorf("%s: the host has %q", h.id, got)
					}
					if got, err := h.keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
						t.Errorf("%s: %q, %v", h.id, got, err)
					}
					if !bytes.Equal(snapshotOf(t, h.fsm), snapshotOf(t, leader.fsm)) {
						t.Errorf("%s: another ring", h.id)
					}
				}
				check(leader)

				joiner := newHost(t, "joiner", &hosts)
				start(joiner)
				if err := leader.raft.AddVoter(joiner.id, raft.ServerAddress(joiner.id), 0, 0).Error(); err != nil {
					t.Fatal(err)
				}
				if err := joiner.keyring.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if list, err := joiner.snaps.List(); err != nil || len(list) == 0 {
					t.Errorf("the joiner was sent no snapshot (%v)", err)
				}
				check(joiner)
			})
		})
	}
}

func TestSnapshotAndLogFromBeforeTheMuxAreTheHosts(t *testing.T) {
	t.Parallel()
	for _, snapshot := range []bool{false, true} {
		t.Run(fmt.Sprintf("snapshot=%v", snapshot), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := newHosts(t, 1)
				h, before := hosts[0], &app{}
				h.run(t, before)
				leaderOf(t, hosts)
				for i := range 5 {
					if err := h.raft.Apply(fmt.Appendf(nil, "entry %d", i), 0).Error(); err != nil {
						t.Fatal(err)
					}
					if snapshot && i == 2 {
						if err := h.raft.Snapshot().Error(); err != nil {
							t.Fatal(err)
						}
					}
				}
				h.stop(t)

				after := &app{}
				h.open(t, after)
				leaderOf(t, hosts)
				if after.text() != before.text() || before.text() == "" {
					t.Errorf("the host had %q and has %q", before.text(), after.text())
				}
				sealed, err := h.keyring.Encrypt([]byte("data"), nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := h.raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
				h.stop(t)
				again := &app{}
				h.open(t, again)
				leaderOf(t, hosts)
				if _, err := h.keyring.Decrypt(sealed, nil); err != nil || again.text() != before.text() {
					t.Errorf("after the first muxed snapshot: %v, the host has %q", err, again.text())
				}
			})
		})
	}
}

func TestUnmuxedSnapshotOfEveryLengthIsTheHostsWhole(t *testing.T) {
	long := strings.Repeat("keyring-snapshoT", 4)
	for n := range len(long) {
		a, keys := &app{}, founded(t)
		text := long[:n]
		if len(text) == 16 {
			text = "sixteen bytes...."[:16]
		}
		if err := restore(keyring.Mux(keys, a), []byte(text)); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if a.text() != text {
			t.Errorf("the host was given %q of %q", a.text(), text)
		}
		if len(keyring.Ring(keys).Keys) != 0 {
			t.Error("the keyring has keys that the snapshot does not have")
		}
	}
}

func TestFailedRestoreOfTheHostLeavesTheRing(t *testing.T) {
	source := &app{lines: []string{"line"}}
	snap := snapshotOf(t, keyring.Mux(founded(t), source))
	a, keys := &app{restored: errors.New("no")}, keyring.NewFSM()
	before := keyring.Ring(keys)
	if err := restore(keyring.Mux(keys, a), snap); !errors.Is(err, a.restored) || keyring.Ring(keys) != before {
		t.Errorf("%v, ring %v", err, keyring.Ring(keys))
	}
	a.restored = nil
	if err := restore(keyring.Mux(keys, a), snap); err != nil || a.text() != "line" || keyring.Ring(keys).Active() == nil {
		t.Errorf("afterwards: %v, the host has %q", err, a.text())
	}
}

func TestDamagedSectionNeverReachesTheHost(t *testing.T) {
	snap := snapshotOf(t, keyring.Mux(founded(t), &app{lines: []string{"new"}}))
	section := bytes.LastIndexByte(snap, '}') + 1
	for i := 16; i < section; i++ {
		a, keys := &app{lines: []string{"old"}}, keyring.NewFSM()
		before := keyring.Ring(keys)
		if err := restore(keyring.Mux(keys, a), snap[:i]); !errors.Is(err, keyring.ErrCorrupt) || a.text() != "old" || keyring.Ring(keys) != before {
			t.Fatalf("cut to %d bytes: %v, the host has %q", i, err, a.text())
		}
	}
}

func TestMuxedSnapshotEndsTheSinkOnceAndReleasesTheHosts(t *testing.T) {
	no := errors.New("no")
	for _, c := range []struct {
		name             string
		persisted        error
		limit            int
		closed, canceled int
	}{
		{"good", nil, 0, 1, 0},
		{"the keyring's part fails at once", nil, 1, 0, 1},
		{"the keyring's part fails late", nil, 100, 0, 1},
		{"the host's part can't be written", nil, 5, 0, 1},
		{"the host's Persist fails", no, 0, 0, 1},
	} {
		a := &app{lines: []string{"line"}, persisted: c.persisted}
		m := keyring.Mux(founded(t), a)
		s := sink{limit: c.limit}
		if c.name == "the host's part can't be written" {
			s.limit = len(snapshotOf(t, keyring.Mux(founded(t), &app{lines: a.lines}))) - 1
		}
		snap, err := m.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		err = snap.Persist(&s)
		if (err == nil) != (c.closed == 1) || s.closed != c.closed || s.canceled != c.canceled {
			t.Errorf("%s: %v, closed %d times, cancelled %d times", c.name, err, s.closed, s.canceled)
		}
		if snap.Release(); a.released != 1 {
			t.Errorf("%s: released %d times", c.name, a.released)
		}
	}
}

func TestMuxReportsThatTheHostHasNoSnapshot(t *testing.T) {
	f := failingSnapshot{&app{}}
	if snap, err := keyring.Mux(founded(t), f).Snapshot(); !errors.Is(err, errDiskFull) || snap != nil {
		t.Errorf("%v, %v", snap, err)
	}
}

type failingSnapshot struct{ *app }

func (failingSnapshot) Snapshot() (raft.FSMSnapshot, error) { return nil, errDiskFull }
