package kek

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/nks"
)

// Set is the KEKs of a keystore: it wraps material under all KEKs that wrap, unwraps it with any, and
// knows which of them are down. Its methods may be called at the same time.
type Set struct {
	all      []*member // in the order in which they are asked: an old one where no other opens
	wrapping []*member // the first of them
	old      []*member
}

// member is a KEK of a set, and how it answers. An old one may have the ID of a present one, but
// not its health.
type member struct {
	KEK
	id, firstID string // asked for once: its name now, and that in key files of version 1
	old         bool
	health
}

// NewSet returns the set of these KEKs. The old ones unwrap, and wrap nothing any more.
func NewSet[K KEK](wrapping, old []K) *Set {
	s := &Set{}
	for i, k := range slices.Concat(wrapping, old) {
		m := &member{KEK: k, id: k.ID(), old: i >= len(wrapping)}
		m.firstID = m.in(1).ID()
		s.all = append(s.all, m)
	}
	s.wrapping, s.old = s.all[:len(wrapping)], s.all[len(wrapping):]
	return s
}

// Error says why a key could not be wrapped or unwrapped, and what is to blame.
type Error struct {
	KEK     string // the KEK to blame; empty if it is the key or the content of its file
	State   State  // how that KEK does, as far as this file tells
	Skipped bool   // the KEK was not asked, because it is down
	Err     error
}

// Error implements error. It does not name the KEK: Status does.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error without the blame.
func (e *Error) Unwrap() error { return e.Err }

// Status is how one KEK of a set does.
type Status struct {
	ID    string
	Old   bool // it only unwraps
	State State
	Down  error // why it counts as down, or nil

	Warning string // what else an operator is to be told about it, or empty: see LookAtFiles
}

// Status returns how each KEK does, the present ones first, in the order of the configuration.
func (s *Set) Status() []Status {
	var all []Status
	for _, k := range s.all {
		err := k.down()
		all = append(all, Status{ID: k.ID(), Old: k.old, State: stateOf(err), Down: err, Warning: k.warned()})
	}
	return all
}

// Down names a KEK that is down and says why, or is nil if none is.
func (s *Set) Down() error { return firstDown(s.all) }

// WrappingDown is Down of the KEKs that wrap.
func (s *Set) WrappingDown() error { return firstDown(s.wrapping) }

func firstDown(members []*member) error {
	for _, k := range members {
		if err := k.down(); err != nil {
			return fmt.Errorf("KEK %s %s: %w", k.ID(), stateOf(err), err)
		}
	}
	return nil
}

// HasInline reports whether the KEK that Inline returns is one of them.
func (s *Set) HasInline() bool { return s.has(InlineID) }

func (s *Set) has(id string) bool {
	return slices.ContainsFunc(s.all, func(k *member) bool { return k.hasID(id) })
}

// local is a KEK that needs no answer from elsewhere, and knows by itself whether it unwraps. A KEK without this method
// is taken for one of a KMS: it is probed, its calls have deadlines, and it may be down.
type local interface{ unwraps() bool }

// Probe asks the KEKs, all at the same time, to show that they do their work, but for those that have been asked not long
// ago: see NextProbe. It reports whether one of those that wrap can also unwrap, or may yet: a KEK that does not
// answer is no reason not to start.
func (s *Set) Probe(ctx context.Context) (canUnwrap bool) {
	var can atomic.Bool
	var wg sync.WaitGroup
	for _, k := range s.all {
		wg.Go(func() {
			var err error
			if k.begin() {
				err = k.check(ctx)
			}
			if l, ok := k.KEK.(local); ok && !l.unwraps() || k.old || errors.Is(err, ErrWrapOnly) {
				return
			}
			can.Store(true)
		})
	}
	wg.Wait()
	return can.Load()
}

// NextProbe returns how long Probe has nothing to ask.
func (s *Set) NextProbe() time.Duration {
	next := probeEvery
	for _, k := range s.all {
		if !k.neverWaits() {
			next = min(next, k.wait())
		}
	}
	return next
}

// Show shows a file to its KEKs before any of them is asked to open it: an old one is probed with what it has wrapped.
func (s *Set) Show(file *nks.File) {
	for _, k := range s.old {
		if wrapped := k.entry(file); wrapped != nil {
			k.show(sample{wrapped: wrapped, aad: file.AAD()})
		}
	}
}

// neverWaits reports whether the calls of the KEK need no answer from anywhere. Such a KEK is not probed, and its calls have
// no deadlines.
func (k *member) neverWaits() bool {
	switch k.KEK.(type) {
	case inlineKEK, *fileKEK, *passphraseKEK:
		return true
	}
	return false
}

// withTimeout bounds one call of a KEK. Those that never wait would not look at the clock, which is not
// free where there are thousands of files.
func (k *member) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	if k.neverWaits() {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, timeout)
}

// wrap wraps for files of that version.
func (k *member) wrap(ctx context.Context, version int, plaintext, aad []byte) ([]byte, error) {
	bounded, cancel := k.withTimeout(ctx)
	defer cancel()
	b, err := k.in(version).Wrap(bounded, plaintext, aad)
	if err != nil {
		return nil, fmt.Errorf("wrap with KEK %s: %w", k.ID(), withCause(ctx, err))
	}
	k.wrote(b)
	return b, nil
}

func (k *member) unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	bounded, cancel := k.withTimeout(ctx)
	defer cancel()
	b, err := k.Unwrap(bounded, wrapped, aad)
	if err != nil {
		return nil, fmt.Errorf("unwrap with KEK %s: %w", k.ID(), withCause(ctx, err))
	}
	return b, nil
}
