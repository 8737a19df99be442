package keystore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// scan reads every key file that is neither in memory nor a removed key's, in parallel. A file that is bad is set aside. One
// that the turn does not get to, that can't be read now, or whose KEK does not answer, stays to be scanned again. What is said
// of files that are gone is forgotten. The error is about the directory or ctx, never about a file.
func (s *Store) scan(ctx context.Context, ring *meta.Ring, turn time.Duration) error {
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
	slices.SortFunc(ids, compareIDs) // what a KEK refuses for a while depends on the order
	s.readAll(ctx, ring, ids, turn)
	if err := s.dir.NoteSynced(manySynced); err != nil {
		s.log.Warn("could not note which key files are synced: the next start syncs them again", "error", err)
	}
	return ctx.Err()
}

// manySynced is how many files a start may sync again and again: fewer are not worth a write.
var manySynced = 64

// syncNames has those of the keys held whose files were read and synced. What was renamed by a process that died, or put
// there by others, is here to be seen and may still be lost: so its name is synced too. Keys that can't be made durable now
// open data, and are no more than that until they are synced or written again.
func (s *Store) syncNames(ids []meta.KeyID) {
	synced := map[meta.KeyID][sha256.Size]byte{} // sums of the files
	s.mu.Lock()
	for _, id := range ids {
		if m := s.keys[id]; m != nil && m.notDurable && !m.mustWrite && !m.fromNomad {
			synced[id] = m.sum
		}
	}
	s.mu.Unlock()
	if len(synced) > 0 {
		s.syncDir(synced)
	}
}

// syncDir has the keys held whose synced files have these sums, once the directory is synced.
func (s *Store) syncDir(synced map[meta.KeyID][sha256.Size]byte) {
	if err := s.dir.Sync(); err != nil {
		s.log.Error("could not sync the keystore", "error", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, sum := range synced {
		if m := s.keys[id]; m != nil && m.notDurable && m.sum == sum {
			m.notDurable, m.unsynced, m.fileIsGone = false, false, false
			delete(s.faults, id)
			s.changes++
		}
	}
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

// read takes one key file into memory, notes what is wrong with it, or sets it aside. The key is not held before its
// name is synced.
func (s *Store) read(ctx context.Context, id meta.KeyID) {
	m, f := s.load(ctx, id)
	if f != nil && f.Cause == BadFile {
		m, f = s.loadOrSetAside(ctx, id)
	}
	if f != nil && !f.isClosed() {
		if n, nomads := s.loadNomad(id); n != nil {
			m, f = n, nil // not durable until there is a file of ours
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
	m.notDurable, m.unsynced = true, true
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
		if s.mayBeIncomplete(name) {
			return nil, &Fault{Cause: Unreadable, Err: fmt.Errorf("key file %s: %w", name, errIncomplete)}
		}
		s.log.Error("set aside a key file", "file", name, "error", f.Err)
		if err := s.putAside(name, asideFor(f.Err)); err != nil {
			s.log.Error("could not set aside a key file", "file", name, "error", err)
		}
	}
	return m, f
}

// load reads a key file, unwraps it and checks it. Its name is not synced yet.
func (s *Store) load(ctx context.Context, id meta.KeyID) (*material, *Fault) {
	name := s.fileName(id)
	b, unsynced, err := s.dir.ReadOwn(name, nks.MaxFile, isOwn)
	defer clear(b) // an inline KEK is in it
	f := found{id, name, b, err}
	if f.isNomads() {
		s.useBesideName(id)
		return s.load(ctx, id) // what is beside it
	}
	m, fault := f.openOwn(ctx, s.keks)
	if m != nil {
		m.unsynced, m.mustWrite = true, unsynced != nil
	}
	return m, fault
}

// isOwn reports whether the content of a file is not Nomad's, whose modes are not ours to change.
func isOwn(b []byte) bool { return !nks.IsNomad(b) }

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
	s.copying.look(there)
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
