package kek

// How a key file is opened, and what is to blame if it is not.

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"strings"
	"time"

	"example.com/keyring/internal/nks"
)

// Opened is a key file that a set has opened.
type Opened struct {
	Material *nks.Material // the caller wipes it
	Rewrap   bool          // the file is not wrapped as the KEKs that wrap would do it now
	Altered  bool          // the key is right, and the rest of the file is not as it was written
	Unproven bool          // it was opened only by KEKs to which anybody can wrap
}

// Decode opens a file with the first KEK that can. It reports whether the file is to be rewrapped, which it is unless
// it is wrapped under exactly the KEKs that wrap, by their parameters of now. An error is an *Error.
//
// A KEK that refuses says nothing about the file, whose Sum is right: it may be another KEK of the same ID. So
// only what comes out can make a file bad.
func (s *Set) Decode(ctx context.Context, file *nks.File) (Opened, error) {
	why := s.unconfigured(file)
	refused := false
	for i, k := range s.all {
		if k.entry(file) == nil {
			continue
		}
		m, failed := k.openCounted(ctx, file)
		if failed == nil {
			s.learnSalts(ctx, file, k)
			return Opened{
				Material: m, Altered: file.Version > 1 && !m.Authentic(file), Unproven: !s.isProven(ctx, file, k),
				Rewrap: i >= len(s.wrapping) || refused || s.isOutdated(file) || s.needsRewrap(ctx, file),
			}, nil
		}
		refused = refused || !failed.Skipped && !errors.Is(failed, ErrWrapOnly)
		why = moreSerious(why, failed)
	}
	return Opened{}, why
}

// salted is a KEK whose files share a salt, as soon as it has opened one of them.
type salted interface{ knowsSalt() bool }

// learnSalts shows a file that another KEK has opened to the KEKs that do not know the salt of their files yet.
func (s *Set) learnSalts(ctx context.Context, file *nks.File, opener *member) {
	for _, k := range s.wrapping {
		if l, ok := k.KEK.(salted); !ok || k == opener || l.knowsSalt() || k.entry(file) == nil {
			continue
		}
		if m, failed := k.openCounted(ctx, file); failed == nil {
			m.Wipe()
		}
	}
}

// unconfigured is the error about a file that names KEKs which are not in the set, or nil.
func (s *Set) unconfigured(file *nks.File) *Error {
	var names []string
	for _, w := range file.Wrapped {
		if !s.has(w.KEK) {
			names = append(names, w.KEK)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return &Error{KEK: names[0], State: Unconfigured, Err: fmt.Errorf("no KEK %s is configured", strings.Join(names, " or "))}
}

// entries returns what a file has for the KEK: more than one where somebody has put one before or after it.
func (k *member) entries(file *nks.File) (all [][]byte) {
	for _, w := range file.Wrapped {
		if k.hasID(w.KEK) {
			all = append(all, w.Ciphertext)
		}
	}
	return all
}

// entry returns the first of entries, or nil.
func (k *member) entry(file *nks.File) []byte {
	if all := k.entries(file); len(all) > 0 {
		return all[0]
	}
	return nil
}

// openCounted is open, which it skips while the KEK is down, and notes how it does.
func (k *member) openCounted(ctx context.Context, file *nks.File) (*nks.Material, *Error) {
	entry := sample{wrapped: k.entry(file), aad: file.AAD()}
	if err := k.down(); err != nil {
		k.show(entry)
		return nil, &Error{KEK: k.ID(), State: stateOf(err), Skipped: true, Err: err}
	}
	began := time.Now()
	m, failed := k.open(ctx, file)
	switch {
	case failed == nil:
		entry.opened = true
		k.answered()
	case failed.KEK == "" || failed.State == Wrong || errors.Is(failed, ErrWrapOnly):
		k.answered()
	default:
		k.suspect(ctx, began, failed.Err)
	}
	k.show(entry)
	return m, failed
}

// open has the KEK open a file by one of its entries, and says what is to blame if none opens.
func (k *member) open(ctx context.Context, file *nks.File) (*nks.Material, *Error) {
	var why *Error
	for _, entry := range k.entries(file) {
		m, failed := k.openEntry(ctx, file, entry)
		if failed == nil {
			return m, nil
		}
		why = moreSerious(why, failed)
	}
	return nil, why
}

// openEntry has the KEK open one entry. For content that is no key the file is to blame if the KEK authenticates what it
// unwraps, as the KEKs of this package do.
func (k *member) openEntry(ctx context.Context, file *nks.File, entry []byte) (*nks.Material, *Error) {
	plaintext, err := k.unwrap(ctx, entry, file.AAD())
	switch {
	case errors.Is(err, errOpen):
		return nil, &Error{KEK: k.ID(), State: Wrong, Err: fmt.Errorf("another KEK with that ID, or an altered file: %w", err)}
	case err != nil:
		return nil, &Error{KEK: k.ID(), State: stateOf(err), Err: err}
	}
	m, err := decodeChecked(plaintext, file)
	if err == nil {
		return m, nil
	}
	if k.provesContent(entry) {
		return nil, &Error{Err: err}
	}
	return nil, &Error{KEK: k.ID(), State: Wrong, Err: fmt.Errorf("KEK %s unwraps something else than the key: %w", k.ID(), err)}
}

// decodeChecked reads unwrapped material, requires the check value of its file, and
// overwrites plaintext.
func decodeChecked(plaintext []byte, file *nks.File) (*nks.Material, error) {
	defer clear(plaintext)
	m, err := nks.Decode(plaintext)
	if err != nil {
		return nil, err
	}
	if check := m.Check(file.ID, file.Algorithm); !hmac.Equal(check[:], file.Check[:]) {
		m.Wipe()
		return nil, fmt.Errorf("%w: check value", nks.ErrCorrupt)
	}
	return m, nil
}

// moreSerious picks the error to report, and to act on, when no KEK opens a file: first one that may pass or
// be about another KEK, then a content that is wrong, then a KEK that never unwraps.
func moreSerious(a, b *Error) *Error {
	rank := func(e *Error) int {
		switch {
		case errors.Is(e, ErrWrapOnly):
			return 0
		case e.KEK == "":
			return 1
		}
		return 2
	}
	if a == nil || rank(b) >= rank(a) {
		return b
	}
	return a
}
