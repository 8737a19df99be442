package records_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	old = keyringtest.Ring(c.leader().FSM).Active().ID
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
}

func (h oldHost) records() *records.Map { return h.Map }

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

// oldCluster is servers of a host that has its values in the clear: some applied its log, and s4 has got an old snapshot.
func oldCluster(t *testing.T) (c cluster, want map[string][]string) {
	t.Helper()
	c, want = newCluster(t, func(s *keyringtest.Server) raft.FSM { return oldHost{records.New(s.FSM), new(atomic.Int32)} }), map[string][]string{}
	propose := func(p oldPut) {
		b, _ := json.Marshal(p)
		if err := c.leader().Raft.Apply(b, time.Minute).Error(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 600 {
		name := fmt.Sprintf("old/%03d", i)
		propose(oldPut{name, "secret of " + name})
		want[name] = []string{"secret of " + name}
	}
	propose(oldPut{Name: "old/007"})
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
	return c, want
}

// TestPlaintextIsSealedOnTheWay, also when the leader changes in the middle. Then nothing is in the clear in what raft
// snapshots, and keys rotate as if it had always been so.
func TestPlaintextIsSealedOnTheWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, want := oldCluster(t)
		first := c.leader()
		ctx, cancel := context.WithCancel(t.Context())
		batches := 0
		mapOf(first).Connect(first.Keyring, func(ctx context.Context, cmd []byte) (any, error) {
			if batches++; batches == 2 {
				cancel()
				return nil, context.Canceled
			}
			return records.Through(first.Raft)(ctx, cmd)
		})
		sealed, err := mapOf(first).SealPlain(ctx)
		if !errors.Is(err, context.Canceled) || sealed != 256 || count(t, mapOf(first), keyring.KeyID{}) != 599-256 {
			t.Fatalf("%d sealed, %v", sealed, err)
		}
		connect(first)
		keyringtest.MakeLeader(t, c.Cluster, c.other(first))
		if sealed, err = mapOf(c.leader()).SealPlain(t.Context()); err != nil || sealed != 599-256 {
			t.Fatalf("%d sealed, %v", sealed, err)
		}
		c.check("sealed", want)
		for _, s := range c.Servers {
			if n := count(t, mapOf(s), keyring.KeyID{}); n != 0 || bytes.Contains(keyringtest.SnapshotOf(t, s.App), []byte("secret of")) {
				t.Errorf("%s: %d parts are in the clear", s.ID, n)
			}
		}
		old := c.rotateFully()
		c.awaitState(old, keyring.StateDeprecated)
		c.check("rotated", want)
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
