package keyring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"example.com/keyring/internal/durable"
)

// rewrapBatch is how many files one batch replaces, with one sync of the directory.
const rewrapBatch = 64

// Rewrap wraps every key file of this server under exactly Config.KEKs, after they have
// changed. Each file is replaced whole, and only by one that has been opened before it is
// written. A crash at any point leaves each file as it was or rewrapped; Rewrap again goes on.
// While it runs, and after an error, OldKEKs stay needed: Status.OnOldKEKs counts the files
// that are left, and when it is zero they can go. The files of removed keys are rewrapped too, for
// as long as that can be undone. Files that no KEK opens, and those that were set aside because
// they were bad, are left as they are; the former are part of the error.
//
// It is about this server alone, leader or not. There is no need to be in a hurry: until it
// has been called, nothing but the old KEK's retirement is late.
func (k *Keyring) Rewrap(ctx context.Context) error {
	return k.do(ctx, func(ctx context.Context) error {
		defer k.fsm.bell.ring() // a key that could not be written is not held
		return k.store.rewrap(ctx)
	})
}

func (s *keystore) rewrap(ctx context.Context) error {
	var errs []error
	for _, aside := range s.staleAside() {
		if err := s.rewrapAside(ctx, aside); err != nil {
			errs = append(errs, err)
		}
	}
	for ids := range slices.Chunk(s.stale(), rewrapBatch) {
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
	if left := s.onOldKEKs(); left > 0 {
		errs = append(errs, fmt.Errorf("%d key files left", left))
		return fmt.Errorf("rewrap: %w", errors.Join(errs...))
	}
	return nil
}

// rewrapAside rewraps the file of a removed key where it lies.
func (s *keystore) rewrapAside(ctx context.Context, aside string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	file, err := s.decode(aside)
	if err != nil {
		return err
	}
	secret, _, err := s.keks.Decode(ctx, file)
	if err != nil {
		return fmt.Errorf("%s: %w", aside, err)
	}
	defer secret.Wipe()
	again, f := s.wrap(ctx, arrival{file.ID, file.Algorithm, file.Check, file.Created, secret})
	if f != nil {
		return f.err
	}
	again.m.wipe()
	if err := s.dir.Write(durable.Named{Name: aside, Data: again.data})[0]; err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.graves {
		g.stale = slices.DeleteFunc(g.stale, func(name string) bool { return name == aside })
	}
	return nil
}

// stale returns the keys in memory whose files are to be rewrapped.
func (s *keystore) stale() []KeyID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []KeyID
	for _, id := range slices.SortedFunc(maps.Keys(s.keys), compareIDs) {
		if s.keys[id].stale {
			ids = append(ids, id)
		}
	}
	return ids
}

// onOldKEKs counts the key files that are not known to be durable under exactly the KEKs of
// the configuration.
func (s *keystore) onOldKEKs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, m := range s.keys {
		if m.stale {
			n++
		}
	}
	for id, f := range s.faults {
		if !f.mine && !f.unwritten && f.file == "" && s.keys[id] == nil { // also one that could not be read
			n++
		}
	}
	for _, g := range s.graves {
		if n += len(g.stale); g.file && !g.fresh {
			n++ // not set aside yet
		}
	}
	return n
}
