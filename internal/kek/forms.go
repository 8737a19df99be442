package kek

// What entries of key files are like in each version of files, and what the KEKs here know of entries.

import (
	"context"
	"slices"

	"example.com/keyring/internal/nks"
)

// evolved is a KEK that has another ID in files of version 1, or wraps otherwise there. It unwraps both.
type evolved interface{ first() KEK }

// in returns what wraps for files of that version.
func (k *member) in(version int) KEK {
	if e, ok := k.KEK.(evolved); ok && version < 2 {
		return e.first()
	}
	return k.KEK
}

// ID returns what the KEK has said once: it may be a host's, and the caller may have a lock.
func (k *member) ID() string { return k.id }

// hasID reports whether entries of that name are for the KEK.
func (k *member) hasID(id string) bool { return id == k.id || id == k.firstID }

// Names returns the IDs of the KEKs that a file is wrapped under. One of the set has its ID of now, also in a file of version
// 1.
func (s *Set) Names(file *nks.File) (names []string) {
	for _, w := range file.Wrapped {
		name := w.KEK
		if i := slices.IndexFunc(s.all, func(k *member) bool { return k.hasID(name) }); i >= 0 {
			name = s.all[i].ID()
		}
		names = append(names, name)
	}
	return names
}

// parameterized is a KEK that may wrap by other parameters than it did.
type parameterized interface{ isOutdated(entry []byte) bool }

// isOutdated reports whether the KEK would wrap the entry by other parameters today.
func (k *member) isOutdated(entry []byte) bool {
	p, ok := k.KEK.(parameterized)
	return ok && p.isOutdated(entry)
}

// guessable is a KEK that can be guessed. An entry that does not commit to one KEK may have been made to open under
// many.
type guessable interface{ commits(entry []byte) bool }

// provesContent reports whether the KEK alone can have made what it opens, so that for content that is no key the file is
// to blame.
func (k *member) provesContent(entry []byte) bool {
	if g, ok := k.KEK.(guessable); ok && !g.commits(entry) {
		return false
	}
	_, ok := k.KEK.(local)
	return ok
}

// provesOrigin reports whether who wraps for the KEK has something secret. To age recipients anybody can wrap who knows them.
// Who wraps with a KMS has its permission.
func (k *member) provesOrigin() bool {
	_, isAge := k.KEK.(*ageKEK)
	return !isAge
}

// isProven reports whether a file that opener has opened was made by somebody who had a secret: opener proves that, or
// another KEK that opens it too.
func (s *Set) isProven(ctx context.Context, file *nks.File, opener *member) bool {
	if opener.provesOrigin() {
		return true
	}
	for _, k := range s.all {
		if !k.provesOrigin() || k.entry(file) == nil {
			continue
		}
		if m, failed := k.openCounted(ctx, file); failed == nil {
			m.Wipe()
			return true
		}
	}
	return false
}
