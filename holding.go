package keyring

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync/atomic"
	"syscall"
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

// file is what its key file says of the key.
func (k arrival) file() nks.File {
	return nks.File{ID: k.id, Algorithm: k.algorithm, Check: k.check, Created: k.created}
}

// proven is the content of a key file, and the key that it was opened to.
type proven struct {
	data []byte
	m    *material
}

// putting is one call of put.
type putting struct {
	keys  []arrival
	files []proven
	errs  []error
	done  bool
}

// put makes keys durable and takes them into memory, and returns an error for each, nil for
// those that are held now. It takes over the secrets. Each file has been opened before it is
// written. A crash before the names are synced leaves no key file or a whole one, which the next
// start loads.
//
// Calls that come while another one writes are written together: their files share its syncs.
func (s *keystore) put(ctx context.Context, keys ...arrival) []error {
	p := &putting{keys: keys}
	p.files, p.errs = s.wrapAll(ctx, keys)
	if ctx.Err() != nil { // nobody may want them any more
		for i := range p.errs {
			p.errs[i] = cmp.Or(p.errs[i], context.Cause(ctx))
		}
		p.forget()
		return p.errs
	}
	s.mu.Lock()
	s.puts = append(s.puts, p)
	s.mu.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	for !p.done {
		s.writeAll(ctx, s.takePuts())
	}
	return p.errs
}

// takePuts takes those that wait, up to the first that has a key of another one: a key is not
// written twice at once.
func (s *keystore) takePuts() (together []*putting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := map[KeyID]bool{}
	for _, p := range s.puts {
		if slices.ContainsFunc(p.keys, func(k arrival) bool { return taken[k.id] }) {
			break
		}
		for _, k := range p.keys {
			taken[k.id] = true
		}
		together = append(together, p)
	}
	s.puts = slices.Delete(s.puts, 0, len(together))
	return together
}

// writeAll is for a caller that holds writing.
func (s *keystore) writeAll(ctx context.Context, puts []*putting) {
	var named []durable.Named
	type place struct {
		*putting
		i int // of its keys
	}
	var written []place
	for _, p := range puts {
		for i, k := range p.keys {
			var name string
			if p.errs[i] == nil {
				name, p.errs[i] = s.makeRoom(ctx, k.id, k.check)
			}
			if p.errs[i] == nil {
				named = append(named, durable.Named{Name: name, Data: p.files[i].data})
				written = append(written, place{p, i})
			}
		}
	}
	wrote := s.dir.Write(named...)
	inParallel(len(written), func(j int) {
		p, i, err := written[j].putting, written[j].i, wrote[j]
		if err == nil {
			err = s.readBack(p.keys[i].id, p.files[i])
		}
		if p.errs[i] = err; err != nil {
			s.note(p.keys[i].id, &fault{unwritten: true, err: err})
		}
	})
	for _, p := range puts {
		p.forget()
	}
}

// forget overwrites what is no more needed: an inline KEK is in each file.
func (p *putting) forget() {
	for i, f := range p.files {
		clear(f.data)
		if f.m != nil && p.errs[i] != nil {
			f.m.wipe()
		}
	}
	p.done = true
}

// wrapAll wraps keys and overwrites their secrets: the first alone, the rest in parallel. A KEK
// that has failed is not asked again for those that are left: each call might take its whole time.
func (s *keystore) wrapAll(ctx context.Context, keys []arrival) ([]proven, []error) {
	files, errs := make([]proven, len(keys)), make([]error, len(keys))
	var failed atomic.Pointer[fault]
	wrap := func(i int) {
		k := keys[i]
		defer k.secret.Wipe()
		f := failed.Load()
		if f == nil {
			files[i], f = s.wrap(ctx, k)
		}
		if f == nil {
			return
		}
		errs[i] = f.err
		if f.kek == "" {
			s.note(k.id, &fault{unwritten: true, err: f.err})
			return
		}
		failed.Store(f) // the KEK is noted, once for all keys
	}
	inParallel(min(len(keys), 1), wrap)
	inParallel(len(keys)-1, func(i int) { wrap(i + 1) })
	return files, errs
}

// makeRoom sees to it that nothing takes the place of a file but of one whose key is in memory,
// and so in the file that comes. What else lies there may be the way back: one that opens, or
// waits for its KEK or a newer build, stays; one that is bad, can't be read, or is another key's of that ID, is set
// aside. It returns the name under which there is room.
func (s *keystore) makeRoom(ctx context.Context, id KeyID, check meta.CheckValue) (name string, err error) {
	s.expel(id, check)
	if s.get(id) != nil {
		if name, err = s.settle(id); errors.Is(err, syscall.EIO) {
			err = nil // a bad sector stays bad, and what was in it is in memory
		}
		if err == nil {
			err = s.spareNewer(name) // it may have more than the key that is in memory
		}
		return name, err
	}
	m, f := s.load(ctx, id)
	name = s.nameOf(id)
	switch {
	case f == nil:
		m.wipe()
		return "", fmt.Errorf("write key %s: its file is here, and not read yet", id)
	case f.here:
		return "", fmt.Errorf("write key %s: its file is here: %w", id, f.err)
	case errors.Is(f.err, fs.ErrNotExist):
		return name, nil
	}
	why := asideUnreadable
	if f.mine {
		why = reason(f.err)
	}
	s.log.Error("key file set aside", "file", name, "error", f.err)
	return name, s.putAside(name, why)
}

// spareNewer is an error if a newer build has written the file, which may have come since it was read.
func (s *keystore) spareNewer(name string) error {
	if _, err := s.decode(name); errors.Is(err, nks.ErrVersion) {
		return fmt.Errorf("write key file %s: %w", name, err)
	}
	return nil
}

// wrap encodes the file of a key, wrapped under every KEK, one that fails fails the key, and
// opens it as the next start would.
func (s *keystore) wrap(ctx context.Context, k arrival) (proven, *fault) {
	b, secret, err := s.keks.Encode(ctx, k.file(), k.secret)
	if err != nil {
		return proven{}, &fault{kek: blamed(err), err: fmt.Errorf("key %s: %w", k.id, err)}
	}
	return proven{b, &material{
		algorithm: k.algorithm, check: k.check, created: k.created.UTC().Round(0), secret: secret, sum: sha256.Sum256(b),
	}}, nil
}

// readBack is what makes a written key a held one: the file is what was proven to open. Memory
// that is already there is kept, for it may be in use.
func (s *keystore) readBack(id KeyID, f proven) error {
	b, err := s.dir.Read(s.nameOf(id), nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return fmt.Errorf("read back %s: %w", id, err)
	}
	if !bytes.Equal(b, f.data) {
		return fmt.Errorf("read back %s: %w: not what was written", id, ErrCorrupt)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.faults, id)
	m, old := f.m, s.keys[id]
	if old != nil && old.check == m.check {
		s.live(id)
		if old.lost {
			s.changes++
		}
		old.sum, old.lost, old.gone, old.stale, old.nomad = m.sum, false, false, false, false
		m.wipe()
		return nil
	}
	if old != nil {
		old.wipe()
	}
	s.keys[id] = m
	s.changes++
	s.live(id)
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
		return false, s.mayCome(id)
	}
	same, err := s.unchanged(id, m)
	if !same { // it may be on its way: look again when nothing writes
		s.writing.Lock()
		defer s.writing.Unlock()
		same, err = s.unchanged(id, m)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !same && !m.lost {
		m.lost = true
		s.changes++
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !unfit(err) {
		return false, err
	}
	return !m.lost, nil
}

// mayCome is why a key that is not in memory may be soon, from a file that is here, or nil.
func (s *keystore) mayCome(id KeyID) error {
	buried := s.buried(id) // first: takeBack notes the fault before it forgets the grave
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.faults[id]; f.here || errors.Is(f.err, errUnread) {
		return f.err
	}
	if buried {
		return errUnread // it was removed, and may be no more
	}
	return nil
}

// unchanged reads the file of a key, and reports whether it is what was found right.
func (s *keystore) unchanged(id KeyID, m *material) (bool, error) {
	b, err := s.dir.Read(s.nameOf(id), nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	s.mu.Lock()
	defer s.mu.Unlock()
	return err == nil && sha256.Sum256(b) == m.sum, err
}
