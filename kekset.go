package keyring

import (
	"cmp"
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
	openers  map[string]KEK // both by ID

	mu     sync.Mutex       // guards below; no KEK call under it
	silent map[string]error // KEKs that have not answered, by ID
}

func newKEKSet(wrapping, old []KEK) *kekSet {
	s := &kekSet{wrapping: wrapping, old: old, openers: map[string]KEK{}, silent: map[string]error{}}
	for _, k := range slices.Concat(wrapping, old) {
		s.openers[k.ID()] = k
	}
	return s
}

// probe asks every KEK to wrap and unwrap something, an old one only to unwrap, and reports
// whether one of those that wrap can also unwrap, or may yet: a KEK that does not answer is
// no reason not to start.
func (s *kekSet) probe(ctx context.Context) bool {
	unwraps := false
	for _, kek := range s.wrapping {
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

// unwrap opens a file with the first KEK that can. One that is known to be away is not
// asked: there may be thousands of files.
func (s *kekSet) unwrap(ctx context.Context, file *nks.File) (*nks.Material, *fault) {
	var bad, away, escrow *fault
	for _, w := range file.Wrapped {
		kek := s.openers[w.KEK]
		if kek == nil {
			away = &fault{kek: w.KEK, here: true, err: fmt.Errorf("no KEK %s is configured", w.KEK)}
			continue
		}
		if err := s.silence(w.KEK); err != nil {
			away = &fault{kek: w.KEK, here: true, err: fmt.Errorf("KEK %s: %w", w.KEK, err)}
			continue
		}
		plaintext, err := s.unwrapUnder(ctx, kek, w.Ciphertext, file.AAD())
		switch {
		case errors.Is(err, ErrDecrypt):
			bad = &fault{mine: true, err: fmt.Errorf("unwrap with KEK %s: %w", w.KEK, err)}
		case errors.Is(err, ErrWrapOnly): // which says nothing about the file
			escrow = &fault{kek: w.KEK, here: true, err: fmt.Errorf("unwrap with KEK %s: %w", w.KEK, err)}
		case err != nil:
			away = &fault{kek: w.KEK, here: true, err: fmt.Errorf("unwrap with KEK %s: %w", w.KEK, err)}
			if errors.Is(err, context.DeadlineExceeded) {
				s.heard(ctx, w.KEK, err)
			}
		default:
			secret, err := decodeChecked(plaintext, file)
			if err == nil {
				return secret, nil
			}
			bad = &fault{mine: true, err: err}
		}
	}
	return nil, cmp.Or(away, bad, escrow)
}
