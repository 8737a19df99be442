package keyring

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/go-hclog"
)

// identity is the file that holds the keystore ID: 32 hexadecimal digits and a newline. A
// directory without one is new, or was wiped, and gets another. What a later version may put there begins
// with a v and the number of the version.
const identity = "keystore.id"

// newerIdentity reports whether a newer build has written the keystore's ID.
func newerIdentity(b []byte) bool { return len(b) > 1 && b[0] == 'v' && '1' <= b[1] && b[1] <= '9' }

// keystore is the directory of key files and the keys in memory.
//
// A key is held if its file is durable: written, synced, renamed, its name synced, read back,
// unwrapped and found right. What is in memory without that opens data and counts for
// nothing else.
type keystore struct {
	dir  *durable.Dir
	id   meta.KeystoreID
	keks *kek.Set
	log  hclog.Logger

	mu       sync.Mutex // guards below; no I/O and no KEK call under it
	keys     map[KeyID]*material
	changes  uint64          // of keys, and of whether they are lost
	faults   map[KeyID]fault // what stands between this server and a key whose file is here
	setAside []string        // names of the files that were set aside, in order
	graves   map[KeyID]*grave
	nomad    map[KeyID][]string // files of Nomad's
	taken    map[KeyID]bool     // whose file name is one of them
	puts     []*putting         // wait to be written

	scanning sync.Mutex // one scan at a time
	writing  sync.Mutex // held from the writing of a file to its reading back, and while one is set aside
}

// fault is why a key whose file is here, or should be, is not held.
type fault struct {
	kek       string // the KEK to blame, if one is
	file      string // the file of Nomad's to blame, if one is
	mine      bool   // the file itself is bad: it is set aside, and trying again is no use
	unwritten bool   // the key could not be written; there may be no file
	here      bool   // there is a file, wrapped under a KEK that does not answer or is not configured, or newer
	newer     bool   // the file is of a newer build, which alone knows what is in it
	err       error
}

// waits reports whether there is a file of the keyring's that may open later, by itself or with another
// configuration. One that is set aside does not, and one of Nomad's is there for who configures InlineKEK.
func (f fault) waits() bool {
	switch {
	case f.here:
		return true
	case f.mine, f.unwritten, f.file != "", errors.Is(f.err, errUnread), errors.Is(f.err, fs.ErrNotExist):
		return false
	}
	return f.kek == "" // it could not be read
}

// notOpened is the fault of a file that no KEK has opened.
func notOpened(err error) *fault {
	if kek := blamed(err); kek != "" {
		return &fault{kek: kek, here: true, err: err}
	}
	return &fault{mine: true, err: err}
}

// blamed is the KEK to blame for an error, if one is.
func blamed(err error) string {
	var e *kek.Error
	if errors.As(err, &e) {
		return e.KEK
	}
	return ""
}

// openKeystore takes over the directory, reads it, and makes its ID durable. Files that do
// not open never stop it. After an error the directory is given back: when ctx ends while a KEK hangs,
// as soon as that comes back.
func openKeystore(ctx context.Context, fsys durable.FS, keks, old []KEK, log hclog.Logger) (*keystore, error) {
	return gate.AwaitOr(ctx, func() (*keystore, error) {
		s, err := readKeystore(ctx, fsys, keks, old, log)
		if err != nil {
			return nil, errors.Join(err, fsys.Close())
		}
		return s, nil
	}, func(s *keystore) { s.close() })
}

func readKeystore(ctx context.Context, fsys durable.FS, keks, old []KEK, log hclog.Logger) (*keystore, error) {
	s := &keystore{
		dir: durable.New(fsys), keks: kek.NewSet(keks, old), log: log,
		keys: map[KeyID]*material{}, faults: map[KeyID]fault{}, graves: map[KeyID]*grave{},
		nomad: map[KeyID][]string{}, taken: map[KeyID]bool{},
	}
	s.dir.OnRepair(func(name string, was fs.FileMode) {
		log.Warn("others could read a file in the keystore; its mode is 0600 again", "file", name, "was", was)
	})
	if err := s.dir.Sweep(); err != nil {
		log.Error("remove temporary files from the keystore", "error", err) // the next start tries again
	}
	if err := s.identify(); err != nil {
		return nil, err
	}
	if !s.keks.Probe(ctx) {
		return nil, errors.New("none of the KEKs can unwrap")
	}
	if err := s.scan(ctx, &meta.Ring{}); err != nil {
		s.wipe()
		return nil, err
	}
	return s, nil
}

// faultOf says what stands between this server and a key, or nil.
func (s *keystore) faultOf(id KeyID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults[id].err
}

// locked returns the keys of which there is a file that no KEK opens for now, or of a newer build.
func (s *keystore) locked() (ids []KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, f := range s.faults {
		if f.here {
			ids = append(ids, id)
		}
	}
	return ids
}

// identify reads the keystore ID, or draws one for a directory that has none.
func (s *keystore) identify() error {
	b, err := s.dir.Read(identity, 4<<10)
	if err == nil && len(b) == 33 && b[32] == '\n' && s.id.UnmarshalText(b[:32]) == nil {
		return nil
	}
	if err == nil && newerIdentity(b) {
		return fmt.Errorf("%s is %w: start the newer build", identity, nks.ErrVersion)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		if err != nil && !unfit(err) {
			return err // another ID in its place would cost every hold
		}
		if err := s.putAside(identity, asideMalformed); err != nil {
			return err
		}
	}
	rand.Read(s.id[:]) // never fails
	return s.dir.Write(durable.Named{Name: identity, Data: []byte(hex.EncodeToString(s.id[:]) + "\n")})[0]
}

// What files are set aside as, where it matters later.
const (
	asideRemoved    = "removed"
	asideMalformed  = "malformed"
	asideUnreadable = "unreadable"
	asideForeign    = "foreign"
	asideMisnamed   = "misnamed"
)

// reason is what a file that is set aside is called for: a part of its new name.
func reason(err error) string {
	for _, r := range []struct {
		err error
		why string
	}{
		{durable.ErrNotRegular, "not-a-file"}, {durable.ErrTooLarge, "oversized"}, {durable.ErrForeign, asideForeign},
		{fs.ErrPermission, asideUnreadable}, {errMisnamed, asideMisnamed}, {nks.ErrFormat, asideMalformed},
	} {
		if errors.Is(err, r.err) {
			return r.why
		}
	}
	return "wrong"
}

// errMisnamed says that a file is another key's.
var errMisnamed = errors.New("the file is another key's")

// unfit reports whether an error of reading a file is about what lies there, and will stay.
func unfit(err error) bool {
	return errors.Is(err, durable.ErrNotRegular) || errors.Is(err, durable.ErrTooLarge) ||
		errors.Is(err, durable.ErrForeign) || errors.Is(err, fs.ErrPermission)
}

// atOnce is how many key files are worked on at a time: enough to keep several requests to a
// KMS on their way.
const atOnce = 16

// inParallel calls do with 0 to n-1. The caller is one of the workers, so one call needs no
// goroutine.
func inParallel(n int, do func(i int)) {
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
			do(i - 1)
		}
	}
	var wg sync.WaitGroup
	for range min(atOnce, n) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

// scan reads every key file that is neither in memory nor a removed key's, in parallel. A file
// that is bad is set aside; one that can't be read now, or whose KEK does not answer, stays
// to be scanned again; what is gone is forgotten. The error is about the directory or ctx, never about
// a file.
func (s *keystore) scan(ctx context.Context, ring *meta.Ring) error {
	s.scanning.Lock()
	defer s.scanning.Unlock()
	aside := s.asideNames()
	names, err := s.dir.List()
	if err != nil {
		return err
	}
	all := s.sort(names)
	s.forgetGone(ring, names, all, aside)
	var ids []KeyID
	for id, files := range all {
		switch {
		case ring.WasRemoved(id):
			s.passOver(id, files)
		case s.get(id) == nil:
			ids = append(ids, id)
		}
	}
	// What was renamed by a process that died, or by a write that failed, is here to be seen
	// and may still be lost. Keys that can't be made durable now open data, and are no more
	// than that until they are written anew.
	var unsynced error
	if len(ids) > 0 {
		if unsynced = s.dir.Sync(); unsynced != nil {
			s.log.Error("sync keystore", "error", unsynced)
		}
	}
	inParallel(len(ids), func(i int) {
		if ctx.Err() == nil {
			s.read(ctx, ids[i], unsynced != nil)
		}
	})
	return ctx.Err()
}

// files are what there is of one key.
type files struct {
	own   []string // by the names that the keyring gives
	nomad []string // by others that Nomad gives
}

// sort sorts the names in the directory by the key they are about. The rest, but for what was
// set aside, is nothing to us.
func (s *keystore) sort(names []string) map[KeyID]files {
	all := map[KeyID]files{}
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

// passOver notes the file of a removed key.
func (s *keystore) passOver(id KeyID, f files) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range f.own {
		if !slices.Contains(s.nomad[id], name) {
			s.grave(id).file = true
		}
	}
}

// read takes one key file into memory, as one that is lost if it is not known to be durable,
// notes what is in its way, or sets it aside.
func (s *keystore) read(ctx context.Context, id KeyID, lost bool) {
	m, f := s.load(ctx, id)
	if f != nil && f.mine {
		m, f = s.loadOrSetAside(ctx, id)
	}
	if f != nil && !f.here {
		if n, nomads := s.loadNomad(id); n != nil {
			m, f, lost = n, nil, true // lost until there is a file of ours
		} else if nomads != nil && (f.mine || errors.Is(f.err, fs.ErrNotExist)) { // else ours is to blame
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
		s.faults[id] = *f
		return
	}
	delete(s.faults, id)
	m.lost = lost
	m.stale = m.stale || lost // the next start may find an older file
	s.keys[id] = m
	s.changes++
	s.live(id)
}

// loadOrSetAside looks once more at a file that was bad, while nothing writes: a good one may
// have taken its place.
func (s *keystore) loadOrSetAside(ctx context.Context, id KeyID) (*material, *fault) {
	s.writing.Lock()
	defer s.writing.Unlock()
	m, f := s.load(ctx, id)
	if f != nil && f.mine {
		name := s.nameOf(id)
		s.log.Error("key file set aside", "file", name, "error", f.err)
		if err := s.putAside(name, reason(f.err)); err != nil {
			s.log.Error("set key file aside", "file", name, "error", err)
		}
	}
	return m, f
}

// load reads a key file, unwraps it and checks it.
func (s *keystore) load(ctx context.Context, id KeyID) (*material, *fault) {
	name := s.nameOf(id)
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return nil, &fault{mine: unfit(err), err: err}
	}
	file, err := nks.DecodeFile(b)
	if err != nil && name == nks.FileName(id) && nks.IsNomad(b) {
		s.take(id)
		return s.load(ctx, id) // what is beside it
	}
	if errors.Is(err, nks.ErrVersion) {
		return nil, &fault{newer: true, here: true, err: fmt.Errorf("key file %s: %w", name, err)}
	}
	if err != nil {
		return nil, &fault{mine: true, err: err}
	}
	if file.ID != id {
		return nil, &fault{mine: true, err: fmt.Errorf("%w: %w: it names %s", ErrCorrupt, errMisnamed, KeyID(file.ID))}
	}
	secret, rewrap, err := s.keks.Decode(ctx, file)
	if err != nil {
		return nil, notOpened(err)
	}
	return &material{
		algorithm: file.Algorithm, check: file.Check, created: file.Created,
		secret: secret, sum: sha256.Sum256(b), stale: rewrap,
	}, nil
}

// giveUp forgets what stood in the way of a key that is not to be.
func (s *keystore) giveUp(id KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.faults[id].here {
		delete(s.faults, id)
	}
}

// reject sets the file of a key aside that is not the key of that ID in the ring, and
// overwrites it in memory, unless the right one has taken its place.
func (s *keystore) reject(id KeyID, right meta.CheckValue) {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.expel(id, right)
}

// expel is reject for a caller that holds writing.
func (s *keystore) expel(id KeyID, right meta.CheckValue) {
	m := s.get(id)
	if m == nil || m.check == right {
		return
	}
	s.log.Error("key file is not the cluster's key of that ID", "key", id)
	s.drop(id)
	if m.nomad {
		s.note(id, &fault{file: nks.FileName(id), err: fmt.Errorf("%w: Nomad's file has another key of that ID", ErrCorrupt)})
		return
	}
	name, _ := s.settle(id)
	if err := s.putAside(name, "wrong"); err != nil {
		s.note(id, &fault{err: err})
	}
}

func (s *keystore) putAside(name, why string) error {
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

func (s *keystore) note(id KeyID, f *fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[id] = *f
}

// close overwrites every key and gives the directory back.
func (s *keystore) close() error {
	s.wipe()
	return s.dir.Close()
}

func (s *keystore) wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.keys {
		m.wipe()
	}
	clear(s.keys)
}
