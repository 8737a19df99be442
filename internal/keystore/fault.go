package keystore

import (
	"errors"
	"io/fs"
	"syscall"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// Fault is why a key is not held whose file is here, or should be.
type Fault struct {
	Key   meta.KeyID
	Cause Cause
	KEK   string    // the KEK to blame, if one is
	State kek.State // how that KEK does, as far as this file tells
	File  string    // the file to blame, of Nomad's or barred, if one is
	Err   error
}

// Cause says what kind of fault it is.
type Cause int

// The causes.
const (
	Unreadable Cause = iota // the file could not be read, or has not been read yet
	Unwritten               // the key could not be written; there may be no file
	BadFile                 // the file itself is bad: it is set aside, and trying again is no use
	Locked                  // the KEKs of the file do not answer, are not configured or do not open it
	Newer                   // a newer build has written the file, and knows alone what is in it
	Unopened                // the file is still to be opened: there are many, and their KEK is slow
	NomadFile               // a file of Nomad's does not open, or has another key
	Barred                  // the owner, the mode or the kind of the file keeps this server from reading it
)

// isClosed reports whether there is a file that nothing opens for now. Nothing may take its place: it may be the
// way back, or Nomad's.
func (f Fault) isClosed() bool {
	return f.Cause == Locked || f.Cause == Newer || f.Cause == Barred || f.Cause == Unopened
}

// mayOpen reports whether there is a file of the keyring's that may open later, by itself or with another
// configuration. One that is set aside does not, and one of Nomad's is there for who configures InlineKEK.
func (f Fault) mayOpen() bool {
	return f.isClosed() || f.Cause == Unreadable && !errors.Is(f.Err, errUnread) && !errors.Is(f.Err, fs.ErrNotExist)
}

// isSkipped reports whether the KEK to blame was not asked, because it was known not to do its work.
func (f Fault) isSkipped() bool {
	var e *kek.Error
	return errors.As(f.Err, &e) && e.Skipped
}

// kekFault is the fault of a file that a set of KEKs has not opened.
func kekFault(err error) *Fault {
	var e *kek.Error
	if errors.As(err, &e) && e.KEK != "" {
		return &Fault{Cause: Locked, KEK: e.KEK, State: e.State, Err: err}
	}
	return &Fault{Cause: BadFile, Err: err}
}

// errUnread is what is wrong with a key whose file has been taken back.
var errUnread = errors.New("its file has not been read yet")

// errMisnamed says that a file is another key's.
var errMisnamed = errors.New("the file is another key's")

// isOversized reports whether an error of reading a file says that it is too large for a key file, anybody's.
func isOversized(err error) bool {
	return errors.Is(err, durable.ErrTooLarge) && !errors.Is(err, durable.ErrGrew)
}

// isBarred reports whether an error of reading a file is about its owner, its mode or its kind. What is in it is not known:
// it may be Nomad's. So it is left as it is, and read again when an operator has mended that.
func isBarred(err error) bool {
	return errors.Is(err, durable.ErrNotRegular) || errors.Is(err, durable.ErrForeign) || errors.Is(err, fs.ErrPermission)
}

// isPassing reports whether an error of reading a file is about this process or the machine, and says nothing of the file.
func isPassing(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// readFault is the fault of a file that could not be read.
func readFault(name string, err error) *Fault {
	switch {
	case isOversized(err):
		return &Fault{Cause: BadFile, Err: err}
	case isBarred(err):
		return &Fault{Cause: Barred, File: name, Err: err}
	}
	return &Fault{Cause: Unreadable, Err: err}
}

// What files are set aside as, where it matters later. Earlier builds set aside as foreign and unreadable what they
// could not read.
const (
	asideRemoved    = "removed"
	asideMalformed  = "malformed"
	asideUnreadable = "unreadable"
	asideForeign    = "foreign"
	asideMisnamed   = "misnamed"
	asideWrong      = "wrong"
	asideAltered    = "altered" // a copy: the file itself was replaced
)

// asideFor is what a bad file is set aside as: a part of its new name.
func asideFor(err error) string {
	for _, r := range []struct {
		err error
		why string
	}{
		{durable.ErrTooLarge, "oversized"}, {errMisnamed, asideMisnamed}, {nks.ErrFormat, asideMalformed},
	} {
		if errors.Is(err, r.err) {
			return r.why
		}
	}
	return asideWrong
}

// noteFault notes what is wrong with a key.
func (s *Store) noteFault(id meta.KeyID, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteFaultLocked(id, f)
}

// noteFaultLocked is noteFault for a caller that holds mu.
func (s *Store) noteFaultLocked(id meta.KeyID, f Fault) {
	f.Key = id
	s.faults[id] = f
}

// FaultOf returns why a key is not held whose file is here, or should be. It is nil if nothing is known to be wrong.
func (s *Store) FaultOf(id meta.KeyID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults[id].Err
}

// Discard forgets what was wrong with a key that is not to be: one that could not be written, and that no
// ring knows.
func (s *Store) Discard(id meta.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.faults[id].isClosed() {
		delete(s.faults, id)
	}
}
