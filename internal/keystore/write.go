package keystore

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

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/parallel"
)

// keyFile is the content of a key file, and the key that it was opened to before it is written.
type keyFile struct {
	content []byte
	m       *material
}

// putRequest is one call of Put. Whichever call writes next, it writes for all that wait: ctx is that of the
// request's own caller, so that the end of one call fails no other.
type putRequest struct {
	ctx   context.Context
	keys  []Key
	files []keyFile
	errs  []error
	done  bool
}

// Put makes keys durable and takes them into memory, and returns an error for each, nil for those that are held now. It
// takes over the secrets. Each file has been opened before it is written. A crash before the names are synced leaves
// no key file or a whole one, which the next start loads.
//
// Calls that come while another one writes are written together: their files share its syncs.
func (s *Store) Put(ctx context.Context, keys ...Key) []error {
	p := &putRequest{ctx: ctx, keys: keys}
	p.files, p.errs = s.encodeAll(ctx, keys)
	if ctx.Err() != nil { // nobody may want them any more
		for i := range p.errs {
			p.errs[i] = cmp.Or(p.errs[i], context.Cause(ctx))
		}
		p.finish()
		return p.errs
	}
	s.mu.Lock()
	s.queue = append(s.queue, p)
	s.mu.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	for !p.done {
		s.writeBatchLocked(s.nextBatch())
	}
	return p.errs
}

// nextBatch takes the requests that wait, up to the first that has a key of another one: a key is not written twice at
// the same time.
func (s *Store) nextBatch() (batch []*putRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := map[meta.KeyID]bool{}
	for _, p := range s.queue {
		if slices.ContainsFunc(p.keys, func(k Key) bool { return taken[k.ID] }) {
			break
		}
		for _, k := range p.keys {
			taken[k.ID] = true
		}
		batch = append(batch, p)
	}
	s.queue = slices.Delete(s.queue, 0, len(batch))
	return batch
}

// writeBatchLocked writes the files of requests and reads them back. The caller holds writing.
func (s *Store) writeBatchLocked(batch []*putRequest) {
	if err := s.notInPlace(); err != nil {
		for _, p := range batch {
			for i := range p.errs {
				p.errs[i] = cmp.Or(p.errs[i], err)
			}
			p.finish()
		}
		return
	}
	var named []durable.Named
	type place struct {
		*putRequest
		i int // of its keys
	}
	var places []place
	for _, p := range batch {
		for i, k := range p.keys {
			var name string
			if p.errs[i] == nil {
				name, p.errs[i] = s.makeRoomLocked(p.ctx, k.ID, k.Check)
			}
			if p.errs[i] == nil {
				named = append(named, durable.Named{Name: name, Data: p.files[i].content})
				places = append(places, place{p, i})
			}
		}
	}
	wrote := s.dir.Write(named...)
	parallel.Do(len(places), func(j int) {
		p, i, err := places[j].putRequest, places[j].i, wrote[j]
		if err == nil {
			err = s.readBack(p.keys[i].ID, p.files[i])
		}
		if p.errs[i] = err; err != nil {
			s.noteFault(p.keys[i].ID, Fault{Cause: Unwritten, Err: err})
		}
	})
	for _, p := range batch {
		p.finish()
	}
}

// finish overwrites what is no longer needed: an inline KEK is in each file.
func (p *putRequest) finish() {
	for i, f := range p.files {
		clear(f.content)
		if f.m != nil && p.errs[i] != nil {
			f.m.wipe()
		}
	}
	p.done = true
}

// encodeAll makes the files of keys and overwrites their secrets: of the first key alone, of the rest in parallel. A KEK that
// has failed is not asked again for those that are left: each call might take its whole time.
func (s *Store) encodeAll(ctx context.Context, keys []Key) ([]keyFile, []error) {
	files, errs := make([]keyFile, len(keys)), make([]error, len(keys))
	var failed atomic.Pointer[error] // of a KEK
	encode := func(i int) {
		k := keys[i]
		defer k.Secret.Wipe()
		if err := failed.Load(); err != nil {
			errs[i] = *err
			return
		}
		var err error
		if files[i], err = s.encode(ctx, s.versionFor(k.ID), k); err == nil {
			return
		}
		errs[i] = err
		if e := (*kek.Error)(nil); errors.As(err, &e) && e.KEK != "" {
			failed.Store(&err) // the set notes that the KEK is down, once for all keys
			return
		}
		s.noteFault(k.ID, Fault{Cause: Unwritten, Err: err})
	}
	parallel.Do(min(len(keys), 1), encode)
	parallel.Do(len(keys)-1, func(i int) { encode(i + 1) })
	return files, errs
}

// encode makes the file of a key, in a version of files, wrapped under every KEK that wraps, and opens it as the next start
// would. If one KEK fails, so does encode.
func (s *Store) encode(ctx context.Context, version int, k Key) (keyFile, error) {
	file := k.File()
	file.Version = version
	content, opened, err := s.keks.Encode(ctx, &file, k.Secret)
	if err != nil {
		return keyFile{}, fmt.Errorf("key %s: %w", k.ID, err)
	}
	return keyFile{content, &material{
		versions: s.keks.Versions(&file), algorithm: k.Algorithm, check: k.Check, created: k.Created.UTC().Round(0), secret: opened, sum: sha256.Sum256(content),
		written: mono.Now(), version: version,
	}}, nil
}

// makeRoomLocked sees to it that a file takes the place of none but one whose key is in memory, and so in the file that
// comes. What else lies there may be the way back: a file that opens, or waits for its KEK or a newer build, stays; one that
// is bad, or is another key's of that ID, is set aside; beside one that the disk can't give there is room. It returns the
// name under which there is room. The caller holds writing.
func (s *Store) makeRoomLocked(ctx context.Context, id meta.KeyID, check meta.CheckValue) (name string, err error) {
	s.rejectLocked(id, check)
	if s.get(id) != nil {
		if name, err = s.resolveFileName(id); errors.Is(err, syscall.EIO) {
			err = nil // a bad sector stays bad, and what was in it is in memory
		}
		if isBarred(err) {
			s.noteFault(id, *readFault(name, err))
		}
		if err == nil {
			err = s.lookBefore(id, check, name) // it may have more than the key that is in memory
		}
		return name, err
	}
	m, f := s.load(ctx, id)
	name = s.fileName(id)
	switch {
	case f == nil:
		m.wipe()
		return "", fmt.Errorf("write key %s: its file is here, but not read yet", id)
	case f.isClosed():
		return "", fmt.Errorf("write key %s: its file is here: %w", id, f.Err)
	case errors.Is(f.Err, fs.ErrNotExist):
		return name, nil
	}
	again := errors.Is(f.Err, syscall.EIO) && errors.Is(s.FaultOf(id), syscall.EIO) // a scan has seen it too
	if f.Cause == Unreadable && (name != nks.FileName(id) || !again) {
		return "", fmt.Errorf("write key %s: its file is here: %w", id, f.Err)
	}
	if f.Cause == Unreadable { // a bad sector stays bad: the file may be Nomad's, and ours comes beside it
		s.log.Error("could not read a key file, and left it as it is", "file", name, "error", f.Err)
		s.useBesideName(id)
		return s.fileName(id), nil
	}
	if s.mayBeIncomplete(name) {
		return "", fmt.Errorf("write key %s: its file is here: %w", id, errIncomplete)
	}
	s.log.Error("set aside a key file", "file", name, "error", f.Err)
	return name, s.putAside(name, asideFor(f.Err))
}

// lookBefore looks at the file of a key in memory that is about to be replaced. It is an error if a newer build has written
// the file, which may have come since it was read. The file of another key is set aside, and a copy is kept of one that
// somebody has altered.
func (s *Store) lookBefore(id meta.KeyID, check meta.CheckValue, name string) error {
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return nil
	}
	file, err := nks.DecodeFile(b)
	switch {
	case errors.Is(err, nks.ErrVersion):
		return fmt.Errorf("write key file %s: %w", name, err)
	case err != nil: // nobody's
	case file.ID != id:
		return s.putAside(name, asideMisnamed)
	case file.Check != check:
		return s.putAside(name, asideWrong)
	case s.isAltered(id, file):
		s.keepAltered(id, name, b, file)
	}
	return nil
}

// reject sets the file of a key aside that is not the key of that ID in the ring, and overwrites it in memory,
// unless the right one has taken its place.
func (s *Store) reject(id meta.KeyID, right meta.CheckValue) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.rejectLocked(id, right)
}

// rejectLocked is reject for a caller that holds writing.
func (s *Store) rejectLocked(id meta.KeyID, right meta.CheckValue) {
	m := s.get(id)
	if m == nil || m.check == right {
		return
	}
	s.log.Error("a key file does not contain the cluster's key of that ID", "key", id)
	s.drop(id)
	if m.fromNomad {
		err := fmt.Errorf("%w: Nomad's file has another key of that ID", nks.ErrCorrupt)
		s.noteFault(id, Fault{Cause: NomadFile, File: nks.FileName(id), Err: err})
		return
	}
	if err := s.putAsideWrong(s.fileName(id), m.sum); err != nil {
		s.noteFault(id, Fault{Cause: Unreadable, Err: err})
	}
}

// putAsideWrong sets the file of another key than the ring's aside, if it still is what was read. Else the next scan reads
// what has come.
func (s *Store) putAsideWrong(name string, sum [sha256.Size]byte) error {
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return err
	}
	if sha256.Sum256(b) != sum {
		return errUnread
	}
	return s.putAside(name, asideWrong)
}

// readBack is what makes a written key a held one: the file is what was proven to open. Memory that is already
// there is kept, for it may be in use.
func (s *Store) readBack(id meta.KeyID, f keyFile) error {
	b, err := s.dir.Read(s.fileName(id), nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return fmt.Errorf("read back %s: %w", id, err)
	}
	if !bytes.Equal(b, f.content) {
		return fmt.Errorf("read back %s: %w: not what was written", id, nks.ErrCorrupt)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.faults, id)
	m, old := f.m, s.keys[id]
	if old != nil && old.check == m.check {
		s.noteInUseLocked(id)
		if old.notDurable {
			s.changes++
		}
		old.sum, old.notDurable, old.fileIsGone, old.fromNomad = m.sum, false, false, false
		old.outdated, old.unsynced, old.mustWrite = false, false, false
		old.versions = m.versions
		old.version, old.altered = m.version, false
		m.wipe()
		return nil
	}
	if old != nil {
		old.wipe()
	}
	s.keys[id] = m
	s.changes++
	s.noteInUseLocked(id)
	return nil
}

// decode reads a key file without opening it.
func (s *Store) decode(name string) (*nks.File, error) {
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return nil, err
	}
	return nks.DecodeFile(b)
}
