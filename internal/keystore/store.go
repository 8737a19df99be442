// Package keystore has the key files of one server, and the keys in memory.
//
// # What it holds
//
// A key is held if its file is durable: it was written and synced, it was renamed and its name was synced, it was
// read back, unwrapped and found right. A key in memory without such a file opens data and counts for nothing else.
// [Store.Holds] tells of held keys, [Store.InMemory] of all.
//
// # What lies in the directory
//
//	keystore.id                 the keystore's ID: a directory that was wiped gets another one
//	<key>.nks.json              the file of a key
//	<key>.keyring.json          the same, where a file of Nomad's has that name
//	<name>.<why>-<n>            a file that was set aside: it was bad, or its key was removed; or the copy of an altered one
//	.synced                     which files were synced: the next start need not do it again
//	.tmp-<random>               a write that was cut short; it goes at the next start
//
// No file is ever overwritten by another key's, and nothing is deleted but the files of removed keys, by
// [Store.Unlink], and temporary ones. What may be the way back to a key stays: a file that no KEK opens
// for now, and one that a newer build has written.
//
// # Locks
//
// They are taken in this order: scanning, writing, mu. A method whose name ends in Locked says which one its
// caller holds. There is no I/O and no call of a KEK under mu.
package keystore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/go-hclog"
)

// Store is the keystore of one server. Its methods are safe for concurrent use.
type Store struct {
	dir  *durable.Dir
	id   meta.KeystoreID
	keks *kek.Set
	log  hclog.Logger

	mu       sync.Mutex // guards below; no I/O and no KEK call under it
	keys     map[meta.KeyID]*material
	moved    error                // why the directory is not where it was opened, or nil: no key is held then
	changes  uint64               // of keys, and of whether they are durable
	faults   map[meta.KeyID]Fault // why keys are not held whose files are here, or should be
	files    int                  // version of new files; zero is 1
	setAside []string             // names of the files that were set aside, in order
	altered  map[string]Altered   // copies of altered files, by name
	removed  map[meta.KeyID]*removedFiles
	nomad    map[meta.KeyID][]string // names of Nomad's files
	beside   map[meta.KeyID]bool     // keys whose own file lies beside one of Nomad's that has its name
	queue    []*putRequest           // calls of Put that wait to be written

	copying copying

	scanning sync.Mutex // one scan at a time
	writing  sync.Mutex // held from the writing of a file to its reading back, and while one is set aside
}

// Open takes over the directory in fsys, reads it, and makes its ID durable. Files that do not open never stop
// it. After an error it has closed fsys. ctx bounds opening only.
func Open(ctx context.Context, fsys durable.FS, keks *kek.Set, log hclog.Logger) (*Store, error) {
	return openFor(ctx, fsys, keks, log, 0)
}

// OpenNewest is Open, but for files that take long to open: it returns when the newest are open, and Heal goes on. See
// Unopened.
func OpenNewest(ctx context.Context, fsys durable.FS, keks *kek.Set, log hclog.Logger) (*Store, error) {
	return openFor(ctx, fsys, keks, log, startTurn)
}

func openFor(ctx context.Context, fsys durable.FS, keks *kek.Set, log hclog.Logger, turn time.Duration) (*Store, error) {
	s, err := open(ctx, fsys, keks, log, turn)
	if err != nil {
		return nil, errors.Join(err, fsys.Close())
	}
	return s, nil
}

func open(ctx context.Context, fsys durable.FS, keks *kek.Set, log hclog.Logger, turn time.Duration) (*Store, error) {
	s := &Store{
		dir: durable.New(fsys), keks: keks, log: log,
		keys: map[meta.KeyID]*material{}, faults: map[meta.KeyID]Fault{}, removed: map[meta.KeyID]*removedFiles{},
		nomad: map[meta.KeyID][]string{}, beside: map[meta.KeyID]bool{},
		altered: map[string]Altered{},
	}
	s.dir.OnRepair(func(name string, was fs.FileMode) {
		log.Warn("changed the mode of a file in the keystore to 0600: others could read it", "file", name, "was", was)
	})
	if err := s.dir.Sweep(); err != nil {
		log.Error("could not remove temporary files from the keystore", "error", err) // the next start tries again
	}
	s.dir.LoadSynced()
	if err := s.identify(); err != nil {
		return nil, err
	}
	keks.LookAtFiles()
	if keks.HasOld() {
		s.showSome()
	}
	if !keks.Probe(ctx) {
		return nil, errNoUnwrap
	}
	if err := s.scan(ctx, &meta.Ring{}, turn); err != nil {
		s.Wipe()
		return nil, err
	}
	return s, nil
}

var errNoUnwrap = errors.New("none of the KEKs can unwrap")

// ID returns the keystore's ID. It tells a server's keystore from the one that it had before its directory was
// wiped.
func (s *Store) ID() meta.KeystoreID { return s.id }

// Close overwrites every key and gives the directory back.
func (s *Store) Close() error {
	s.Wipe()
	return s.dir.Close()
}

// Wipe overwrites every key in memory.
func (s *Store) Wipe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.keys {
		m.wipe()
	}
	clear(s.keys)
}

// identity is the file that holds the keystore ID: 32 hexadecimal digits and a newline. A directory without one
// is new, or was wiped, and gets another. What a later version may put there begins with a v and the number of
// the version.
const identity = "keystore.id"

// parseIdentity reads the keystore's ID. The error matches nks.ErrVersion if a newer build has written it, else nks.ErrFormat.
func parseIdentity(b []byte) (id meta.KeystoreID, err error) {
	if len(b) > 1 && b[0] == 'v' && '1' <= b[1] && b[1] <= '9' {
		return id, fmt.Errorf("%s is %w: start the newer build", identity, nks.ErrVersion)
	}
	if len(b) != 33 || b[32] != '\n' || id.UnmarshalText(b[:32]) != nil {
		return id, fmt.Errorf("%w: %s has no ID", nks.ErrFormat, identity)
	}
	return id, nil
}

// isBadIdentity reports whether the file of the keystore's ID is bad, by the error of reading it: it is set aside.
func isBadIdentity(err error) bool { return errors.Is(err, nks.ErrFormat) || isOversized(err) }

// identify reads the keystore ID, or draws one for a directory that has none.
func (s *Store) identify() error {
	b, unsynced, err := s.dir.ReadOwn(identity, 4<<10, func([]byte) bool { return true })
	if unsynced != nil {
		s.log.Error("could not sync the keystore's ID", "error", unsynced)
	}
	if err == nil {
		if s.id, err = parseIdentity(b); err == nil {
			return nil
		}
	}
	switch {
	case isBadIdentity(err):
		if err := s.putAside(identity, asideMalformed); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err // another ID in its place would cost every hold
	}
	rand.Read(s.id[:]) // never fails
	return s.dir.Write(durable.Named{Name: identity, Data: []byte(hex.EncodeToString(s.id[:]) + "\n")})[0]
}
