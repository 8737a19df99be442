package keyring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/nks"
)

// kekSet is the KEKs of a keystore: it wraps material under all that wrap and unwraps it with
// any, and knows which of them do not answer.
type kekSet struct {
	wrapping []KEK
	old      []KEK
	openers  map[string][]KEK // both by ID, those that wrap first

	mu     sync.Mutex       // guards below; no KEK call under it
	silent map[string]error // KEKs that have not answered, by ID
}

func newKEKSet(wrapping, old []KEK) *kekSet {
	s := &kekSet{wrapping: wrapping, old: old, openers: map[string][]KEK{}, silent: map[string]error{}}
	for _, k := range slices.Concat(wrapping, old) {
		s.openers[k.ID()] = append(s.openers[k.ID()], k)
	}
	return s
}

// local is a KEK that needs nobody's answer, and knows by itself whether it unwraps.
type local interface{ unwraps() bool }

// probe asks every KEK that is not local to wrap and unwrap something, an old one only to
// unwrap, and reports whether one of those that wrap can also unwrap, or may yet: a KEK that
// does not answer is no reason not to start.
func (s *kekSet) probe(ctx context.Context) bool {
	unwraps := false
	for _, kek := range s.wrapping {
		if l, ok := kek.(local); ok {
			unwraps = unwraps || l.unwraps()
			continue
		}
		wrapped, err := s.wrapUnder(ctx, kek, []byte("probe"), []byte("keyring v1 probe"))
		if err == nil {
			_, err = s.unwrapUnder(ctx, kek, wrapped, []byte("keyring v1 probe"))
		}
		if errors.Is(err, ErrWrapOnly) {
			err = nil
		} else {
			unwraps = true
		}
		s.heard(ctx, kek.ID(), err)
	}
	for _, kek := range s.old {
		if _, ok := kek.(local); ok {
			continue
		}
		_, err := s.unwrapUnder(ctx, kek, []byte("probe"), []byte("keyring v1 probe"))
		if errors.Is(err, ErrDecrypt) || errors.Is(err, ErrWrapOnly) {
			err = nil // it has answered
		}
		s.heard(ctx, kek.ID(), err)
	}
	return unwraps
}

// kekTimeout is how long one call of a KEK may take before the KEK counts as away.
const kekTimeout = 10 * time.Second

func (s *kekSet) wrapUnder(ctx context.Context, kek KEK, plaintext, aad []byte) ([]byte, error) {
	within, cancel := context.WithTimeout(ctx, kekTimeout)
	defer cancel()
	b, err := kek.Wrap(within, plaintext, aad)
	return b, ended(ctx, err)
}

func (s *kekSet) unwrapUnder(ctx context.Context, kek KEK, wrapped, aad []byte) ([]byte, error) {
	within, cancel := context.WithTimeout(ctx, kekTimeout)
	defer cancel()
	b, err := kek.Unwrap(within, wrapped, aad)
	return b, ended(ctx, err)
}

// ended adds to an error why the context has ended, if it has.
func ended(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}

// heard notes whether a KEK has answered. A call that was given up says nothing about it.
func (s *kekSet) heard(ctx context.Context, kek string, err error) {
	if err != nil && ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.silent, kek); err != nil {
		s.silent[kek] = err
	}
}

// silence is why a KEK counts as away, or nil.
func (s *kekSet) silence(kek string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.silent[kek]
}

// away says which KEKs have not answered, or nil.
func (s *kekSet) away() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.silent)) {
		return fmt.Errorf("KEK %s: %w", id, s.silent[id])
	}
	return nil
}

// wrap wraps material under every KEK that wraps: one that fails fails it all.
func (s *kekSet) wrap(ctx context.Context, plaintext, aad []byte) ([]nks.Wrapped, *fault) {
	var all []nks.Wrapped
	for _, kek := range s.wrapping {
		wrapped, err := s.wrapUnder(ctx, kek, plaintext, aad)
		s.heard(ctx, kek.ID(), err)
		if err != nil {
			return nil, &fault{kek: kek.ID(), err: fmt.Errorf("wrap with KEK %s: %w", kek.ID(), err)}
		}
		all = append(all, nks.Wrapped{KEK: kek.ID(), Ciphertext: wrapped})
	}
	return all, nil
}

// opened is what came of unwrapping a file.
type opened struct {
	secret *nks.Material
	stale  bool // the file is not wrapped under exactly the KEKs that wrap
}

// unwrap opens a file with the first KEK that can. A KEK that refuses says nothing about the
// file, whose Sum is right: it may be another KEK under the same name. So only what comes out
// can make a file bad.
func (s *kekSet) unwrap(ctx context.Context, file *nks.File) (opened, *fault) {
	var why *fault
	for _, w := range file.Wrapped {
		if len(s.openers[w.KEK]) == 0 {
			why = s.worse(why, &fault{kek: w.KEK, here: true, err: fmt.Errorf("no KEK %s is configured", w.KEK)})
		}
		for _, kek := range s.openers[w.KEK] {
			plaintext, f := s.unwrapEntry(ctx, kek, w, file.AAD())
			if f != nil {
				why = s.worse(why, f)
				continue
			}
			secret, err := decodeChecked(plaintext, file)
			if err != nil {
				why = s.worse(why, &fault{mine: true, err: err})
				continue
			}
			return opened{secret, s.stale(ctx, file)}, nil
		}
	}
	return opened{}, why
}

// worse picks what to report, and to act on, when no KEK opens a file: one that may answer
// later, then a content that is wrong, then a KEK that can't.
func (s *kekSet) worse(a, b *fault) *fault {
	rank := func(f *fault) int {
		switch {
		case f == nil || errors.Is(f.err, ErrWrapOnly):
			return 0
		case f.mine:
			return 1
		}
		return 2
	}
	if a == nil || rank(b) >= rank(a) {
		return b
	}
	return a
}

// unwrapEntry asks one KEK, unless it is known to be away: there may be thousands of files.
func (s *kekSet) unwrapEntry(ctx context.Context, kek KEK, w nks.Wrapped, aad []byte) ([]byte, *fault) {
	if err := s.silence(w.KEK); err != nil {
		return nil, &fault{kek: w.KEK, here: true, err: fmt.Errorf("KEK %s: %w", w.KEK, err)}
	}
	plaintext, err := s.unwrapUnder(ctx, kek, w.Ciphertext, aad)
	if err == nil {
		return plaintext, nil
	}
	if errors.Is(err, context.DeadlineExceeded) {
		s.heard(ctx, w.KEK, err)
	}
	if errors.Is(err, ErrDecrypt) {
		err = fmt.Errorf("another KEK by that name, or an altered file: %w", err)
	}
	return nil, &fault{kek: w.KEK, here: true, err: fmt.Errorf("unwrap with KEK %s: %w", w.KEK, err)}
}

// named reports whether a file is wrapped under KEKs that have the names of those that wrap.
func (s *kekSet) named(file *nks.File) bool {
	for _, kek := range s.wrapping {
		if entryOf(file, kek) < 0 {
			return false
		}
	}
	return len(file.Wrapped) == len(s.wrapping)
}

func entryOf(file *nks.File, kek KEK) int {
	return slices.IndexFunc(file.Wrapped, func(w nks.Wrapped) bool { return w.KEK == kek.ID() })
}

// stale reports whether a file is to be rewrapped: its KEKs are not those that wrap. Where an
// old KEK has the same name as a present one, the present one must open its entry.
func (s *kekSet) stale(ctx context.Context, file *nks.File) bool {
	if !s.named(file) {
		return true
	}
	for _, kek := range s.wrapping {
		i := entryOf(file, kek)
		if len(s.openers[kek.ID()]) > 1 {
			plaintext, f := s.unwrapEntry(ctx, kek, file.Wrapped[i], file.AAD())
			clear(plaintext)
			if f != nil && !errors.Is(f.err, ErrWrapOnly) {
				return true
			}
		}
	}
	return false
}
