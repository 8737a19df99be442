package keyring

import (
	"io"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// Mux puts the keyring's FSM in front of the host's, for one raft that carries both. It goes
// outermost. Entries that the keyring proposed go to keys, all others to app, which sees its
// log, its batches (if it is a raft.BatchingFSM) and the raft configurations (if it is a
// raft.ConfigurationStore) as it would without. The keyring sees these too: what Mux returns
// is always a raft.ConfigurationStore. A snapshot holds both: the keyring's section
// first, then app's to the end. Snapshots and logs from before the Mux are read as app's
// alone; after the first snapshot that the Mux wrote, going back to a build without it needs
// a restore.
func Mux(keys *FSM, app raft.FSM) raft.FSM {
	m := mux{keys, app}
	if batching, ok := app.(raft.BatchingFSM); ok {
		return muxBatching{m, batching}
	}
	return m
}

type mux struct {
	keys *FSM
	app  raft.FSM
}

func (m mux) Apply(l *raft.Log) any {
	if own(l) {
		return m.keys.Apply(l)
	}
	return m.app.Apply(l)
}

// StoreConfiguration implements raft.ConfigurationStore. raft calls it of an FSM that takes no batches.
func (m mux) StoreConfiguration(index uint64, c raft.Configuration) {
	m.keys.StoreConfiguration(index, c)
	if store, ok := m.app.(raft.ConfigurationStore); ok {
		store.StoreConfiguration(index, c)
	}
}

func (m mux) Snapshot() (raft.FSMSnapshot, error) {
	if err := m.keys.whole(); err != nil {
		return nil, err
	}
	app, err := m.app.Snapshot()
	if err != nil {
		return nil, err
	}
	return fsmSnapshot{m.keys.ring.Load(), m.keys.build, app}, nil
}

// Restore reads and checks the keyring's section before the host's state is touched, and
// publishes it only once the host has restored its own.
func (m mux) Restore(rc io.ReadCloser) error {
	ring, rest, err := readSection(rc, m.keys.build)
	if err != nil {
		return err
	}
	if err := m.app.Restore(restCloser{rest, rc}); err != nil {
		return err
	}
	if ring == nil {
		ring = &meta.Ring{}
	}
	m.keys.publish(ring)
	return nil
}

// restCloser reads the host's part of a snapshot and closes the whole.
type restCloser struct {
	io.Reader
	io.Closer
}

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
		for n < len(logs) && !own(logs[n]) {
			if l := logs[n]; l.Type == raft.LogConfiguration {
				m.keys.StoreConfiguration(l.Index, raft.Configuration{}) // raft does not call it here
			}
			n++
		}
		if n > 0 {
			responses = append(responses, m.app.ApplyBatch(logs[:n])...)
		} else {
			n = 1
			responses = append(responses, m.keys.Apply(logs[0]))
		}
		logs = logs[n:]
	}
	return responses
}
