package keyringtest

// Log entries and snapshots, as raft has them.

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// Extensions is the Log.Extensions value that marks the keyring's entries. It is part of the format
// of every log, so it stands here as it is and not as the code has it.
const Extensions = "keyring/1"

// LogEntry is a log entry of the keyring's.
func LogEntry(t testing.TB, index uint64, cmds ...meta.Command) *raft.Log {
	t.Helper()
	b, err := meta.Entry{Commands: cmds}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Type: raft.LogCommand, Data: b, Extensions: []byte(Extensions)}
}

// Sink is a raft.SnapshotSink that counts how it ends.
type Sink struct {
	Buf              bytes.Buffer
	Limit            int // bytes until writes fail; 0 is none
	Closed, Canceled int
}

// ErrDiskFull is what a Sink answers beyond its limit.
var ErrDiskFull = errors.New("disk full")

// Write implements io.Writer.
func (s *Sink) Write(p []byte) (int, error) {
	if s.Limit > 0 && s.Buf.Len()+len(p) > s.Limit {
		n, _ := s.Buf.Write(p[:s.Limit-s.Buf.Len()])
		return n, ErrDiskFull
	}
	return s.Buf.Write(p)
}

// ID implements raft.SnapshotSink.
func (s *Sink) ID() string { return "sink" }

// Close implements raft.SnapshotSink.
func (s *Sink) Close() error { s.Closed++; return nil }

// Cancel implements raft.SnapshotSink.
func (s *Sink) Cancel() error { s.Canceled++; return nil }

// SnapshotOf is the snapshot of an FSM as raft would store it.
func SnapshotOf(t testing.TB, f raft.FSM) []byte {
	t.Helper()
	snap, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var s Sink
	if err := snap.Persist(&s); err != nil {
		t.Fatal(err)
	}
	snap.Release()
	if s.Closed != 1 || s.Canceled != 0 {
		t.Fatalf("sink closed %d times, cancelled %d times", s.Closed, s.Canceled)
	}
	return s.Buf.Bytes()
}

// RestoreFSM gives an FSM a snapshot.
func RestoreFSM(f raft.FSM, b []byte) error { return f.Restore(io.NopCloser(bytes.NewReader(b))) }

// FilledFSM is an FSM with two keys, one of them active, and a tombstone.
func FilledFSM(t testing.TB) *keyring.FSM {
	t.Helper()
	return Fill(t, keyring.NewFSM())
}

// Fill gives an FSM that has applied nothing the log of FilledFSM.
func Fill[F raft.FSM](t testing.TB, f F) F {
	t.Helper()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	key := func(n byte) meta.NewKey {
		return meta.NewKey{ID: meta.KeyID{n}, Algorithm: "EdDSA", Public: []byte{n}, Check: meta.CheckValue{n}, Created: at}
	}
	server := meta.Server{ID: "s1", Keystore: meta.KeystoreID{1}}
	cmds := []meta.Command{
		{Init: &meta.Init{Cluster: meta.ClusterID{1}}},
		{Add: &meta.Add{Key: key(1)}},
		{Add: &meta.Add{Key: key(2)}},
		{Add: &meta.Add{Key: key(3)}},
		{Remove: &meta.Remove{ID: meta.KeyID{3}, From: meta.StatePrepublished, Time: at}},
		{Hold: &meta.Hold{Server: server.ID, Keystore: server.Keystore, Gained: []meta.KeyID{{1}, {2}}}},
		{Activate: &meta.Activate{ID: meta.KeyID{1}, Voters: []string{"s1"}, Confirmed: []meta.Server{server}, Time: at}},
	}
	for i, c := range cmds {
		if r := f.Apply(LogEntry(t, uint64(i+1), c)); r != nil {
			t.Fatal(r)
		}
	}
	return f
}
