package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"sync/atomic"

	"example.com/keyring"
	"github.com/hashicorp/go-immutable-radix/v2"
	"github.com/hashicorp/raft"
)

// secret is what the store has at a path. It is never changed, only replaced.
type secret struct {
	Path       string
	Version    uint64 // the raft index at which somebody put it; re-encrypting it leaves it
	Ciphertext []byte // with the path as AAD, so that it opens at no other path
}

// key returns the ID of the key that the secret is sealed under. Admit has seen to it that it is one.
func (s *secret) key() keyring.KeyID {
	id, _ := keyring.CiphertextKeyID(s.Ciphertext)
	return id
}

// state is all secrets at one index of the log. Like its trees it is never changed: a reader that has
// loaded one can read it for as long as it likes, while Apply goes on.
type state struct {
	index    uint64        // of the last log entry that made it
	replaced chan struct{} // closed when the store has a newer one
	byPath   *iradix.Tree[*secret]
	// byKey has the same secrets by the key they are sealed under, then by path. It answers what
	// the keyring asks in a full rotation without a look at all the others.
	byKey map[keyring.KeyID]*iradix.Tree[*secret]
}

func newState() *state {
	return &state{
		replaced: make(chan struct{}),
		byPath:   iradix.New[*secret](), byKey: map[keyring.KeyID]*iradix.Tree[*secret]{},
	}
}

// with returns the state in which a secret is in the place of what was at its path.
func (s *state) with(n *secret) *state {
	path := []byte(n.Path)
	byKey := maps.Clone(s.byKey)
	if old, ok := s.byPath.Get(path); ok {
		byKey[old.key()], _, _ = byKey[old.key()].Delete(path)
		if byKey[old.key()].Len() == 0 {
			delete(byKey, old.key())
		}
	}
	under := byKey[n.key()]
	if under == nil {
		under = iradix.New[*secret]()
	}
	byKey[n.key()], _, _ = under.Insert(path, n)
	byPath, _, _ := s.byPath.Insert(path, n)
	return &state{s.index, s.replaced, byPath, byKey}
}

// below yields the secrets whose paths have a prefix, in order.
func (s *state) below(prefix string) iter.Seq[*secret] { return ascend(s.byPath, prefix) }

// under yields the secrets that are sealed under a key.
func (s *state) under(key keyring.KeyID) iter.Seq[*secret] { return ascend(s.byKey[key], "") }

// count returns how many those are.
func (s *state) count(key keyring.KeyID) int {
	if s.byKey[key] == nil {
		return 0
	}
	return s.byKey[key].Len()
}

func ascend(t *iradix.Tree[*secret], prefix string) iter.Seq[*secret] {
	return func(yield func(*secret) bool) {
		if t == nil {
			return
		}
		it := t.Root().Iterator()
		it.SeekPrefix([]byte(prefix))
		for _, n, ok := it.Next(); ok && yield(n); _, n, ok = it.Next() {
		}
	}
}

// store is the program's own FSM. It rides the same raft as the keyring's.
type store struct {
	keys  *keyring.FSM // for Admit
	state atomic.Pointer[state]
}

func newStore(keys *keyring.FSM) *store {
	s := &store{keys: keys}
	s.state.Store(newState())
	return s
}

// publish puts a state in the place of the present one. Only raft calls Apply and Restore, one at a time.
func (s *store) publish(index uint64, next state) {
	next.index, next.replaced = index, make(chan struct{})
	close(s.state.Swap(&next).replaced)
}

// command is a log entry: one of its fields is set.
type command struct {
	Put    *put    `json:",omitempty"`
	Reseal []swap  `json:",omitempty"`
	Read   *string `json:",omitempty"` // a path: the answer is the secret as of this entry
}

// put stores a secret, whatever is there, or only if that has a version.
type put struct {
	Path       string
	Ciphertext []byte
	If         *uint64 `json:",omitempty"` // zero: only if there is nothing
}

// swap puts one ciphertext of a secret in the place of another one.
type swap struct {
	Path string
	Old  []byte // SHA-256 of the ciphertext
	New  []byte
}

// Errors that Apply answers with.
var (
	errVersion = errors.New("the secret has another version")
	errNone    = errors.New("no such secret")
)

// Apply executes a command. Its answer is an error, the *secret that was put or read, or the
// number of swaps that were conflicts.
func (s *store) Apply(l *raft.Log) any {
	var c command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		return fmt.Errorf("log entry %d: %w", l.Index, err)
	}
	switch {
	case c.Put != nil:
		return s.put(l.Index, c.Put)
	case c.Read != nil:
		if n, ok := s.state.Load().byPath.Get([]byte(*c.Read)); ok {
			return n
		}
		return errNone
	default:
		return s.reseal(l.Index, c.Reseal)
	}
}

func (s *store) put(index uint64, p *put) any {
	// The fence. What was sealed before the key was rotated, and comes after it, is not taken.
	if err := s.keys.Admit(p.Ciphertext); err != nil {
		return err
	}
	now := s.state.Load()
	if p.If != nil {
		var version uint64
		if old, ok := now.byPath.Get([]byte(p.Path)); ok {
			version = old.Version
		}
		if version != *p.If {
			return errVersion
		}
	}
	n := &secret{p.Path, index, p.Ciphertext}
	s.publish(index, *now.with(n))
	return n
}

// reseal makes those swaps whose old ciphertext is still there.
func (s *store) reseal(index uint64, swaps []swap) (conflicts int) {
	next := s.state.Load()
	for _, w := range swaps {
		old, ok := next.byPath.Get([]byte(w.Path))
		if !ok || !bytes.Equal(digest(old.Ciphertext), w.Old) || s.keys.Admit(w.New) != nil {
			conflicts++
			continue
		}
		next = next.with(&secret{w.Path, old.Version, w.New})
	}
	s.publish(index, *next)
	return conflicts
}

func digest(ciphertext []byte) []byte {
	sum := sha256.Sum256(ciphertext)
	return sum[:]
}

// Snapshot costs nothing: the state is never changed.
func (s *store) Snapshot() (raft.FSMSnapshot, error) { return s.state.Load(), nil }

// Persist writes the index, and then the secrets, a JSON object each.
func (s *state) Persist(sink raft.SnapshotSink) error {
	out := json.NewEncoder(sink)
	if err := out.Encode(s.index); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	for n := range s.below("") {
		if err := out.Encode(n); err != nil {
			return errors.Join(err, sink.Cancel())
		}
	}
	return sink.Close()
}

// Release does nothing.
func (*state) Release() {}

// Restore reads what Persist wrote.
func (s *store) Restore(r io.ReadCloser) error {
	defer r.Close()
	in, next := json.NewDecoder(r), newState()
	if err := in.Decode(&next.index); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	for {
		n := new(secret)
		switch err := in.Decode(n); {
		case errors.Is(err, io.EOF):
			s.publish(next.index, *next)
			return nil
		case err != nil:
			return fmt.Errorf("restore: %w", err)
		}
		next = next.with(n)
	}
}
