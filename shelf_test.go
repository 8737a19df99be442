package keyring_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// shelf is a host's FSM: sealed records by name, with an index by key.
type shelf struct {
	keys *keyring.FSM

	mu      sync.Mutex // guards below
	changed chan struct{}
	shelved
	under map[keyring.KeyID]map[string]struct{}
}

// shelved is what a snapshot of a shelf has.
type shelved struct {
	All       map[string][]byte
	Index     uint64 // of the last command, and its term
	Term      uint64
	Moved     int // one ciphertext swapped for another
	Conflicts int // not swapped, as it was another
	Resealed  int // by a writer, what was not under the active key
}

func newShelf(keys *keyring.FSM) *shelf {
	return &shelf{
		keys: keys, changed: make(chan struct{}), shelved: shelved{All: map[string][]byte{}},
		under: map[keyring.KeyID]map[string]struct{}{},
	}
}

// Apply stores some records and returns an error for each.
func (s *shelf) Apply(l *raft.Log) any {
	var puts []keyringtest.RecordPut
	if err := json.Unmarshal(l.Data, &puts); err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Index, s.Term = l.Index, l.Term
	errs := make([]error, len(puts))
	for i, p := range puts {
		errs[i] = s.put(p)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return errs
}

func (s *shelf) put(p keyringtest.RecordPut) error {
	was, had := s.All[p.Ref]
	if err := s.keys.Admit(p.New); err != nil {
		return err
	}
	switch {
	case p.Old != nil && !bytes.Equal(p.Old, was):
		s.Conflicts++
		return keyringtest.ErrConflict
	case p.Old != nil:
		s.Moved++
	case had && s.keys.Admit(was) != nil:
		s.Resealed++
	}
	if had {
		delete(s.under[underOf(was)], p.Ref)
	}
	s.All[p.Ref] = p.New
	s.index(p.Ref)
	return nil
}

func (s *shelf) index(ref string) {
	id := underOf(s.All[ref])
	if s.under[id] == nil {
		s.under[id] = map[string]struct{}{}
	}
	s.under[id][ref] = struct{}{}
}

func underOf(ciphertext []byte) keyring.KeyID {
	id, _ := keyring.CiphertextKeyID(ciphertext)
	return id
}

func (s *shelf) Snapshot() (raft.FSMSnapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.shelved
	snap.All = maps.Clone(s.All)
	return snap, nil
}

func (s *shelf) Restore(rc io.ReadCloser) error {
	var snap shelved
	if err := errors.Join(json.NewDecoder(rc).Decode(&snap), rc.Close()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shelved = snap
	clear(s.under)
	for ref := range s.All {
		s.index(ref)
	}
	return nil
}

func (s shelved) Persist(sink raft.SnapshotSink) error {
	return errors.Join(json.NewEncoder(sink).Encode(s), sink.Close())
}

func (shelved) Release() {}

// look returns what the shelf has counted, and a channel that is closed by the next Apply.
func (s *shelf) look() (shelved, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := s.shelved
	counts.All = nil
	return counts, s.changed
}

func (s *shelf) get(ref string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.All[ref]
}

// refs are the records under a key, in no order.
func (s *shelf) refs(id keyring.KeyID) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.AppendSeq(make([]string, 0, len(s.under[id])), maps.Keys(s.under[id]))
}

// some are a few records, under any key.
func (s *shelf) some() (refs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.All {
		if refs = append(refs, ref); len(refs) == 8 {
			break
		}
	}
	return refs
}

// shelfServer is a Node with a shelf, from its start to its end.
type shelfServer struct {
	c     *shelves
	id    raft.ServerID
	keys  *keyring.FSM
	shelf *shelf

	started chan struct{} // closed when node is set
	node    *node.Node
	readers sync.WaitGroup // Add under shelves.mu, and while the server is there
	level   bool           // it has what it had before its restart; guarded by shelves.mu
}

// put has the shelves store records and returns an error for each.
func (s *shelfServer) put(ctx context.Context, puts ...keyringtest.RecordPut) ([]error, error) {
	cmd, err := json.Marshal(puts)
	if err != nil {
		return nil, err
	}
	answer, err := s.node.Apply(ctx, cmd)
	errs, _ := answer.([]error)
	return errs, err
}

// Under yields what is under the key, and a few others before, as it may.
func (s *shelfServer) Under(_ context.Context, id keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for _, ref := range append(s.shelf.some(), s.shelf.refs(id)...) {
			if !yield(keyring.Sealed{Ref: ref, Ciphertext: s.shelf.get(ref), AAD: []byte(ref)}, nil) {
				return
			}
		}
	}
}

// Replace implements keyring.SealedData. It waits for the brake, and each 16th time a writer is
// quicker with a record of the batch.
func (s *shelfServer) Replace(ctx context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	select {
	case <-s.started:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	if err := s.c.brake.wait(ctx, s.shelf); err != nil {
		return 0, err
	}
	if s.c.batches.Add(1)%16 == 1 {
		if err := s.c.overtake(ctx, batch[len(batch)/2].Ref); err != nil {
			return 0, err
		}
	}
	puts := make([]keyringtest.RecordPut, len(batch))
	for i, r := range batch {
		puts[i] = keyringtest.RecordPut{Ref: r.Ref, Old: r.Ciphertext, New: r.New}
	}
	errs, err := s.put(ctx, puts...)
	if err != nil {
		s.c.cut.Add(1)
	}
	for _, err := range errs {
		if err != nil {
			conflicts++
		}
	}
	return conflicts, err
}

// brake holds the rekey when it has moved as much as it may.
type brake struct {
	mu      sync.Mutex // guards below
	most    int
	changed chan struct{}
}

func (b *brake) allow(most int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.most = most
	if b.changed != nil {
		close(b.changed)
	}
	b.changed = make(chan struct{})
}

func (b *brake) wait(ctx context.Context, s *shelf) error {
	for {
		b.mu.Lock()
		most, changed := b.most, b.changed
		b.mu.Unlock()
		if counts, _ := s.look(); counts.Moved < most {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
