package keyring_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// forms are the four things that a host can be.
var forms = []struct {
	name           string
	batches, store bool
	of             func(*keyringtest.App) raft.FSM
}{
	{"plain", false, false, func(a *keyringtest.App) raft.FSM { return a }},
	{"batching", true, false, func(a *keyringtest.App) raft.FSM { return keyringtest.BatchingApp{App: a} }},
	{"storing", false, true, func(a *keyringtest.App) raft.FSM { return keyringtest.StoringApp{App: a} }},
	{"both", true, true, func(a *keyringtest.App) raft.FSM {
		return keyringtest.BothApp{BatchingApp: keyringtest.BatchingApp{App: a}, Store: keyringtest.StoringApp{App: a}}
	}},
}

func TestMuxIsWhatTheHostIs(t *testing.T) {
	for _, form := range forms {
		a, keys := &keyringtest.App{}, keyring.NewFSM()
		m := keyring.Mux(keys, form.of(a))
		if _, ok := m.(raft.BatchingFSM); ok != form.batches {
			t.Errorf("%s: a BatchingFSM: %v", form.name, ok)
		}
		m.(raft.ConfigurationStore).StoreConfiguration(1, raft.Configuration{})
		if got := len(a.Configs) > 0; got != form.store {
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
		return keyringtest.LogEntry(t, i, meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	}
	theirs := func(i uint64, typ raft.LogType, data string) *raft.Log {
		return &raft.Log{Index: i, Type: typ, Data: []byte(data)}
	}
	a := &keyringtest.App{}
	keys := keyring.NewFSM()
	m := keyring.Mux(keys, keyringtest.BatchingApp{App: a}).(raft.BatchingFSM)
	got := m.ApplyBatch([]*raft.Log{
		theirs(1, raft.LogCommand, "a"), theirs(2, raft.LogCommand, "b"), ours(3), ours(4),
		theirs(5, raft.LogCommand, string(ours(0).Data)), theirs(6, raft.LogNoop, "noop"), ours(7),
		theirs(8, raft.LogCommand, "c"),
	})
	imitation := string(ours(0).Data)
	if want := []string{"a,b", imitation + ",noop", "c"}; !slices.Equal(a.Batches, want) {
		t.Errorf("the host's batches: %q", a.Batches)
	}
	want := []any{"1: a", "2: b", nil, "refused", "5: " + imitation, nil, "refused", "8: c"}
	if len(got) != len(want) {
		t.Fatalf("%d responses to %d entries", len(got), len(want))
	}
	for i := range got {
		if err, ok := got[i].(error); ok && errors.Is(err, meta.ErrCommandRefused) {
			got[i] = "refused"
		}
		if got[i] != want[i] {
			t.Errorf("response %d: %v, want %v", i, got[i], want[i])
		}
	}
	if keyring.Ring(keys).Cluster != (meta.ClusterID{1}) {
		t.Error("the keyring's entry did not reach it")
	}
	if got := m.ApplyBatch(nil); len(got) != 0 || len(a.Batches) != 3 {
		t.Errorf("no entries: %v", got)
	}
	if got := m.ApplyBatch([]*raft.Log{ours(9)}); len(got) != 1 || len(a.Batches) != 3 {
		t.Errorf("the keyring's alone: %v, the host's batches: %q", got, a.Batches)
	}
}

func TestMuxCarriesBothThroughRaft(t *testing.T) {
	t.Parallel()
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := keyringtest.NewHosts(t, 3)
				apps := map[*keyringtest.Host]*keyringtest.App{}
				for _, h := range hosts {
					apps[h] = &keyringtest.App{}
					h.Open(t, form.of(apps[h]))
				}
				leader := keyringtest.LeaderOf(t, hosts)

				// Many at once, so that raft makes batches of both kinds.
				type answer struct {
					data string
					f    raft.ApplyFuture
				}
				var answers []answer
				bad := meta.Command{Rekey: &meta.Rekey{ID: keyring.KeyID{7}}}
				for i := range 100 {
					data := fmt.Sprintf("entry %d", i)
					answers = append(answers, answer{data, leader.Raft.Apply([]byte(data), 0)})
					if i%10 == 3 {
						l := keyringtest.LogEntry(t, 0, bad)
						answers = append(answers, answer{"", leader.Raft.ApplyLog(raft.Log{Data: l.Data, Extensions: l.Extensions}, 0)})
					}
					if i == 50 {
						if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
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
						if err, ok := a.f.Response().(error); !ok || !errors.Is(err, meta.ErrCommandRefused) {
							t.Errorf("a refused command of the keyring's is answered with %v", a.f.Response())
						}
						continue
					}
					want = append(want, a.data)
					if r := fmt.Sprintf("%d: %s", a.f.Index(), a.data); a.f.Response() != r {
						t.Errorf("%q is answered with %v, not %q", a.data, a.f.Response(), r)
					}
				}
				if err := leader.Raft.Barrier(0).Error(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				for _, h := range hosts {
					if got := apps[h].Text(); got != strings.Join(want, "\n") {
						t.Errorf("%s: the host has applied\n%s", h.ID, got)
					}
					if n := len(h.Keyring.Keys()); n != 2 {
						t.Errorf("%s: %d keys", h.ID, n)
					}
					apps[h].Mu.Lock()
					if n := len(apps[h].Configs); (n > 0) != (form.store || form.batches) {
						t.Errorf("%s: %d configurations", h.ID, n)
					} else if n > 0 && len(apps[h].Configs[n-1].Servers) != 3 {
						t.Errorf("%s: the last configuration is %v", h.ID, apps[h].Configs[n-1])
					}
					if n := len(apps[h].Batches); (n > 0) != form.batches {
						t.Errorf("%s: %d batches", h.ID, n)
					}
					apps[h].Mu.Unlock()
				}
			})
		})
	}
}

func TestHostEntryThatSpellsACommandIsTheHosts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 1)
		a := &keyringtest.App{}
		hosts[0].Open(t, a)
		leader := keyringtest.LeaderOf(t, hosts)
		key := leader.Keyring.Keys()[0]
		posing := keyringtest.LogEntry(t, 0, meta.Command{Forget: &meta.Forget{Servers: []string{string(leader.ID)}}})
		before := keyring.Ring(leader.FSM)
		f := leader.Raft.Apply(posing.Data, 0)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if f.Response() != fmt.Sprintf("%d: %s", f.Index(), posing.Data) || a.Text() != string(posing.Data) {
			t.Errorf("the host was not given its entry: %v", f.Response())
		}
		if keyring.Ring(leader.FSM) != before || !slices.Equal(leader.Keyring.Keys()[0].Holders, key.Holders) {
			t.Error("the keyring was given the host's entry")
		}
	})
}

func TestMuxedSnapshotRestoresBoth(t *testing.T) {
	t.Parallel()
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := keyringtest.NewHosts(t, 1)
				apps := map[*keyringtest.Host]*keyringtest.App{}
				start := func(h *keyringtest.Host) {
					apps[h] = &keyringtest.App{}
					h.Open(t, form.of(apps[h]))
				}
				start(hosts[0])
				leader := keyringtest.LeaderOf(t, hosts)
				sealed, err := leader.Keyring.Encrypt([]byte("data"), nil)
				if err != nil {
					t.Fatal(err)
				}
				apply := func(data string) {
					if err := leader.Raft.Apply([]byte(data), 0).Error(); err != nil {
						t.Fatal(err)
					}
				}
				apply("one")
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				if err := leader.Raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
				apply("two")

				leader.Stop(t)
				start(leader)
				keyringtest.LeaderOf(t, hosts)
				check := func(h *keyringtest.Host) {
					t.Helper()
					if got := apps[h].Text(); got != "one\ntwo" {
						t.Errorf("%s: the host has %q", h.ID, got)
					}
					if got, err := h.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
						t.Errorf("%s: %q, %v", h.ID, got, err)
					}
					if !bytes.Equal(keyringtest.SnapshotOf(t, h.FSM), keyringtest.SnapshotOf(t, leader.FSM)) {
						t.Errorf("%s: another ring", h.ID)
					}
				}
				check(leader)

				joiner := keyringtest.NewHost(t, "joiner", &hosts)
				start(joiner)
				if err := leader.Raft.AddVoter(joiner.ID, raft.ServerAddress(joiner.ID), 0, 0).Error(); err != nil {
					t.Fatal(err)
				}
				if err := joiner.Keyring.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if list, err := joiner.Snaps.List(); err != nil || len(list) == 0 {
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
				hosts := keyringtest.NewHosts(t, 1)
				h, before := hosts[0], &keyringtest.App{}
				h.Run(t, before)
				keyringtest.LeaderOf(t, hosts)
				for i := range 5 {
					if err := h.Raft.Apply(fmt.Appendf(nil, "entry %d", i), 0).Error(); err != nil {
						t.Fatal(err)
					}
					if snapshot && i == 2 {
						if err := h.Raft.Snapshot().Error(); err != nil {
							t.Fatal(err)
						}
					}
				}
				h.Stop(t)

				after := &keyringtest.App{}
				h.Open(t, after)
				keyringtest.LeaderOf(t, hosts)
				if after.Text() != before.Text() || before.Text() == "" {
					t.Errorf("the host had %q and has %q", before.Text(), after.Text())
				}
				sealed, err := h.Keyring.Encrypt([]byte("data"), nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := h.Raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
				h.Stop(t)
				again := &keyringtest.App{}
				h.Open(t, again)
				keyringtest.LeaderOf(t, hosts)
				if _, err := h.Keyring.Decrypt(sealed, nil); err != nil || again.Text() != before.Text() {
					t.Errorf("after the first muxed snapshot: %v, the host has %q", err, again.Text())
				}
			})
		})
	}
}

func TestUnmuxedSnapshotOfEveryLengthIsTheHostsWhole(t *testing.T) {
	long := strings.Repeat("keyring-snapshoT", 4)
	for n := range len(long) {
		a, keys := &keyringtest.App{}, keyringtest.FilledFSM(t)
		text := long[:n]
		if len(text) == 16 {
			text = "sixteen bytes...."[:16]
		}
		if err := keyringtest.RestoreFSM(keyring.Mux(keys, a), []byte(text)); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if a.Text() != text {
			t.Errorf("the host was given %q of %q", a.Text(), text)
		}
		if len(keyring.Ring(keys).Keys) != 0 {
			t.Error("the keyring has keys that the snapshot does not have")
		}
	}
}

func TestFailedRestoreOfTheHostLeavesTheRing(t *testing.T) {
	source := &keyringtest.App{Lines: []string{"line"}}
	snap := keyringtest.SnapshotOf(t, keyring.Mux(keyringtest.FilledFSM(t), source))
	a, keys := &keyringtest.App{Restored: errors.New("no")}, keyring.NewFSM()
	before := keyring.Ring(keys)
	if err := keyringtest.RestoreFSM(keyring.Mux(keys, a), snap); !errors.Is(err, a.Restored) || keyring.Ring(keys) != before {
		t.Errorf("%v, ring %v", err, keyring.Ring(keys))
	}
	a.Restored = nil
	if err := keyringtest.RestoreFSM(keyring.Mux(keys, a), snap); err != nil || a.Text() != "line" || keyring.Ring(keys).Active() == nil {
		t.Errorf("afterwards: %v, the host has %q", err, a.Text())
	}
}

func TestDamagedSectionNeverReachesTheHost(t *testing.T) {
	snap := keyringtest.SnapshotOf(t, keyring.Mux(keyringtest.FilledFSM(t), &keyringtest.App{Lines: []string{"new"}}))
	section := bytes.LastIndexByte(snap, '}') + 1
	for i := 16; i < section; i++ {
		a, keys := &keyringtest.App{Lines: []string{"old"}}, keyring.NewFSM()
		before := keyring.Ring(keys)
		if err := keyringtest.RestoreFSM(keyring.Mux(keys, a), snap[:i]); !errors.Is(err, keyring.ErrCorrupt) || a.Text() != "old" || keyring.Ring(keys) != before {
			t.Fatalf("cut to %d bytes: %v, the host has %q", i, err, a.Text())
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
		a := &keyringtest.App{Lines: []string{"line"}, Persisted: c.persisted}
		m := keyring.Mux(keyringtest.FilledFSM(t), a)
		s := keyringtest.Sink{Limit: c.limit}
		if c.name == "the host's part can't be written" {
			s.Limit = len(keyringtest.SnapshotOf(t, keyring.Mux(keyringtest.FilledFSM(t), &keyringtest.App{Lines: a.Lines}))) - 1
		}
		snap, err := m.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		err = snap.Persist(&s)
		if (err == nil) != (c.closed == 1) || s.Closed != c.closed || s.Canceled != c.canceled {
			t.Errorf("%s: %v, closed %d times, cancelled %d times", c.name, err, s.Closed, s.Canceled)
		}
		if snap.Release(); a.Released != 1 {
			t.Errorf("%s: released %d times", c.name, a.Released)
		}
	}
}

func TestMuxReportsThatTheHostHasNoSnapshot(t *testing.T) {
	f := failingSnapshot{&keyringtest.App{}}
	if snap, err := keyring.Mux(keyringtest.FilledFSM(t), f).Snapshot(); !errors.Is(err, keyringtest.ErrDiskFull) || snap != nil {
		t.Errorf("%v, %v", snap, err)
	}
}

type failingSnapshot struct{ *keyringtest.App }

func (failingSnapshot) Snapshot() (raft.FSMSnapshot, error) { return nil, keyringtest.ErrDiskFull }
