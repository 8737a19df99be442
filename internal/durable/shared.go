package durable

// A directory in which several processes put large files.

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Shared is a directory in which several processes put files too large for memory, on one machine or, over a network
// file system, on several. The directory is not locked: each process gives its files names that no other gives. What is
// locked is a temporary file while it is written, so that Sweep can tell it from one that a crash has left.
type Shared struct{ fs FS }

// NewShared returns the Shared on fsys, which it owns from now on.
func NewShared(fsys FS) *Shared { return &Shared{fsys} }

// OpenShared opens the directory at path. It makes none, and changes nothing of the one that is there: an absent one may
// be on a file system that is not mounted.
func OpenShared(path string) (*Shared, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	root, err := openRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	return &Shared{&osDir{path: path, root: root, user: uint32(os.Geteuid()), anyUser: true}}, nil
}

// Put makes a file of that name, or replaces it, with what r yields until io.EOF. It is durable when Put returns nil, with
// mode 0600. After an error, r's too, there is no such file, or all of it: if the directory could not be synced.
//
// The steps, and what a crash in or after each leaves:
//
//  1. A temporary file is created and locked, and takes the content. A crash leaves it, empty or torn, and no lock.
//  2. It is synced. A crash leaves the same, or all of it under that name.
//  3. It is renamed. A crash leaves all of it, under one of the two names.
//  4. The directory is synced. From here on it has its name.
//
// If step 1, 2 or 3 fails, the temporary file is removed.
func (s *Shared) Put(name string, r io.Reader) error {
	err := checkName(name)
	if err == nil {
		err = s.put(name, r)
	}
	return wrap("write", name, err)
}

func (s *Shared) put(name string, r io.Reader) error {
	temp := sharedTemp(name)
	f, err := s.fs.Create(temp)
	if err != nil {
		return err
	}
	if err = lockTemp(f); err == nil {
		_, err = io.Copy(f, r)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = s.fs.Rename(temp, name) // before Close, which gives up the lock
	}
	if err != nil {
		_ = s.fs.Remove(temp) // or else Sweep does it
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Close(), s.fs.Sync())
}

// lockTemp locks a temporary file, if the file system has locks.
func lockTemp(f File) error {
	of, real := f.(osFile)
	if !real {
		return nil
	}
	if err := flock(of.File, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("temporary file: %w", ErrLocked) // a Sweep has it
	}
	return nil
}

// Open opens a regular file. The caller closes it.
func (s *Shared) Open(name string) (io.ReadCloser, error) {
	f, _, err := s.fs.Open(name)
	if err != nil {
		return nil, wrap("read", name, err)
	}
	return f, nil
}

// List returns the names in the directory, sorted, without temporary files. They may be of any kind of file.
func (s *Shared) List() ([]string, error) {
	names, err := s.fs.List()
	if err != nil {
		return nil, wrap("list", "directory", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		_, is := ofSharedTemp(name)
		return is
	})
	slices.Sort(names)
	return names, nil
}

// Remove unlinks a regular file for good. If there is no such name it is no error.
func (s *Shared) Remove(name string) error {
	err := checkName(name)
	if err == nil {
		err = s.remove(name)
	}
	return wrap("remove", name, err)
}

func (s *Shared) remove(name string) error {
	info, err := s.fs.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return s.fs.Sync() // so that a second call after an error makes the removal durable
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: %v", ErrNotRegular, info.Mode().Type())
	}
	if err == nil {
		err = s.fs.Remove(name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.fs.Sync()
}

// Sweep removes the temporary files that a crash has left of files of these names. One that is being written, by any process,
// stays, and so does one of which that can't be told. A file that can't be removed does not stop it.
func (s *Shared) Sweep(own func(name string) bool) error {
	names, err := s.fs.List()
	if err != nil {
		return wrap("sweep", "directory", err)
	}
	var errs []error
	for _, temp := range names {
		if name, is := ofSharedTemp(temp); is && own(name) && s.isAbandoned(temp) {
			errs = append(errs, wrap("sweep", temp, s.remove(temp)))
		}
	}
	return errors.Join(errs...)
}

// isAbandoned reports whether nobody writes a temporary file any more: it is not locked. A simulated directory has no
// locks, and no second process.
func (s *Shared) isAbandoned(temp string) bool {
	d, real := s.fs.(*osDir)
	if !real {
		return true
	}
	named, err := d.root.Lstat(temp)
	if err != nil || !named.Mode().IsRegular() {
		return false
	}
	f, err := d.root.OpenFile(temp, unix.O_RDWR|unix.O_NOFOLLOW|noWait, 0) // over NFS only a file that may be written is locked
	if err != nil {
		return false
	}
	defer f.Close()
	return flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil
}

// Close releases the directory. Calls after it fail.
func (s *Shared) Close() error { return s.fs.Close() }

// sharedTemp is the name of a file before it is renamed. It has the later name in it, so that Sweep can tell which files it is
// to remove.
func sharedTemp(name string) string { return "." + name + ".tmp" }

// ofSharedTemp reverses sharedTemp.
func ofSharedTemp(temp string) (name string, ok bool) {
	name, ok = strings.CutPrefix(temp, ".")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(name, ".tmp")
}
