package records_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

func justTheMap(s *keyringtest.Server) raft.FSM { return records.New(s.FSM) }

// put writes records of two parts through the leader, and remembers them.
func (c cluster) put(want map[string][]string, prefix string, n int) {
	c.TB.Helper()
	m := mapOf(c.leader())
	for i := range n {
		name := prefix
		if i > 0 {
			name = fmt.Sprintf("%s#%d", prefix, i) // which might be a part of the record of the prefix
		}
		want[name] = []string{"certificate of " + name, "key of " + name}
		if _, err := m.Put(c.TB.Context(), records.Write{Name: name, Parts: [][]byte{[]byte(want[name][0]), []byte(want[name][1])}}); err != nil {
			c.TB.Fatal(err)
		}
	}
}

// awaitState waits until a key is in a state on the leader.
func (c cluster) awaitState(id keyring.KeyID, state keyring.State) {
	c.TB.Helper()
	for range 10_000 {
		if keyringtest.StateOf(c.leader(), id) == state {
			return
		}
		time.Sleep(100 * time.Millisecond) // virtual
	}
	n, _ := mapOf(c.leader()).Count(c.TB.Context(), id)
	c.TB.Fatalf("key %s is %s, and %d parts are under it", id, keyringtest.StateOf(c.leader(), id), n)
}

func (c cluster) rotateFully() (old keyring.KeyID) {
	c.TB.Helper()
	old = keyring.KeyID(keyringtest.Ring(c.leader().FSM).Active().ID)
	if _, err := c.leader().Keyring.Rotate(c.TB.Context(), keyring.RotateOptions{Full: true}); err != nil {
		c.TB.Fatal(err)
	}
	return old
}

// TestFullRotationMovesTheMap while another server takes over in the middle, writers go on, one server restarts, and a
// snapshot is restored.
func TestFullRotationMovesTheMap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, want := newCluster(t, justTheMap), map[string][]string{}
		c.put(want, "a", 200)
		leader := c.leader()
		old := c.rotateFully()
		time.Sleep(3 * time.Second) // virtual: at 50 parts a second
		if n := count(t, mapOf(leader), old); n == 0 || n == 400 {
			t.Fatalf("%d of 400 parts are left: that is not the middle", n)
		}
		keyringtest.MakeLeader(t, c.Cluster, c.other(leader))
		c.put(want, "b", 20)
		c.put(want, "a", 20) // in place of those that may have moved
		c.awaitState(old, keyring.StateDeprecated)
		c.check("rotated", want)

		restore := keyringtest.TakeSnapshot(t, c.leader())
		later := map[string][]string{}
		c.put(later, "c", 10)
		c.rotateFully() // is under way
		restore(c.leader())
		c.check("restored", want)
		c.Restart(c.Servers[0])
		connect(c.Servers[0])
		c.put(want, "d", 10)
		older, _ := mapOf(c.leader()).Get("a#1")
		old = c.rotateFully()
		c.awaitState(old, keyring.StateDeprecated)
		c.check("rotated again", want)
		reads := 0
		_, _, err := mapOf(c.leader()).OpenFrom("a#1", func(name string) (records.Record, bool) {
			if reads++; reads == 1 {
				return older, true // it has moved since it was read
			}
			return mapOf(c.leader()).Get(name)
		})
		if err != nil || reads != 2 {
			t.Errorf("%d reads, %v", reads, err)
		}
		if err := c.leader().Keyring.Remove(t.Context(), old, keyring.RemoveOptions{Now: true}); err != nil {
			t.Error(err)
		}
		c.check("removed", want)
	})
}

// oldHost is a host that kept its values in the clear before it had a keyring. Its commands and its snapshots were JSON.
type oldHost struct {
	*records.Map
	restored *atomic.Int32 // old snapshots
	holds    *atomic.Bool  // it does not say yet that it has something in the clear
}

func (h oldHost) records() *records.Map { return h.Map }

func (h oldHost) Count(ctx context.Context, key keyring.KeyID) (int, error) {
	if key == (keyring.KeyID{}) && h.holds.Load() {
		return 0, nil
	}
	return h.Map.Count(ctx, key)
}

// oldPut is a command of its old log. A value that is empty takes the name out.
type oldPut struct{ Name, Value string }

func (h oldHost) Apply(l *raft.Log) any {
	if records.Is(l.Data) {
		return h.Map.Apply(l)
	}
	var p oldPut
	if err := json.Unmarshal(l.Data, &p); err != nil {
		return err
	}
	if p.Value == "" {
		h.Delete(p.Name)
		return nil
	}
	return h.SetPlain(records.Record{Name: p.Name, Parts: [][]byte{[]byte(p.Value)}}) // the old snapshots have no versions
}

func (h oldHost) Snapshot() (raft.FSMSnapshot, error) {
	v := h.View()
	if v.Index() > 0 {
		return h.Map.Snapshot()
	}
	return oldSnapshot{v}, nil
}

// oldSnapshot is what it wrote before, a line for each, as long as builds without the keyring may have to read it.
type oldSnapshot struct{ records.View }

func (s oldSnapshot) Persist(sink raft.SnapshotSink) error {
	out := json.NewEncoder(sink)
	for r := range s.All("") {
		if err := out.Encode(oldPut{r.Name, string(r.Parts[0])}); err != nil {
			return errors.Join(err, sink.Cancel())
		}
	}
	return sink.Close()
}

func (oldSnapshot) Release() {}

func (h oldHost) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		return err
	}
	if records.Is(b) {
		return h.RestoreFrom(bytes.NewReader(b))
	}
	h.restored.Add(1)
	return h.RestorePlain(func(yield func(records.Record, error) bool) {
		for in := json.NewDecoder(bytes.NewReader(b)); in.More(); {
			var p oldPut
			if err := in.Decode(&p); err != nil {
				yield(records.Record{}, err)
				return
			}
			if !yield(records.Record{Name: p.Name, Parts: [][]byte{[]byte(p.Value)}}, nil) {
				return
			}
		}
	})
}

// oldServers is servers of a host that has its values in the clear. They are not sealed before release is called.
func oldServers(t *testing.T) (c cluster, release func()) {
	t.Helper()
	holds := new(atomic.Bool)
	holds.Store(true)
	c = newCluster(t, func(s *keyringtest.Server) raft.FSM { return oldHost{records.New(s.FSM), new(atomic.Int32), holds} })
	return c, func() {
		holds.Store(false)
		c.leader().Keyring.Notify()
	}
}

// putOld proposes a command of the old log.
func (c cluster) putOld(name, value string) {
	c.TB.Helper()
	b, _ := json.Marshal(oldPut{name, value})
	if err := c.leader().Raft.Apply(b, time.Minute).Error(); err != nil {
		c.TB.Fatal(err)
	}
}

// oldCluster is such servers with 599 values: some applied their log, and s4 has got an old snapshot.
func oldCluster(t *testing.T) (c cluster, release func(), want map[string][]string) {
	t.Helper()
	c, release = oldServers(t)
	want = map[string][]string{}
	for i := range 600 {
		name := fmt.Sprintf("old/%03d", i)
		c.putOld(name, "secret of "+name)
		want[name] = []string{"secret of " + name}
	}
	c.putOld("old/007", "")
	delete(want, "old/007")
	for _, s := range c.Servers {
		if err := s.Raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	connect(c.Add("s4"))
	c.check("in the clear", want)
	if restored := c.Server("s4").App.(oldHost).restored.Load(); restored == 0 {
		t.Fatal("s4 has got the log, and no snapshot")
	}
	return c, release, want
}

// wantNoPlaintext waits until nothing is in the clear on any server, nor in what raft snapshots, and Status says nothing of it.
func (c cluster) wantNoPlaintext(t *testing.T, want map[string][]string) {
	t.Helper()
	time.Sleep(30 * time.Second) // virtual: much less than the hour after which the leader looks again by itself
	c.check("sealed", want)
	for _, s := range c.Servers {
		if n := count(t, mapOf(s), keyring.KeyID{}); n != 0 || bytes.Contains(keyringtest.SnapshotOf(t, s.App), []byte("secret of")) {
			t.Errorf("%s: %d parts are in the clear", s.ID, n)
		}
	}
	if st := keyringtest.StatusOf(t, c.leader()); len(st.Rekeying) > 0 || len(keyringtest.Problems(t, c.leader(), keyring.ProblemRekey)) > 0 {
		t.Errorf("nothing is in the clear, and Status says %v, %v", st.Rekeying, st.Problems)
	}
}

// TestPlaintextIsSealedOnTheWay by the leader, without a call of the host, also when the leader changes in the middle. Status has
// the progress. Then keys rotate as if it had always been so.
func TestPlaintextIsSealedOnTheWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, release, want := oldCluster(t)
		first := c.leader()
		restore := keyringtest.TakeSnapshot(t, first) // with all in the clear
		release()
		time.Sleep(3 * time.Second) // virtual: at 50 parts a second, of which 256 are in a batch
		st := keyringtest.StatusOf(t, first)
		if len(st.Rekeying) != 1 || st.Rekeying[0].Key != (keyring.KeyID{}) || st.Rekeying[0].Moved != 256 || st.Rekeying[0].Left != 599-256 {
			t.Fatalf("in the middle: %+v", st.Rekeying)
		}
		if text := st.String(); !strings.Contains(text, "encrypting records in the clear: 256 encrypted, 0 conflicts, 343 left\n") {
			t.Error(text)
		}
		keyringtest.MakeLeader(t, c.Cluster, c.other(first))
		c.wantNoPlaintext(t, want)

		c.putOld("old/007", "secret of 007") // a client of the old days
		want["old/007"] = []string{"secret of 007"}
		c.wantNoPlaintext(t, want)
		restore(c.leader())
		delete(want, "old/007")
		c.wantNoPlaintext(t, want)
		old := c.rotateFully()
		c.awaitState(old, keyring.StateDeprecated)
		c.check("rotated", want)
	})
}

// TestPlaintextFromBeforeConnectIsSealed, although the keyring has had nothing to do since.
func TestPlaintextFromBeforeConnectIsSealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newUnconnected(t, func(s *keyringtest.Server) raft.FSM {
			return oldHost{records.New(s.FSM), new(atomic.Int32), new(atomic.Bool)}
		})
		c.leader()
		time.Sleep(time.Minute) // virtual
		c.putOld("a", "secret of a")
		time.Sleep(time.Minute) // virtual
		if n := count(t, mapOf(c.leader()), keyring.KeyID{}); n != 1 {
			t.Errorf("%d parts are in the clear", n)
		}
		for _, s := range c.Servers {
			connect(s)
		}
		c.wantNoPlaintext(t, map[string][]string{"a": {"secret of a"}})
	})
}

// TestPlaintextThatCannotBeSealed is a problem of the leader's, and of no key.
func TestPlaintextThatCannotBeSealed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, release := oldServers(t)
		c.putOld("a", "secret of a")
		leader := c.leader()
		proposals := 0
		mapOf(leader).Connect(leader.Keyring, func(context.Context, []byte) (any, error) { proposals++; return nil, nil })
		release()
		time.Sleep(time.Minute) // virtual
		p := keyringtest.Problems(t, leader, keyring.ProblemRekey)
		if len(p) != 1 || len(p[0].Keys) > 0 || !strings.Contains(p[0].Detail, "records in the clear") || !strings.Contains(p[0].Detail, "the host's Apply must return") {
			t.Errorf("%+v", p)
		}
		if proposals == 0 || proposals > 20 {
			t.Errorf("%d proposals in a minute", proposals)
		}
		connect(leader)
		time.Sleep(time.Minute) // virtual
		c.wantNoPlaintext(t, map[string][]string{"a": {"secret of a"}})
	})
}

// TestPlaintextTooLongForACommand is named, and what is before it in order is sealed. Without it the rest is.
func TestPlaintextTooLongForACommand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, release := oldServers(t)
		for _, name := range []string{"a", "c"} {
			c.putOld(name, "secret of "+name)
		}
		c.putOld("b", strings.Repeat("x", keyring.MaxCommand-100)) // with its key it is too long
		release()
		time.Sleep(time.Minute) // virtual
		p := keyringtest.Problems(t, c.leader(), keyring.ProblemRekey)
		if len(p) != 1 || !strings.Contains(p[0].Detail, `"b"`) || !strings.Contains(p[0].Detail, "4194") {
			t.Errorf("%+v", p)
		}
		if got := under(t, mapOf(c.leader()), keyring.KeyID{}); !slices.Equal(got, []string{"b", "c"}) {
			t.Errorf("%q are in the clear", got)
		}
		if _, err := mapOf(c.leader()).Put(t.Context(), records.Write{Name: "b", Delete: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // virtual
		c.wantNoPlaintext(t, map[string][]string{"a": {"secret of a"}, "c": {"secret of c"}})
	})
}

// TestScansReadOneState: swaps move records in pairs, and no scan sees half a pair, however often Apply comes in between.
func TestScansReadOneState(t *testing.T) {
	const pairs = 1000
	f := newFence(t)
	m, log := records.New(f.FSM), raftLog{}
	name := func(i int) string { return fmt.Sprintf("%s/%d", []string{"a", "z"}[i%2], i/2) }
	for i := range 2 * pairs {
		b := encodeBytes(encodeBytes([]byte{0}, name(i)), "")
		if a := m.Apply(log.next(encodeCommand('w', encodeParts(b, []modelPart{{1, string(ciphertext(1, uint64(i)))}})))); a != log.index {
			t.Fatal(a)
		}
	}
	f.rotate()
	var scans sync.WaitGroup
	for range 3 {
		scans.Go(func() {
			for left := 1; left > 0; {
				half := map[string]int{}
				left = 0
				for s, err := range m.Under(t.Context(), keyring.KeyID{1}) {
					if err != nil {
						t.Error(err)
					}
					half[s.Ref[1:]]++
					left++
				}
				for ref, n := range half {
					if n != 2 {
						t.Errorf("a scan saw %d of the pair %s", n, ref)
					}
				}
				moved := map[string]keyring.KeyID{}
				for r := range m.View().All("") {
					if first, ok := moved[r.Name[1:]]; ok && first != r.KeyID(0) {
						t.Errorf("a view has half of the pair %s", r.Name[1:])
					}
					moved[r.Name[1:]] = r.KeyID(0)
				}
			}
		})
	}
	for i := 0; i < 2*pairs; i += 2 {
		if conflicts := m.Apply(log.next(encodeCommand('s', swapOf(name(i), uint64(i)), swapOf(name(i+1), uint64(i+1))))); conflicts != 0 {
			t.Errorf("%v conflicts", conflicts)
		}
	}
	scans.Wait()
}
