package keystore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// rewrapBatch is how many files one batch replaces, with one sync of the directory.
const rewrapBatch = 64

// Rewrap wraps every key file under exactly the KEKs that wrap now, those of removed keys too. Each file is replaced
// whole, and only by one that has been opened before it is written. A crash leaves each file as it was or rewrapped;
// Rewrap again goes on. Files that no KEK opens are left as they are, and are part of the error.
func (s *Store) Rewrap(ctx context.Context) error {
	files := s.Files() // a newer version may be used before this ends: that is for Renew
	s.keks.LearnVersions(ctx)
	for name := range s.asideNames() {
		s.noteAside(name) // the KEKs may have other versions by now
	}
	var errs []error
	for _, aside := range s.asideToRewrap() {
		if err := s.rewrapAside(ctx, aside); err != nil {
			errs = append(errs, err)
		}
	}
	for ids := range slices.Chunk(s.toRewrap(), rewrapBatch) {
		if ctx.Err() != nil {
			return fmt.Errorf("rewrap: %w", context.Cause(ctx))
		}
		if len(errs) > 0 && s.keks.WrappingDown() != nil {
			break // what comes would fail too, each after its time
		}
		for _, err := range s.rewrite(ctx, ids...) {
			if err != nil && !slices.Contains(errs, err) { // a KEK fails all of a batch with one error
				errs = append(errs, err)
			}
		}
	}
	for _, id := range s.unproven() {
		errs = append(errs, fmt.Errorf("key %s: only KEKs to which anyone can wrap open its file: adopt the key first, or move the file away", id))
	}
	if left := s.onOldKEKs() + s.countToRenew(files); left > 0 {
		errs = append(errs, fmt.Errorf("%d key files left", left))
		return fmt.Errorf("rewrap: %w", errors.Join(errs...))
	}
	return nil
}

// RewrapAll is Rewrap of every file, also of those that are wrapped as they would be now.
func (s *Store) RewrapAll(ctx context.Context) error {
	s.markAll()
	return s.Rewrap(ctx)
}

// markAll notes that every file is to be rewrapped.
func (s *Store) markAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.keys {
		m.outdated = true
	}
	for _, r := range s.removed {
		r.current = false
		r.rewrap = slices.DeleteFunc(slices.Clone(r.aside), func(name string) bool { return !isRemovedFile(name) })
	}
}

// toRewrap returns the keys in memory whose files are to be rewrapped.
func (s *Store) toRewrap() (ids []meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.SortedFunc(maps.Keys(s.keys), compareIDs) {
		if m := s.keys[id]; s.isOutdatedLocked(m) && !m.unproven {
			ids = append(ids, id)
		}
	}
	return ids
}

// unproven returns the keys that Rewrap leaves as they are: rewrapped, a file that anybody may have made would look like one
// of this server's.
func (s *Store) unproven() (ids []meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range sortedIDs(s.keys) {
		if m := s.keys[id]; m.unproven && s.isOutdatedLocked(m) {
			ids = append(ids, id)
		}
	}
	return ids
}

// asideToRewrap returns the files of removed keys that are to be rewrapped.
func (s *Store) asideToRewrap() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.removed {
		names = append(names, r.rewrap...)
	}
	slices.Sort(names)
	return names
}

// mayNeedRewrap reports whether a file that was set aside is to be rewrapped, as far as the IDs of its KEKs tell. One
// that can't be read now may need it.
func (s *Store) mayNeedRewrap(aside string) bool {
	file, err := s.decode(aside)
	if err != nil {
		return !isOversized(err) && !errors.Is(err, nks.ErrFormat) && !errors.Is(err, fs.ErrNotExist)
	}
	return s.keks.MayNeedRewrap(file)
}

// rewrapAside rewraps the file of a removed key where it lies. It asks the KEKs before it takes writing, for they may take
// long.
func (s *Store) rewrapAside(ctx context.Context, aside string) error {
	b, err := s.dir.Read(aside, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return err
	}
	file, err := nks.DecodeFile(b)
	if err != nil {
		return err
	}
	opened, err := s.keks.Decode(ctx, file)
	if err != nil {
		return fmt.Errorf("%s: %w", aside, err)
	}
	secret := opened.Material
	defer secret.Wipe()
	again, err := s.encode(ctx, max(s.Files(), file.Version), Key{ID: file.ID, Algorithm: file.Algorithm, Check: file.Check, Created: file.Created, Secret: secret})
	if err != nil {
		return err
	}
	again.m.wipe()
	defer clear(again.content) // an inline KEK is in it
	return s.replaceAside(aside, b, again.content, func() {
		if opened.Altered {
			original, _, _ := durable.ParseAside(aside)
			s.keepAltered(file.ID, original, b, file)
		}
	})
}

// replaceAside replaces the content of a file of a removed key, if it is still as it was. It calls first before that.
func (s *Store) replaceAside(aside string, was, content []byte, first func()) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	now, err := s.dir.Read(aside, nks.MaxFile)
	defer clear(now) // an inline KEK is in it
	if err != nil {
		return err
	}
	if !bytes.Equal(now, was) {
		return fmt.Errorf("%s: it was changed meanwhile", aside)
	}
	first()
	if err := s.dir.Write(durable.Named{Name: aside, Data: content})[0]; err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.removed {
		r.rewrap = slices.DeleteFunc(r.rewrap, func(name string) bool { return name == aside })
	}
	return nil
}

// onOldKEKs is Report.OnOldKEKs.
func (s *Store) onOldKEKs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.onOldKEKsLocked()
}

// onOldKEKsLocked is onOldKEKs for a caller that holds mu.
func (s *Store) onOldKEKsLocked() int {
	n := 0
	for _, m := range s.keys {
		if s.isOutdatedLocked(m) && !s.isToRenewLocked(m) { // Renew needs no order
			n++
		}
	}
	for id, f := range s.faults {
		if (f.isClosed() || f.Cause == Unreadable) && s.keys[id] == nil {
			n++
		}
	}
	for _, r := range s.removed {
		if n += len(r.rewrap); r.inPlace && (!r.current || s.keks.AreSuperseded(r.under)) {
			n++ // not set aside yet
		}
	}
	return n
}

// waitForRewrapLocked is Report.ToRewrap. The caller holds mu.
func (s *Store) waitForRewrapLocked() (n int) {
	for id, m := range s.keys {
		_, faulty := s.faults[id]
		if s.isOutdatedLocked(m) && !s.isToRenewLocked(m) && !m.unproven && !m.notDurable && !faulty {
			n++
		}
	}
	for _, r := range s.removed {
		n += len(r.rewrap)
	}
	return n
}
