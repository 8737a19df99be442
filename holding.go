package keyring

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// arrival is a key about to be written.
type arrival struct {
	id        KeyID
	algorithm string
	check     meta.CheckValue
	created   time.Time
	secret    *nks.Material
}

// put makes keys durable and takes them into memory, and returns an error for each, nil for
// those that are held now. It takes over the secrets. A crash before the names are synced
// leaves no key file or a whole one, which the next start loads.
func (s *keystore) put(ctx context.Context, keys ...arrival) []error {
	errs := make([]error, len(keys))
	var files []durable.Named
	var written []int
	for i, k := range keys {
		data, f := s.wrap(ctx, k)
		if f == nil && s.get(k.id) != nil { // a file may be there: replace it by none that is worse
			if err := s.openable(ctx, data); err != nil {
				errs[i] = err
				continue
			}
		}
		name, err := s.settle(k.id)
		if f == nil && err != nil {
			f = &fault{err: err}
		}
		if f != nil {
			errs[i] = f.err
			if f.kek == "" { // else the KEK is noted, once for all keys
				s.note(k.id, f)
			}
			continue
		}
		files = append(files, durable.Named{Name: name, Data: data})
		written = append(written, i)
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	for j, err := range s.dir.Write(files...) {
		i := written[j]
		if err == nil {
			err = s.readBack(ctx, keys[i])
		}
		if errs[i] = err; err != nil {
			s.note(keys[i].id, &fault{err: err})
		}
	}
	for _, k := range keys {
		k.secret.Wipe()
	}
	return errs
}

// wrap encodes the file of a key, wrapped under every KEK: one that fails fails the key.
func (s *keystore) wrap(ctx context.Context, k arrival) ([]byte, *fault) {
	file := nks.File{ID: k.id, Algorithm: k.algorithm, Check: k.check, Created: k.created}
	plaintext := k.secret.Encode()
	defer clear(plaintext)
	var f *fault
	if file.Wrapped, f = s.keks.wrap(ctx, plaintext, file.AAD()); f != nil {
		return nil, &fault{kek: f.kek, err: fmt.Errorf("key %s: %w", k.id, f.err)}
	}
	b, err := file.Encode()
	if err != nil {
		return nil, &fault{err: err}
	}
	return b, nil
}

// readBack is what makes a written key a held one: the file is loaded as the next start
// would load it. Memory that is already there is kept, for it may be in use.
func (s *keystore) readBack(ctx context.Context, k arrival) error {
	m, f := s.load(ctx, k.id)
	if f != nil {
		return fmt.Errorf("read back %s: %w", k.id, f.err)
	}
	if m.check != k.check {
		m.wipe()
		return fmt.Errorf("read back %s: %w: check value", k.id, ErrCorrupt)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.faults, k.id)
	old := s.keys[k.id]
	if old != nil && old.check == m.check {
		old.sum, old.lost, old.stale, old.nomad = m.sum, false, m.stale, false
		m.wipe()
		return nil
	}
	if old != nil {
		old.wipe()
	}
	s.keys[k.id] = m
	s.changes++
	return nil
}

// rewrite makes keys durable again whose files were lost while they are still in memory.
func (s *keystore) rewrite(ctx context.Context, ids ...KeyID) []error {
	var keys []arrival
	for _, id := range ids {
		if a, ok := s.copy(id); ok {
			keys = append(keys, a)
		}
	}
	return s.put(ctx, keys...)
}

// copy returns a key with material of its own, for the caller to wipe.
func (s *keystore) copy(id KeyID) (arrival, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.keys[id]
	if m == nil {
		return arrival{}, false
	}
	return arrival{id, m.algorithm, m.check, m.created, m.secret.Clone()}, true
}

// confirm reports whether the key is held at this moment: its file is read once more and
// compared with what was found right before. A key whose file is gone is held no longer. The
// error means that it can't be told.
func (s *keystore) confirm(id KeyID) (bool, error) {
	m := s.get(id)
	if m == nil {
		return false, nil
	}
	b, err := s.dir.Read(s.nameOf(id), nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || sha256.Sum256(b) != m.sum {
		m.lost = true
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !unfit(err) {
		return false, err
	}
	return !m.lost, nil
}
