package store

// Snapshots: a line of JSON with the watches, and then the values.

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

type snapshot struct {
	head   Head
	values records.View
}

// Snapshot implements raft.FSM.
func (s *Store) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{Head{Watches: s.Watches()}, s.values.View()}, nil
}

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	out := json.NewEncoder(sink)
	err := out.Encode(s.head)
	if s.values.Index() == 0 { // no value was written since there is a keyring: builds without one read this
		for r := range s.values.All("") {
			err = errors.Join(err, out.Encode(Entry{r.Name, r.Version, r.Parts[0]}))
		}
	} else if err == nil {
		_, err = s.values.WriteTo(sink)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (*snapshot) Release() {}

// Restore implements raft.FSM.
func (s *Store) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	in := bufio.NewReader(rc)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	var head Head
	if err := json.Unmarshal(line, &head); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if start, _ := in.Peek(8); records.Is(start) {
		err = s.values.RestoreFrom(in)
	} else {
		err = s.values.RestorePlain(plainValues(in))
	}
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches = head.Watches; s.watches == nil {
		s.watches = map[string]Watch{}
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// plainValues yields the values of a snapshot of before the keyring.
func plainValues(in io.Reader) func(yield func(records.Record, error) bool) {
	return func(yield func(records.Record, error) bool) {
		lines := json.NewDecoder(in)
		for {
			var e Entry
			err := lines.Decode(&e)
			if err == io.EOF || !yield(plain(e), err) || err != nil {
				return
			}
		}
	}
}
