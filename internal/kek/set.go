package kek

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"slices"
	"strings"
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

	Warning string // what else an operator is to be told about it, or empty
}

// Status returns how each KEK does, the present ones first, in the order of the configuration.
func (s *Set) Status() []Status {
	var all []Status
	for _, k := range s.all {
		err := k.down()
		all = append(all, Status{ID: k.ID(), Old: k.old, State: stateOf(err), Down: err, Warning: k.warning()})
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

// neverWaits reports whether the calls of the KEK need no answer from anywhere, and end at once.
func (k *member) neverWaits() bool {
	switch k.KEK.(type) {
	case inlineKEK, *fileKEK, *passphraseKEK:
		return true
	}
	return false
}

// withTimeout bounds one call of a KEK. The two that never wait would not look at the clock, which is not
// free where there are thousands of files.
func (k *member) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	switch k.KEK.(type) {
	case inlineKEK, *fileKEK, *passphraseKEK:
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

// Encode returns the content of a key file: file, of the version that it says, with m wrapped under every KEK that wraps.
// If one of them fails, so does Encode. Before it returns, it opens the content as the next start would; opened is the material that
// came out. The caller wipes both m and opened. An error is an *Error.
func (s *Set) Encode(ctx context.Context, file nks.File, m *nks.Material) (content []byte, opened *nks.Material, err error) {
	wrapped, failed := s.wrap(ctx, m, file.Version, file.AAD())
	if failed != nil {
		return nil, nil, failed
	}
	file.Wrapped = wrapped
	if file.Version > 1 {
		file.MAC = m.MAC(&file)
	}
	b, err := file.Encode()
	if err != nil {
		return nil, nil, &Error{Err: err}
	}
	written, err := nks.DecodeFile(b)
	if err != nil {
		clear(b) // an inline KEK is in it
		return nil, nil, &Error{Err: err}
	}
	opened, failed = s.openEncoded(ctx, written)
	if failed == nil && file.Version > 1 && !opened.Authentic(written) {
		opened.Wipe()
		failed = &Error{Err: fmt.Errorf("%w: MAC", nks.ErrCorrupt)}
	}
	if failed != nil {
		clear(b)
		return nil, nil, &Error{KEK: failed.KEK, State: failed.State, Err: fmt.Errorf("its file would not open: %w", failed)}
	}
	return b, opened, nil
}

// wrap wraps material under every KEK that wraps: if one fails, that is the error.
func (s *Set) wrap(ctx context.Context, m *nks.Material, version int, aad []byte) ([]nks.Wrapped, *Error) {
	plaintext := m.Encode()
	defer clear(plaintext)
	var all []nks.Wrapped
	for _, k := range s.wrapping {
		wrapped, err := k.wrap(ctx, version, plaintext, aad)
		if err != nil {
			k.failed(ctx, err)
			return nil, &Error{KEK: k.ID(), State: stateOf(err), Err: err}
		}
		entry := nks.Wrapped{KEK: k.in(version).ID(), Ciphertext: wrapped}
		if version > 1 {
			entry.Version = k.versionOf(wrapped) // Encode refuses what is no version
		}
		all = append(all, entry)
	}
	return all, nil
}

// openEncoded opens a file that is not written yet, with one of the KEKs that have just wrapped it: a file that only
// an old KEK opens is lost when the old one goes.
func (s *Set) openEncoded(ctx context.Context, file *nks.File) (*nks.Material, *Error) {
	var why *Error
	for _, k := range s.wrapping {
		m, failed := k.open(ctx, file)
		if failed == nil {
			k.checked(ctx, nil) // it wraps and unwraps
			return m, nil
		}
		if !errors.Is(failed, ErrWrapOnly) {
			k.failed(ctx, failed.Err)
		}
		why = moreSerious(why, failed)
	}
	return nil, why
}

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
		return nil, &Error{KEK: k.ID(), State: Wrong, Err: fmt.Errorf("another KEK by that name, or an altered file: %w", err)}
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
	return nil, &Error{KEK: k.ID(), State: Wrong, Err: fmt.Errorf("what KEK %s unwraps is not the key: %w", k.ID(), err)}
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

// MayNeedRewrap reports whether a file is to be rewrapped, as far as the IDs of its KEKs tell: no KEK is
// asked. Where an old KEK has the ID of a present one, they don't.
func (s *Set) MayNeedRewrap(file *nks.File) bool {
	return !s.isUnderPresentIDs(file) || slices.ContainsFunc(s.wrapping, s.sharesID) || s.AreSuperseded(s.Versions(file))
}

// isUnderPresentIDs reports whether the IDs of the KEKs in a file are exactly those of the KEKs that wrap.
func (s *Set) isUnderPresentIDs(file *nks.File) bool {
	for _, k := range s.wrapping {
		if k.entry(file) == nil {
			return false
		}
	}
	return len(file.Wrapped) == len(s.wrapping)
}

// sharesID reports whether an old KEK has the ID of a present one.
func (s *Set) sharesID(k *member) bool {
	return slices.ContainsFunc(s.old, func(o *member) bool { return o.ID() == k.ID() })
}

// needsRewrap reports whether a file that a present KEK has opened is to be rewrapped: its KEKs are
// not those that wrap. Where an old KEK has the ID of a present one, the present one must
// open its entry.
func (s *Set) needsRewrap(ctx context.Context, file *nks.File) bool {
	if !s.isUnderPresentIDs(file) {
		return true
	}
	for _, k := range s.wrapping {
		if !s.sharesID(k) {
			continue
		}
		m, failed := k.openCounted(ctx, file)
		if failed == nil {
			m.Wipe()
		} else if !errors.Is(failed, ErrWrapOnly) {
			return true
		}
	}
	return false
}
