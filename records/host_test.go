package records_test

// What the tests of this package have in common: a fence without raft, ciphertexts that nobody can open, and a cluster.

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// fence is a keyring's FSM whose keys are 1, 2, 3 and so on, of which one is active.
type fence struct {
	*keyring.FSM
	tb     testing.TB
	index  uint64
	active byte
}

func newFence(tb testing.TB) *fence {
	f := &fence{FSM: keyring.NewFSM(), tb: tb}
	f.apply(meta.Command{Init: &meta.Init{Cluster: meta.ClusterID{1}}})
	f.rotate()
	return f
}

func (f *fence) apply(c meta.Command) {
	f.tb.Helper()
	f.index++
	if r := f.Apply(keyringtest.LogEntry(f.tb, f.index, c)); r != nil {
		f.tb.Fatal(r)
	}
}

// rotate makes the next key active.
func (f *fence) rotate() {
	f.tb.Helper()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f.active++
	id := keyring.KeyID{f.active}
	f.apply(meta.Command{Add: &meta.Add{Key: meta.NewKey{
		ID: meta.KeyID(id), Algorithm: "EdDSA", Public: []byte{f.active}, Check: meta.CheckValue{f.active}, Created: at,
	}}})
	server := meta.Server{ID: "s1", Keystore: meta.KeystoreID{1}}
	f.apply(meta.Command{Hold: &meta.Hold{Server: server.ID, Keystore: server.Keystore, Gained: []meta.KeyID{meta.KeyID(id)}}})
	f.apply(meta.Command{Activate: &meta.Activate{ID: meta.KeyID(id), Voters: []string{"s1"}, Confirmed: []meta.Server{server}, Time: at}})
}

// ciphertext has the form of one under a key. What n is differs in bytes.
func ciphertext(key byte, n uint64) []byte {
	b := make([]byte, keyring.Overhead+8)
	b[0], b[1] = 1, key
	binary.BigEndian.PutUint64(b[keyring.Overhead:], n)
	return b
}

// raftLog is raft's log, of which every server applies the same.
type raftLog struct{ index uint64 }

func (l *raftLog) next(cmd []byte) *raft.Log {
	l.index++
	return &raft.Log{Index: l.index, Data: cmd}
}

func section(tb testing.TB, m *records.Map) []byte {
	tb.Helper()
	var b bytes.Buffer
	n, err := m.View().WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		tb.Fatalf("%d bytes of %d, %v", n, b.Len(), err)
	}
	return b.Bytes()
}

// under returns the refs of what is under a key, in order.
func under(tb testing.TB, m *records.Map, key keyring.KeyID) (refs []string) {
	tb.Helper()
	for s, err := range m.Under(tb.Context(), key) {
		if err != nil {
			tb.Fatal(err)
		}
		refs = append(refs, s.Ref)
	}
	slices.Sort(refs)
	return refs
}

func count(tb testing.TB, m *records.Map, key keyring.KeyID) int {
	tb.Helper()
	n, err := m.Count(tb.Context(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// cluster is servers whose FSM is a Map, or a host that has one.
type cluster struct{ *keyringtest.Cluster }

// newCluster starts servers in which keys do not rotate by themselves, and 50 parts a second are moved.
func newCluster(t *testing.T, app func(*keyringtest.Server) raft.FSM) cluster {
	c := newUnconnected(t, app)
	for _, s := range c.Servers {
		connect(s)
	}
	return c
}

// newUnconnected is newCluster before Connect is called.
func newUnconnected(t *testing.T, app func(*keyringtest.Server) raft.FSM) cluster {
	return cluster{keyringtest.NewCluster(t, keyringtest.Options{
		Servers: 3,
		App:     app,
		Raft:    func(conf *raft.Config) { conf.TrailingLogs = 1 }, // who joins gets a snapshot
		Configure: func(s *keyringtest.Server, cfg *keyring.Config) {
			cfg.Rotation.Every, cfg.RekeyRate, cfg.Data = -1, 50, s.App.(keyring.SealedData)
		},
	})}
}

func connect(s *keyringtest.Server) { mapOf(s).Connect(s.Keyring, records.Through(s.Raft)) }

// hasMap is a host that has a Map beside its own state.
type hasMap interface{ records() *records.Map }

func mapOf(s *keyringtest.Server) *records.Map {
	if h, ok := s.App.(hasMap); ok {
		return h.records()
	}
	return s.App.(*records.Map)
}

// other is a server that is not this one.
func (c cluster) other(than *keyringtest.Server) *keyringtest.Server {
	for _, s := range c.Live() {
		if s != than {
			return s
		}
	}
	return nil
}

// leader waits for one that seals.
func (c cluster) leader() *keyringtest.Server {
	c.TB.Helper()
	return keyringtest.Ready(c.TB, c.Cluster)
}

// check wants every live server to have these records, which open, and the bytes of the leader.
func (c cluster) check(when string, want map[string][]string) {
	c.TB.Helper()
	keyringtest.AwaitKeys(c.TB, c.Cluster)
	time.Sleep(10 * time.Second) // virtual: followers apply
	snapshot := section(c.TB, mapOf(c.leader()))
	for _, s := range c.Live() {
		m := mapOf(s)
		if !bytes.Equal(section(c.TB, m), snapshot) {
			c.TB.Errorf("%s: %s has other records than the leader", when, s.ID)
		}
		if m.View().Len() != len(want) {
			c.TB.Errorf("%s: %s has %d records, not %d", when, s.ID, m.View().Len(), len(want))
		}
		for name, parts := range want {
			_, got, err := m.Open(name)
			if err != nil || !slices.EqualFunc(got, parts, func(b []byte, s string) bool { return string(b) == s }) {
				c.TB.Errorf("%s: %s: %s: %q, %v", when, s.ID, name, got, err)
			}
		}
	}
}
