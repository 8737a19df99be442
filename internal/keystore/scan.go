package keystore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/parallel"
)

// scan reads every key file that is neither in memory nor a removed key's, in parallel. A file that is bad is set
// aside; one that can't be read now, or whose KEK does not answer, stays to be scanned again; what is said of files that are
// gone is forgotten. The error is about the directory or ctx, never about a file.
func (s *Store) scan(ctx context.Context, ring *meta.Ring) error {
	s.scanning.Lock()
	defer s.scanning.Unlock()
	aside := s.asideNames()
	names, err := s.dir.List()
	if err != nil {
		return err
	}
	all := s.sort(names)
	s.forgetGone(ring, names, all, aside)
	var ids []meta.KeyID
	for id, files := range all {
		switch {
		case ring.WasRemoved(id):
			s.noteRemovedFile(id, files)
		case s.get(id) == nil:
			ids = append(ids, id)
		}
	}
	// What was renamed by a process that died, or by a write that failed, is here to be seen and may still be
	// lost. Keys that can't be made durable now open data, and are no more than that until they are written again.
	var unsynced error
	if len(ids) > 0 {
		if unsynced = s.dir.Sync(); unsynced != nil {
			s.log.Error("sync keystore", "error", unsynced)
		}
	}
	parallel.Do(len(ids), func(i int) {
		if ctx.Err() == nil {
			s.read(ctx, ids[i], unsynced)
		}
	})
	return ctx.Err()
}

// files are the names of what there is of one key.
type files struct {
	own   []string // names that the keyring gives
	nomad []string // other names, which Nomad gives
}

// sort sorts the names in the directory by the key they are about. The rest, but for what was set aside, is
// nothing to us.
func (s *Store) sort(names []string) map[meta.KeyID]files {
	all := map[meta.KeyID]files{}
	for _, name := range names {
		if id, ok := nks.ParseFileName(name); ok {
			all[id] = files{append(all[id].own, name), all[id].nomad}
		} else if id, ok := nks.ParseNomadName(name); ok {
			all[id] = files{all[id].own, append(all[id].nomad, name)}
		} else {
			s.noteAside(name)
		}
	}
	for id, f := range all {
		s.noteNomad(id, f)
	}
	return all
}

// read takes one key file into memory, notes what is wrong with it, or sets it aside. It is not known to be durable if
// unsynced says why the directory could not be synced.
func (s *Store) read(ctx context.Context, id meta.KeyID, unsynced error) {
	synced := unsynced == nil
	m, f := s.load(ctx, id)
	if f != nil && f.Cause == BadFile {
		m, f = s.loadOrSetAside(ctx, id)
	}
	if f != nil && !f.isClosed() {
		if n, nomads := s.loadNomad(id); n != nil {
			m, f, synced = n, nil, false // not durable until there is a file of ours
		} else if nomads != nil && (f.Cause == BadFile || errors.Is(f.Err, fs.ErrNotExist)) { // else ours is to blame
			f = nomads
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys[id] != nil { // written meanwhile
		if m != nil {
			m.wipe()
		}
		return
	}
	if f != nil {
		s.noteFaultLocked(id, *f)
		return
	}
	delete(s.faults, id)
	m.notDurable = !synced
	m.needsRewrap = m.needsRewrap || !synced // the next start may find an older file
	s.keys[id] = m
	s.changes++
	s.noteInUseLocked(id)
}

// loadOrSetAside looks once more at a file that was bad, while nothing writes: a good one may have taken its
// place.
func (s *Store) loadOrSetAside(ctx context.Context, id meta.KeyID) (*material, *Fault) {
	s.writing.Lock()
	defer s.writing.Unlock()
	m, f := s.load(ctx, id)
	if f != nil && f.Cause == BadFile {
		name := s.fileName(id)
		s.log.Error("key file set aside", "file", name, "error", f.Err)
		if err := s.putAside(name, asideFor(f.Err)); err != nil {
			s.log.Error("set key file aside", "file", name, "error", err)
		}
	}
	return m, f
}

// load reads a key file, unwraps it and checks it.
func (s *Store) load(ctx context.Context, id meta.KeyID) (*material, *Fault) {
	name := s.fileName(id)
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	switch {
	case err != nil && isUnfit(err):
		return nil, &Fault{Cause: BadFile, Err: err}
	case err != nil:
		return nil, &Fault{Cause: Unreadable, Err: err}
	}
	file, err := nks.DecodeFile(b)
	if err != nil && name == nks.FileName(id) && nks.IsNomad(b) {
		s.useBesideName(id)
		return s.load(ctx, id) // what is beside it
	}
	if errors.Is(err, nks.ErrVersion) {
		return nil, &Fault{Cause: Newer, Err: fmt.Errorf("key file %s: %w", name, err)}
	}
	if err != nil {
		return nil, &Fault{Cause: BadFile, Err: err}
	}
	if file.ID != id {
		return nil, &Fault{Cause: BadFile, Err: fmt.Errorf("%w: %w: it names %s", nks.ErrCorrupt, errMisnamed, meta.KeyID(file.ID))}
	}
	opened, err := s.keks.Decode(ctx, file)
	if err != nil {
		return nil, kekFault(err)
	}
	return &material{
		algorithm: file.Algorithm, check: file.Check, created: file.Created,
		secret: opened.Material, sum: sha256.Sum256(b), needsRewrap: opened.Rewrap,
	}, nil
}

// putAside sets a bad file aside, and notes it.
func (s *Store) putAside(name, why string) error {
	aside, err := s.dir.SetAside(name, why)
	s.noteAside(aside) // also one that is not durable under its new name yet
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setAside = append(s.setAside, aside)
	return nil
}

// forgetGone forgets what is said of files that are gone. names is what the directory has, and all is those
// of them that are about keys. The files in aside had been set aside before the directory was read: what comes later is not
// in names.
func (s *Store) forgetGone(ring *meta.Ring, names []string, all map[meta.KeyID]files, aside map[string]bool) {
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	for name := range aside {
		if !there[name] {
			s.forgetAside(name)
		}
	}
	s.forgetFaults(ring, all)
	s.noteGone(ring, all)
}

// forgetFaults forgets faults of files that are gone, and of keys that nobody wants any more.
func (s *Store) forgetFaults(ring *meta.Ring, all map[meta.KeyID]files) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, f := range s.faults {
		_, file := all[id]
		lasts := ring.Key(id) != nil && (f.Cause == BadFile || f.Cause == Unwritten) // until the key is written
		if !file && !lasts {
			delete(s.faults, id)
		}
	}
	for id := range s.nomad {
		if _, file := all[id]; !file {
			delete(s.nomad, id)
		}
	}
}

// noteGone notes of which orphans the file is gone. They stay in memory: the ring may come to know them.
func (s *Store) noteGone(ring *meta.Ring, all map[meta.KeyID]files) {
	unknown, _ := s.unknown(ring)
	for _, id := range unknown {
		m := s.get(id)
		if m == nil {
			continue
		}
		_, file := all[id]
		if !file && !m.fromNomad {
			file, _ = s.Confirm(id) // it may have come since the directory was read
		}
		s.mu.Lock()
		if m.fileIsGone == file {
			m.fileIsGone = !file
			s.changes++
		}
		s.mu.Unlock()
	}
}
