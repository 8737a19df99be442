// Package store is the state of a server of watchmap, and what raft applies to: values by key, in the order of their keys, and
// watches, which tell their owners of writes.
//
// The watches are the host's own state. They are no secrets, and are in the clear. The values are in a [records.Map] since the
// service has a keyring. Before, they were in a map of this package's, in raft's log as the commands put and delete, and in the
// snapshots as lines of JSON. Both are still read: see Apply and Restore.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"sync"

	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// Store is the state of one server. It is raft's FSM. Its methods are safe for concurrent use.
type Store struct {
	values *records.Map

	mu      sync.Mutex // guards below
	watches map[string]Watch
	changed chan struct{} // closed at the next change of watches
}

// New returns an empty Store.
func New(values *records.Map) *Store {
	return &Store{values: values, watches: map[string]Watch{}, changed: make(chan struct{})}
}

// Apply implements raft.FSM.
func (s *Store) Apply(l *raft.Log) any {
	if records.Is(l.Data) {
		return s.values.Apply(l)
	}
	var c Command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return fmt.Errorf("log entry %d: %w", l.Index, err)
	}
	switch c.Op {
	case "put":
		return s.values.SetPlain(plain(Entry{Key: c.Key, Version: l.Index, Value: c.Value}))
	case "delete":
		s.values.Delete(c.Key)
		return nil
	}
	return s.applyWatch(c)
}

// plain is a value of before the keyring.
func plain(e Entry) records.Record {
	return records.Record{Name: e.Key, Version: e.Version, Parts: [][]byte{e.Value}}
}

func (s *Store) applyWatch(c Command) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, there := s.watches[c.Key]
	switch {
	case c.Op == "watch" && !there:
		s.watches[c.Key] = Watch{Prefix: c.Prefix, Seen: c.Version}
	case c.Op == "watch" && w.Prefix != c.Prefix:
		return fmt.Errorf("watch %q: it has the prefix %q", c.Key, w.Prefix)
	case c.Op == "seen" && there:
		w.Seen = max(w.Seen, c.Version)
		s.watches[c.Key] = w
	case c.Op == "seen":
		return fmt.Errorf("watch %q: %w", c.Key, ErrNoWatch)
	case c.Op == "unwatch":
		delete(s.watches, c.Key)
	case c.Op != "watch":
		return fmt.Errorf("command %q is of a newer build", c.Op)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// Put writes a value, and returns its version. Leader only.
func (s *Store) Put(ctx context.Context, key string, value []byte) (version uint64, err error) {
	return s.values.Put(ctx, records.Write{Name: key, Parts: [][]byte{value}})
}

// Delete takes a value out, if there is one. Leader only.
func (s *Store) Delete(ctx context.Context, key string) (version uint64, err error) {
	return s.values.Put(ctx, records.Write{Name: key, Delete: true})
}

// Get returns a value, as this server has it.
func (s *Store) Get(key string) (Entry, error) {
	r, parts, err := s.values.Open(key)
	if errors.Is(err, records.ErrNotFound) {
		return Entry{}, ErrNoKey
	}
	if err != nil {
		return Entry{}, err
	}
	return Entry{key, r.Version, parts[0]}, nil
}

// List yields the keys with a prefix, in their order, without their values.
func (s *Store) List(prefix string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for r := range s.values.View().All(prefix) {
			if !yield(Entry{Key: r.Name, Version: r.Version}) {
				return
			}
		}
	}
}

// Next waits until there are writes that the owner of a watch has not seen, after a version, and returns their keys. A value that
// is encrypted under another key is none. A watch that this server has not heard of yet is waited for, too.
func (s *Store) Next(ctx context.Context, watch string, after uint64) (news []Entry, err error) {
	for {
		written := s.values.Changed()
		w, there, changed := s.watch(watch)
		for e := range s.List(w.Prefix) {
			if there && e.Version > max(w.Seen, after) {
				news = append(news, e)
			}
		}
		if len(news) > 0 {
			return news, nil
		}
		select {
		case <-written:
		case <-changed:
		case <-ctx.Done():
			if !there {
				return nil, fmt.Errorf("watch %q: %w", watch, ErrNoWatch)
			}
			return nil, context.Cause(ctx)
		}
	}
}

func (s *Store) watch(name string) (w Watch, there bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, there = s.watches[name]
	return w, there, s.changed
}

// Watches returns all watches by their names.
func (s *Store) Watches() map[string]Watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.watches)
}
