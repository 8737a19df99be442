package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/examples/watchmap/store"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// read returns a file that the service wrote before it had a keyring: before.log is entries of raft's log, the first of index
// 3, and before.snapshot is what they come to.
func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newStore() *store.Store { return store.New(records.New(keyring.NewFSM())) }

// TestLogAndSnapshotOfBeforeAreRead, and as long as nothing is encrypted snapshots are as they were, byte for byte.
func TestLogAndSnapshotOfBeforeAreRead(t *testing.T) {
	applied, restored := newStore(), newStore()
	index := uint64(2)
	for line := range bytes.Lines(read(t, "before.log")) {
		index++
		if err, refused := applied.Apply(&raft.Log{Index: index, Data: line}).(error); refused && err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	want := read(t, "before.snapshot")
	if err := restored.Restore(io.NopCloser(bytes.NewReader(want))); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*store.Store{"log": applied, "snapshot": restored} {
		if got := keyringtest.SnapshotOf(t, s); !bytes.Equal(got, want) {
			t.Errorf("of the %s:\n%s\nwant\n%s", name, got, want)
		}
	}
	for cut := range want[:len(want)-1] { // one that ends with a line is not known to be cut, as before
		if err := newStore().Restore(io.NopCloser(bytes.NewReader(want[:cut]))); err == nil && want[cut-1] != '\n' && want[cut] != '\n' {
			t.Errorf("%q is a snapshot", want[:cut])
		}
	}
}

// cluster is three servers whose FSM is a Store.
type cluster struct {
	*keyringtest.Cluster
	values map[*keyringtest.Server]*records.Map
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{values: map[*keyringtest.Server]*records.Map{}}
	c.Cluster = keyringtest.NewCluster(t, keyringtest.Options{
		Servers: 3,
		App: func(s *keyringtest.Server) raft.FSM {
			c.values[s] = records.New(s.FSM)
			return store.New(c.values[s])
		},
		Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.Data, cfg.Tokens.Algorithm = -1, c.values[s], "EdDSA"
		},
	})
	for _, s := range c.Servers {
		c.values[s].Connect(s.Keyring, records.Through(s.Raft))
	}
	return c
}

// leader is the one that seals, and its Store.
func (c *cluster) leader() (*keyringtest.Server, *store.Store) {
	s := keyringtest.Ready(c.TB, c.Cluster)
	return s, s.App.(*store.Store)
}

// apply has raft apply commands of the host's.
func (c *cluster) apply(commands ...[]byte) {
	c.TB.Helper()
	leader, _ := c.leader()
	for _, command := range commands {
		f := leader.Raft.Apply(command, time.Minute)
		if err := f.Error(); err != nil {
			c.TB.Fatal(err)
		}
		if err, refused := f.Response().(error); refused && err != nil {
			c.TB.Fatal(err)
		}
	}
}

// TestValuesOfBeforeAreSealed, keep their versions, and are in no snapshot in the clear. A snapshot restores to the same.
func TestValuesOfBeforeAreSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		for line := range bytes.Lines(read(t, "before.log")) {
			c.apply(line)
		}
		leader, s := c.leader()
		time.Sleep(time.Minute) // virtual
		if n, err := c.values[leader].Count(t.Context(), keyring.KeyID{}); n > 0 || err != nil {
			t.Fatalf("%d values are in the clear, %v", n, err)
		}
		snapshot := keyringtest.SnapshotOf(t, s)
		if bytes.Contains(snapshot, []byte("correct horse")) || bytes.Contains(snapshot, []byte("Y29ycmVjdCBob3JzZQ")) {
			t.Errorf("%q", snapshot)
		}
		restored := store.New(c.values[leader])
		if err := restored.Restore(io.NopCloser(bytes.NewReader(snapshot))); err != nil {
			t.Fatal(err)
		}
		if again := keyringtest.SnapshotOf(t, restored); !bytes.Equal(again, snapshot) || !reflect.DeepEqual(restored.Watches(), s.Watches()) {
			t.Errorf("%q is restored from %q", again, snapshot)
		}
		e, err := s.Get("users/anna")
		if err != nil || string(e.Value) != "correct horse" {
			t.Errorf("%+v, %v", e, err)
		}
		if _, err := s.Get("users/bert"); !errors.Is(err, store.ErrNoKey) {
			t.Errorf("what was deleted: %v", err)
		}
	})
}

// TestWatchTellsOfWrites on every server, once they have happened, and of no rotation.
func TestWatchTellsOfWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		leader, s := c.leader()
		c.apply(store.Command{Op: "watch", Key: "w", Prefix: "a/"}.Encode())
		version, err := s.Put(t.Context(), "a/1", []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // virtual
		for _, server := range c.Servers {
			if news, err := server.App.(*store.Store).Next(t.Context(), "w", 0); err != nil || len(news) != 1 || news[0].Version != version {
				t.Errorf("%s: %+v, %v", server.ID, news, err)
			}
		}
		c.apply(store.Command{Op: "seen", Key: "w", Version: version}.Encode())
		next := make(chan string, 1)
		go func() {
			news, err := s.Next(t.Context(), "w", 0)
			next <- strings.Join(keysOf(news), " ") + errorText(err)
		}()
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(t.Context(), "b/1", nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // virtual: all has moved
		select {
		case got := <-next:
			t.Fatalf("it tells of %q", got)
		default:
		}
		if _, err := s.Put(t.Context(), "a/2", nil); err != nil {
			t.Fatal(err)
		}
		if got := <-next; got != "a/2" {
			t.Errorf("it tells of %q", got)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		if _, err := s.Next(ended, "w", 1<<60); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if _, err := s.Next(ended, "none", 0); !errors.Is(err, store.ErrNoWatch) {
			t.Error(err)
		}
	})
}

func keysOf(list []store.Entry) (keys []string) {
	for _, e := range list {
		keys = append(keys, e.Key)
	}
	return keys
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
