package fsm_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"github.com/hashicorp/raft"
)

func TestMuxIsWhatTheHostIs(t *testing.T) {
	for _, form := range keyringtest.AppForms {
		a, keys := &keyringtest.App{}, newMachine()
		m := fsm.Mux(keys, form.Of(a))
		if _, ok := m.(raft.BatchingFSM); ok != form.Batches {
			t.Errorf("%s: a BatchingFSM: %v", form.Name, ok)
		}
		m.(raft.ConfigurationStore).StoreConfiguration(1, raft.Configuration{})
		if got := len(a.Configs) > 0; got != form.Stores {
			t.Errorf("%s: the configuration has reached the host: %t", form.Name, got)
		}
		want := uint64(1)
		if batches, ok := m.(raft.BatchingFSM); ok { // to which raft gives its entries instead
			batches.ApplyBatch([]*raft.Log{{Type: raft.LogConfiguration, Index: 2, Data: raft.EncodeConfiguration(raft.Configuration{})}})
			want++
		}
		if got := keys.Configurations(); got != want {
			t.Errorf("%s: of %d configurations the keyring was told of %d", form.Name, want, got)
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
	keys := newMachine()
	m := fsm.Mux(keys, keyringtest.BatchingApp{App: a}).(raft.BatchingFSM)
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
	if keys.Ring().Cluster != (meta.ClusterID{1}) {
		t.Error("the keyring's entry did not reach it")
	}
	if got := m.ApplyBatch(nil); len(got) != 0 || len(a.Batches) != 3 {
		t.Errorf("no entries: %v", got)
	}
	if got := m.ApplyBatch([]*raft.Log{ours(9)}); len(got) != 1 || len(a.Batches) != 3 {
		t.Errorf("the keyring's alone: %v, the host's batches: %q", got, a.Batches)
	}
}

func TestUnmuxedSnapshotOfEveryLengthIsTheHostsWhole(t *testing.T) {
	long := strings.Repeat("keyring-snapshoT", 4)
	for n := range len(long) {
		a, keys := &keyringtest.App{}, filled(t)
		text := long[:n]
		if len(text) == 16 {
			text = "sixteen bytes...."[:16]
		}
		if err := keyringtest.RestoreFSM(fsm.Mux(keys, a), []byte(text)); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if a.Text() != text {
			t.Errorf("the host was given %q of %q", a.Text(), text)
		}
		if len(keys.Ring().Keys) != 0 {
			t.Error("the keyring has keys that the snapshot does not have")
		}
	}
}

func TestFailedRestoreOfTheHostLeavesTheRing(t *testing.T) {
	source := &keyringtest.App{Lines: []string{"line"}}
	snap := keyringtest.SnapshotOf(t, fsm.Mux(filled(t), source))
	a, keys := &keyringtest.App{Restored: errors.New("no")}, newMachine()
	before := keys.Ring()
	if err := keyringtest.RestoreFSM(fsm.Mux(keys, a), snap); !errors.Is(err, a.Restored) || keys.Ring() != before {
		t.Errorf("%v, ring %v", err, keys.Ring())
	}
	a.Restored = nil
	if err := keyringtest.RestoreFSM(fsm.Mux(keys, a), snap); err != nil || a.Text() != "line" || keys.Ring().Active() == nil {
		t.Errorf("afterwards: %v, the host has %q", err, a.Text())
	}
}

// TestMuxPassesOnWhatRaftsReaderWraps, which a host can get from raft alone, and no more than that. When the host closes what it
// is given, raft's reader is closed.
func TestMuxPassesOnWhatRaftsReaderWraps(t *testing.T) {
	snap := keyringtest.SnapshotOf(t, fsm.Mux(filled(t), &keyringtest.App{Lines: []string{"line"}}))
	for _, wraps := range []bool{true, false} {
		stored := &closing{Reader: bytes.NewReader(snap)}
		given, want := io.ReadCloser(stored), io.ReadCloser(nil)
		if wraps {
			given, want = wrapper{stored}, stored
		}
		a := &unwrapping{App: &keyringtest.App{}}
		if err := fsm.Mux(newMachine(), a).Restore(given); err != nil || a.Text() != "line" || a.got != want || !stored.closed {
			t.Errorf("a wrapper: %t: %v, the host has %q and was given %v, closed: %t", wraps, err, a.Text(), a.got, stored.closed)
		}
	}
}

// closing notes that it was closed.
type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

// wrapper is what raft gives an FSM: it wraps the snapshot store's reader.
type wrapper struct{ io.ReadCloser }

func (w wrapper) WrappedReadCloser() io.ReadCloser { return w.ReadCloser }

// unwrapping is a host that gets at its snapshot store's reader.
type unwrapping struct {
	*keyringtest.App
	got io.ReadCloser
}

func (u *unwrapping) Restore(rc io.ReadCloser) error {
	if w, ok := rc.(raft.ReadCloserWrapper); ok {
		u.got = w.WrappedReadCloser()
	}
	return u.App.Restore(rc)
}

func TestDamagedSectionNeverReachesTheHost(t *testing.T) {
	snap := keyringtest.SnapshotOf(t, fsm.Mux(filled(t), &keyringtest.App{Lines: []string{"new"}}))
	section := bytes.LastIndexByte(snap, '}') + 1
	for i := 16; i < section; i++ {
		a, keys := &keyringtest.App{Lines: []string{"old"}}, newMachine()
		before := keys.Ring()
		if err := keyringtest.RestoreFSM(fsm.Mux(keys, a), snap[:i]); !errors.Is(err, fsm.ErrCorrupt) || a.Text() != "old" || keys.Ring() != before {
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
		m := fsm.Mux(filled(t), a)
		s := keyringtest.Sink{Limit: c.limit}
		if c.name == "the host's part can't be written" {
			s.Limit = len(keyringtest.SnapshotOf(t, fsm.Mux(filled(t), &keyringtest.App{Lines: a.Lines}))) - 1
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
	if snap, err := fsm.Mux(filled(t), f).Snapshot(); !errors.Is(err, keyringtest.ErrDiskFull) || snap != nil {
		t.Errorf("%v, %v", snap, err)
	}
}

type failingSnapshot struct{ *keyringtest.App }

func (failingSnapshot) Snapshot() (raft.FSMSnapshot, error) { return nil, keyringtest.ErrDiskFull }

// hangingApp is an FSM each of whose functions hangs until back is closed.
type hangingApp struct {
	*keyringtest.App
	back chan struct{}
}

func (a hangingApp) Apply(l *raft.Log) any { <-a.back; return a.App.Apply(l) }
func (a hangingApp) ApplyBatch(logs []*raft.Log) []any {
	<-a.back
	return keyringtest.BatchingApp{App: a.App}.ApplyBatch(logs)
}
func (a hangingApp) StoreConfiguration(uint64, raft.Configuration) { <-a.back }
func (a hangingApp) Snapshot() (raft.FSMSnapshot, error)           { <-a.back; return a.App.Snapshot() }
func (a hangingApp) Restore(rc io.ReadCloser) error                { <-a.back; return a.App.Restore(rc) }

// TestFunctionsOfTheHostsFSMThatHangAreNamed until they return.
func TestFunctionsOfTheHostsFSMThatHangAreNamed(t *testing.T) {
	snap := keyringtest.SnapshotOf(t, fsm.Mux(filled(t), &keyringtest.App{Lines: []string{"line"}}))
	log := &raft.Log{Index: 1, Type: raft.LogCommand, Data: []byte("line")}
	for _, tt := range []struct {
		name  string
		after time.Duration
		call  func(raft.FSM)
	}{
		{"Apply", 10 * time.Second, func(m raft.FSM) { m.Apply(log) }},
		{"Apply", 10 * time.Second, func(m raft.FSM) { m.(raft.BatchingFSM).ApplyBatch([]*raft.Log{log}) }},
		{"StoreConfiguration", 10 * time.Second, func(m raft.FSM) { m.(raft.ConfigurationStore).StoreConfiguration(1, raft.Configuration{}) }},
		{"Snapshot", time.Minute, func(m raft.FSM) { m.Snapshot() }},
		{"Restore", 10 * time.Minute, func(m raft.FSM) { keyringtest.RestoreFSM(m, snap) }},
	} {
		synctest.Test(t, func(t *testing.T) {
			keys, back, began := newMachine(), make(chan struct{}), time.Now()
			go tt.call(fsm.Mux(keys, hangingApp{&keyringtest.App{}, back}))
			time.Sleep(tt.after - time.Nanosecond)
			if slow := keys.App.Slow(mono.Now()); len(slow) > 0 {
				t.Errorf("%s: before %v: %v", tt.name, tt.after, slow)
			}
			time.Sleep(time.Nanosecond)
			want := map[string]time.Time{tt.name + " of the host's FSM": began}
			if slow := keys.App.Slow(mono.Now()); !maps.Equal(slow, want) {
				t.Errorf("%s: after %v: %v", tt.name, tt.after, slow)
			}
			close(back)
			synctest.Wait()
			if slow := keys.App.Slow(mono.Now()); len(slow) > 0 {
				t.Errorf("%s: it has returned: %v", tt.name, slow)
			}
		})
	}
}

// hangingSink is a disk that hangs.
type hangingSink struct {
	keyringtest.Sink
	back chan struct{}
}

func (s *hangingSink) Write(b []byte) (int, error) { <-s.back; return s.Sink.Write(b) }

// TestSnapshotOfTheHostThatIsNotWrittenIsNamed, and is not taken for something that keeps raft from applying.
func TestSnapshotOfTheHostThatIsNotWrittenIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys, back := newMachine(), make(chan struct{})
		snap, err := fsm.Mux(keys, &keyringtest.App{Lines: []string{"line"}}).Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		go snap.Persist(&hangingSink{back: back})
		time.Sleep(10 * time.Minute)
		if slow := keys.Persisting.Slow(mono.Now()); len(slow) != 1 || slow["Persist of the host's FSM"].IsZero() || len(keys.App.Slow(mono.Now())) > 0 {
			t.Errorf("after 10 minutes: %v", slow)
		}
		close(back)
		synctest.Wait()
		if slow := keys.Persisting.Slow(mono.Now()); len(slow) > 0 {
			t.Errorf("it has returned: %v", slow)
		}
	})
}
