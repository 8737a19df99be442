package fsm

// The keyring's FSM and the host's on one raft, and the snapshot that holds both.

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// Mux puts the keyring's FSM in front of the host's, for one raft that carries both: see the root's Mux.
//
// An app that is new on a raft which the keyring has had to itself meets snapshots that have nothing of
// app's in them. Until app has been given anything it is not asked to restore such a one if, as it is, it makes snapshots of
// one byte or more. To find that out Mux has it make a snapshot, and takes only the first byte of it.
func Mux(keys *Machine, app raft.FSM) raft.FSM {
	m := mux{keys, app, &atomic.Bool{}, keys.App.New("Apply of the host's FSM", applyPatience)}
	if batching, ok := app.(raft.BatchingFSM); ok {
		return muxBatching{m, batching}
	}
	return m
}

type mux struct {
	keys *Machine
	app  raft.FSM
	used *atomic.Bool // app has been given an entry or a snapshot since the start

	applying *gate.Call // of app: raft applies one thing after the other
}

// How long a call of the host's FSM may take before Status names it.
const (
	applyPatience    = 10 * time.Second
	snapshotPatience = time.Minute      // raft applies nothing meanwhile
	restorePatience  = 10 * time.Minute // of a large state; also of Persist
)

func (m mux) Apply(l *raft.Log) any {
	if isKeyringEntry(l) {
		return m.keys.Apply(l)
	}
	m.keys.history.applied(l.Index)
	m.used.Store(true)
	m.applying.Enter()
	defer m.applying.Leave()
	return m.app.Apply(l)
}

// StoreConfiguration implements raft.ConfigurationStore. raft calls it of an FSM that takes no batches.
func (m mux) StoreConfiguration(index uint64, c raft.Configuration) {
	m.keys.StoreConfiguration(index, c)
	if store, ok := m.app.(raft.ConfigurationStore); ok {
		m.keys.App.Watch("StoreConfiguration of the host's FSM", applyPatience, func() { store.StoreConfiguration(index, c) })
	}
}

func (m mux) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.keys.Complete(); err != nil {
		return nil, err
	}
	app, err := m.snapshotApp()
	if err != nil {
		return nil, err
	}
	return fsmSnapshot{m.keys.ring.Load(), m.keys.build, persisted{app, &m.keys.Persisting}}, nil
}

// persisted is a snapshot of the host's FSM, whose Persist is noted while it runs.
type persisted struct {
	raft.FSMSnapshot
	calls *gate.Calls
}

// Persist implements raft.FSMSnapshot.
func (p persisted) Persist(sink raft.SnapshotSink) (err error) {
	p.calls.Watch("Persist of the host's FSM", restorePatience, func() { err = p.FSMSnapshot.Persist(sink) })
	return err
}

func (m mux) snapshotApp() (snap raft.FSMSnapshot, err error) {
	m.keys.App.Watch("Snapshot of the host's FSM", snapshotPatience, func() { snap, err = m.app.Snapshot() })
	return snap, err
}

// restoreApp restores the host's state, unless a snapshot that has nothing of it lacks nothing of it.
func (m mux) restoreApp(mayLack bool, rest io.ReadCloser) (err error) {
	m.keys.App.Watch("Restore of the host's FSM", restorePatience, func() {
		if mayLack && writesSomething(m.app) {
			return
		}
		err = m.app.Restore(rest)
		if mayLack && isEOF(err) {
			err = nil
		}
		if err == nil {
			m.used.Store(true)
		}
	})
	return err
}

// Restore reads and checks the keyring's part before the host's state is touched, and
// publishes it only once the host has restored its own.
func (m mux) Restore(rc io.ReadCloser) error {
	ring, rest, err := readSnapshot(rc, m.keys.build)
	if err != nil {
		return err
	}
	buffered := bufio.NewReader(rest)
	_, err = buffered.Peek(1)
	mayLackApp := ring != nil && err == io.EOF && !m.used.Load() && !m.keys.history.asked.Load()
	if err := m.restoreApp(mayLackApp, restOf(buffered, rc)); err != nil {
		return err
	}
	if ring == nil {
		ring = &meta.Ring{}
	}
	m.keys.publish(ring)
	return nil
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// writesSomething reports whether a host's FSM that nothing was applied to makes a snapshot of one byte or
// more. One that has none was made without it, then: by a raft that had the keyring's FSM alone. If the
// FSM can't tell, the answer is no, and it is for the FSM to say what a snapshot of no bytes means.
func writesSomething(app raft.FSM) bool {
	snap, err := app.Snapshot()
	if err != nil {
		return false
	}
	defer snap.Release()
	var s firstByte
	_ = snap.Persist(&s) // fails at the first byte
	return s.written
}

// firstByte is a sink that takes nothing.
type firstByte struct{ written bool }

var errEnough = errors.New("all that was to be known is known")

func (s *firstByte) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	s.written = true
	return 0, errEnough
}

func (*firstByte) Close() error { return nil }

func (*firstByte) Cancel() error { return nil }

func (*firstByte) ID() string { return "" }

// restOf reads the host's part of a snapshot, and closes the snapshot. It gives the host what raft's reader wraps, if it
// is one that tells: see raft.ReadCloserWrapper.
func restOf(rest io.Reader, snapshot io.ReadCloser) io.ReadCloser {
	r := restCloser{rest, snapshot}
	if w, ok := snapshot.(raft.ReadCloserWrapper); ok {
		return restWrapper{r, w}
	}
	return r
}

type restCloser struct {
	io.Reader
	io.Closer
}

type restWrapper struct {
	restCloser
	snapshot raft.ReadCloserWrapper
}

// WrappedReadCloser implements raft.ReadCloserWrapper.
func (r restWrapper) WrappedReadCloser() io.ReadCloser { return r.snapshot.WrappedReadCloser() }

type muxBatching struct {
	mux
	app raft.BatchingFSM
}

// ApplyBatch hands runs of the host's entries to its ApplyBatch and the keyring's entries
// between them to the keyring, in the order of the log.
func (m muxBatching) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, 0, len(logs))
	for len(logs) > 0 {
		n := 0
		for n < len(logs) && !isKeyringEntry(logs[n]) {
			if l := logs[n]; l.Type == raft.LogConfiguration {
				m.keys.StoreConfiguration(l.Index, raft.Configuration{}) // raft does not call it here
			}
			n++
		}
		if n > 0 {
			m.keys.history.applied(logs[0].Index)
			m.used.Store(true)
			responses = append(responses, m.applyBatch(logs[:n])...)
		} else {
			n = 1
			responses = append(responses, m.keys.Apply(logs[0]))
		}
		logs = logs[n:]
	}
	return responses
}

func (m muxBatching) applyBatch(logs []*raft.Log) []any {
	m.applying.Enter()
	defer m.applying.Leave()
	return m.app.ApplyBatch(logs)
}

// fsmSnapshot is the keyring's part, then the host's snapshot if there is one. Until the keyring has
// committed something it is the host's alone: raft may send it to a server that has no Mux yet.
type fsmSnapshot struct {
	ring  *meta.Ring
	build meta.Build
	app   raft.FSMSnapshot
}

// Persist implements raft.FSMSnapshot. The host's Persist closes the sink.
func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if s.app != nil && !hasCluster(s.ring) {
		return s.persistApp(sink)
	}
	err := s.build.WriteSnapshot(sink, s.ring)
	if err == nil && s.app != nil {
		return s.app.Persist(sink)
	}
	if err == nil {
		return sink.Close()
	}
	return errors.Join(err, sink.Cancel())
}

// Release implements raft.FSMSnapshot.
func (s fsmSnapshot) Release() {
	if s.app != nil {
		s.app.Release()
	}
}

// persistApp writes the host's snapshot alone.
func (s fsmSnapshot) persistApp(sink raft.SnapshotSink) error {
	app := &appSink{SnapshotSink: sink, keyring: s}
	if err := s.app.Persist(app); err != nil {
		return err
	}
	return app.flush() // if the host has left it to raft to close the sink
}

// appSink takes a host's snapshot that has no part of the keyring's before it. What a host writes comes
// from the host or from its users. If it begins with the keyring's magic, the sink writes the keyring's
// part, of an empty ring, before it: so no reader takes the host's bytes for the keyring's.
type appSink struct {
	raft.SnapshotSink
	keyring fsmSnapshot
	held    []byte // the first bytes, until there are as many as the magic has
	flushed bool
}

// Write implements io.Writer.
func (s *appSink) Write(b []byte) (int, error) {
	if s.flushed {
		return s.SnapshotSink.Write(b)
	}
	s.held = append(s.held, b...)
	if len(s.held) >= len(meta.SnapshotMagic) {
		if err := s.flush(); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// flush writes what is held.
func (s *appSink) flush() error {
	if s.flushed {
		return nil
	}
	s.flushed = true
	if bytes.HasPrefix(s.held, []byte(meta.SnapshotMagic)) {
		if err := s.keyring.build.WriteSnapshot(s.SnapshotSink, s.keyring.ring); err != nil {
			return err
		}
	}
	if len(s.held) == 0 {
		return nil
	}
	_, err := s.SnapshotSink.Write(s.held)
	return err
}

// Close implements raft.SnapshotSink.
func (s *appSink) Close() error {
	if err := s.flush(); err != nil {
		return err // the host cancels
	}
	return s.SnapshotSink.Close()
}

// readSnapshot returns the ring of a snapshot, which is nil if it has no part of the keyring's, and a
// reader of the host's part.
func readSnapshot(r io.Reader, build meta.Build) (*meta.Ring, io.Reader, error) {
	s, err := build.ReadSnapshot(r)
	return s.Ring, s.Host, snapshotError(err)
}

// snapshotError adds to an error about a snapshot the one that callers branch on.
func snapshotError(err error) error {
	switch {
	case errors.Is(err, meta.ErrVersion):
		return fmt.Errorf("the snapshot is from a newer build: %w", err)
	case errors.Is(err, meta.ErrMalformed):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}
