// Package before is package store as it was before the service had a keyring: values in the clear. The tests start clusters of it,
// and upgrade them. What differs is what the keyring takes in the host's FSM.
package before

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
	"github.com/tidwall/btree"
)

// Store is the state of one server. It is raft's FSM. Its methods are safe for concurrent use.
type Store struct {
	propose func(ctx context.Context, cmd []byte) (any, error)

	mu      sync.Mutex // guards below
	values  btree.Map[string, Entry]
	watches map[string]Watch
	changed chan struct{} // closed at the next change
}

// New returns an empty Store.
func New() *Store {
	return &Store{watches: map[string]Watch{}, changed: make(chan struct{})}
}

// Connect gives it what has a command applied. Before, Put and Delete do not work.
func (s *Store) Connect(propose func(ctx context.Context, cmd []byte) (any, error)) {
	s.propose = propose
}

// Apply implements raft.FSM.
func (s *Store) Apply(l *raft.Log) any {
	var c Command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return fmt.Errorf("log entry %d: %w", l.Index, err)
	}
	switch c.Op {
	case "put":
		s.write(func() { s.values.Set(c.Key, Entry{Key: c.Key, Version: l.Index, Value: c.Value}) })
		return l.Index
	case "delete":
		s.write(func() { s.values.Delete(c.Key) })
		return l.Index
	}
	return s.applyWatch(c)
}

// write changes the values.
func (s *Store) write(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
	close(s.changed)
	s.changed = make(chan struct{})
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
	return s.apply(ctx, Command{Op: "put", Key: key, Value: value})
}

// Delete takes a value out, if there is one. Leader only.
func (s *Store) Delete(ctx context.Context, key string) (version uint64, err error) {
	return s.apply(ctx, Command{Op: "delete", Key: key})
}

func (s *Store) apply(ctx context.Context, c Command) (version uint64, err error) {
	answer, err := s.propose(ctx, c.Encode())
	version, _ = answer.(uint64)
	return version, err
}

// Get returns a value, as this server has it.
func (s *Store) Get(key string) (Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, there := s.values.Get(key)
	if !there {
		return Entry{}, ErrNoKey
	}
	return e, nil
}

// List yields the keys with a prefix, in their order, without their values.
func (s *Store) List(prefix string) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		s.view().Ascend(prefix, func(key string, e Entry) bool {
			return strings.HasPrefix(key, prefix) && yield(Entry{Key: key, Version: e.Version})
		})
	}
}

// Next waits until there are writes that the owner of a watch has not seen, after a version, and returns their keys. A watch that
// this server has not heard of yet is waited for, too.
func (s *Store) Next(ctx context.Context, watch string, after uint64) (news []Entry, err error) {
	for {
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

func (s *Store) view() *btree.Map[string, Entry] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values.Copy()
}

// Watches returns all watches by their names.
func (s *Store) Watches() map[string]Watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.watches)
}
