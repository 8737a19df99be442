package main

import (
	"encoding/json"
	"fmt"

	"example.com/keyring"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// store is the program's own FSM: secrets by path, each a record of one part. It rides the same raft as the keyring's. Most
// of it is the Map: the fence, the index from keys to secrets, snapshots, and what a full rotation needs.
type store struct{ *records.Map }

func newStore(keys *keyring.FSM) store { return store{records.New(keys)} }

// command is a log entry that is not the Map's.
type command struct {
	Read string // a path: the answer is the secret as of this entry, a records.Record
}

// Apply executes a command.
func (s store) Apply(l *raft.Log) any {
	if records.Is(l.Data) {
		return s.Map.Apply(l)
	}
	var c command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return fmt.Errorf("log entry %d: %w", l.Index, err)
	}
	if secret, ok := s.Get(c.Read); ok {
		return secret
	}
	return records.ErrNotFound
}
