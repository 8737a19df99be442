package before

// Snapshots: a line of JSON with the watches, and then the values.

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"github.com/tidwall/btree"
)

type snapshot struct {
	head   Head
	values *btree.Map[string, Entry]
}

// Snapshot implements raft.FSM.
func (s *Store) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{Head{Watches: s.Watches()}, s.view()}, nil
}

// Persist implements raft.FSMSnapshot.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	out := json.NewEncoder(sink)
	err := out.Encode(s.head)
	s.values.Scan(func(_ string, e Entry) bool {
		err = errors.Join(err, out.Encode(e))
		return err == nil
	})
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
	values, err := readValues(in)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches = head.Watches; s.watches == nil {
		s.watches = map[string]Watch{}
	}
	s.values = values
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// readValues reads the values of a snapshot.
func readValues(in io.Reader) (values btree.Map[string, Entry], err error) {
	lines := json.NewDecoder(in)
	for {
		var e Entry
		if err := lines.Decode(&e); err == io.EOF {
			return values, nil
		} else if err != nil {
			return values, err
		}
		values.Set(e.Key, e)
	}
}
