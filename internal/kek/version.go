package kek

import (
	"cmp"
	"context"
	"slices"

	"example.com/keyring/internal/nks"
)

// Versioned is a KEK whose key has versions. It is the public interface of that name.
type Versioned interface {
	KEK
	Version(wrapped []byte) string
}

// versionOf returns the version of the KEK's key that has wrapped something; empty if it tells none.
func (k *member) versionOf(wrapped []byte) string {
	v, ok := k.KEK.(Versioned)
	if !ok {
		return ""
	}
	return v.Version(wrapped)
}

// wrote notes which version has wrapped something just now: that is the one in use.
func (k *member) wrote(wrapped []byte) {
	v := k.versionOf(wrapped)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.version = cmp.Or(v, k.version)
}

// inUse returns the version that has wrapped last.
func (k *member) inUse() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.version
}

// Versions are the versions of their keys under which the KEKs that wrap have wrapped a file, by the ID of the KEK. Nil is none.
type Versions map[string]string

// Versions returns those of a file.
func (s *Set) Versions(file *nks.File) (all Versions) {
	for _, k := range s.wrapping {
		if _, ok := k.KEK.(Versioned); !ok {
			continue
		}
		for _, w := range file.Wrapped {
			if v := cmp.Or(w.Version, k.versionOf(w.Ciphertext)); w.KEK == k.ID() && v != "" {
				if all == nil {
					all = Versions{}
				}
				all[w.KEK] = v
			}
		}
	}
	return all
}

// MayWait reports whether one of the KEKs may wait for an answer from elsewhere.
func (s *Set) MayWait() bool {
	return slices.ContainsFunc(s.all, func(k *member) bool { return !k.neverWaits() })
}

// HasOld reports whether there are old ones.
func (s *Set) HasOld() bool { return len(s.old) > 0 }

// AreSuperseded reports whether one of these versions is not the one that its KEK uses now, as far as that is known.
func (s *Set) AreSuperseded(versions Versions) bool {
	for _, k := range s.wrapping {
		if v, now := versions[k.ID()], k.inUse(); v != "" && now != "" && v != now {
			return true
		}
	}
	return false
}

// LearnVersions has the KEKs that have versions wrap something, so that it is known which one they use now.
func (s *Set) LearnVersions(ctx context.Context) {
	for _, k := range s.wrapping {
		if _, ok := k.KEK.(Versioned); ok {
			k.wrap(ctx, nks.FileVersion, []byte(probe), []byte(probeAAD)) // what fails fails again with the first key
		}
	}
}
