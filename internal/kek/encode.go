package kek

// How material is wrapped for a key file.

import (
	"context"
	"errors"
	"fmt"

	"example.com/keyring/internal/nks"
)

// Encode wraps m under every KEK that wraps, as the Version of file has it, fills in Wrapped and MAC of file, and returns its
// content. If one of the KEKs fails, so does Encode. Before it returns, it opens the content as the next start would; opened is
// the material that came out. The caller wipes both m and opened. An error is an *Error.
func (s *Set) Encode(ctx context.Context, file *nks.File, m *nks.Material) (content []byte, opened *nks.Material, err error) {
	wrapped, failed := s.wrap(ctx, m, file.Version, file.AAD())
	if failed != nil {
		return nil, nil, failed
	}
	file.Wrapped = wrapped
	if file.Version > 1 {
		file.MAC = m.MAC(file)
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
		return nil, nil, &Error{KEK: failed.KEK, State: failed.State, Err: fmt.Errorf("the new file does not open: %w", failed)}
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
