package store

// What is in raft's log and snapshots, and what a Store returns. The keyring changes nothing of it.

import (
	"encoding/json"
	"errors"
)

// Errors of a Store.
var (
	ErrNoKey   = errors.New("no such key")
	ErrNoWatch = errors.New("no such watch")
)

// Watch is a durable watch: it tells its owner of each write below a prefix, whichever server the owner asks. A write that is
// overwritten before the owner asks is told of once, and a deletion is not told of.
type Watch struct {
	Prefix string `json:"prefix"`
	Seen   uint64 `json:"seen"` // the owner knows of the writes up to this version
}

// Entry is a value with its key. Its version is the index of the entry of raft's log that wrote it.
type Entry struct {
	Key     string `json:"key"`
	Version uint64 `json:"version"`
	Value   []byte `json:"value,omitempty"` // nil in lists
}

// Command is an entry of raft's log, in JSON. The commands put and delete are of builds that had no keyring.
type Command struct {
	Op      string `json:"op"`            // put, delete, watch, seen, unwatch
	Key     string `json:"key,omitempty"` // of the value, or the name of the watch
	Value   []byte `json:"value,omitempty"`
	Prefix  string `json:"prefix,omitempty"`
	Version uint64 `json:"version,omitempty"`
}

// Encode returns the entry for raft's log.
func (c Command) Encode() []byte {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // it has text and numbers
	}
	return b
}

// Head is the first line of a snapshot.
type Head struct {
	Watches map[string]Watch `json:"watches"`
}
