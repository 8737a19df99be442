package kek

// Which files are not wrapped as the KEKs that wrap would do it now.

import (
	"context"
	"errors"
	"slices"

	"example.com/keyring/internal/nks"
)

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

// isOutdated reports whether one of the KEKs that wrap would wrap its entry by other parameters today.
func (s *Set) isOutdated(file *nks.File) bool {
	for _, k := range s.wrapping {
		if entry := k.entry(file); entry != nil && k.isOutdated(entry) {
			return true
		}
	}
	return false
}
