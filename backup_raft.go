package keyring

// Restore into the snapshot store of a raft.

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// raftSnapshot is the snapshot of a backup, on its way into raft's snapshot store.
type raftSnapshot struct {
	store  raft.SnapshotStore
	server raft.Server
	sink   raft.SnapshotSink // nil until open
}

// empty requires that the store has no snapshot.
func (s *raftSnapshot) empty() error {
	there, err := s.store.List()
	if err != nil {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	if len(there) > 0 {
		return fmt.Errorf("the store in Snapshots has a snapshot, %s: raft has run on it", there[0].ID)
	}
	return nil
}

// open begins the snapshot of a cluster that consists of this server alone. Its term is one: no server is left
// that has seen the old terms.
func (s *raftSnapshot) open(m Manifest) (_ io.Writer, err error) {
	s.server.Suffrage = raft.Voter
	_, trans := raft.NewInmemTransport(s.server.Address)
	alone := raft.Configuration{Servers: []raft.Server{s.server}}
	s.sink, err = s.store.Create(raft.SnapshotVersionMax, m.Raft.Index, 1, alone, 1, trans)
	return s.sink, err
}

// end completes the snapshot, or removes it if there was an error.
func (s *raftSnapshot) end(err error) error {
	switch {
	case s.sink == nil:
		return err
	case err != nil:
		return errors.Join(err, s.sink.Cancel())
	}
	return s.sink.Close()
}
