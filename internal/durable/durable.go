// Package durable keeps whole files in one directory so that a crash at any
// point, a full disk or a failed sync loses none of them. No other package of
// this module writes files of a server.
//
// A file is created, replaced whole by rename, set aside under another name, or
// removed; nothing is ever written in place. So a reader, also after a crash, finds
// under a name the whole old content or the whole new one, and never a mixture. A
// crash can also leave temporary files, which Sweep removes.
//
// Limits: it trusts the device to keep what fsync has acknowledged, the file systems that hasStamps names
// to stamp every change of a file, and the owner of the directory, the only user who can change names in it
// besides this process.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/mono"
)

var (
	// ErrNotRegular says that a name is a directory, symlink, FIFO, socket or
	// device. Nothing was read from it.
	ErrNotRegular = errors.New("not a regular file")

	// ErrTooLarge says that a file is larger than the caller would read.
	ErrTooLarge = errors.New("file too large")

	// ErrGrew says that a file grew while it was read: somebody is writing it. It comes with ErrTooLarge.
	ErrGrew = errors.New("it grew while it was read")

	// ErrForeign says that another user owns a file, and could change it at will.
	ErrForeign = errors.New("owned by another user")
)

// OwnerError says that another user owns a file or a directory. It matches ErrForeign.
type OwnerError struct {
	Have, Want uint32 // user IDs
}

// Error names both users.
func (e *OwnerError) Error() string {
	return fmt.Sprintf("owned by user %d, not by %d", e.Have, e.Want)
}

// Is reports whether target is ErrForeign.
func (e *OwnerError) Is(target error) bool { return target == ErrForeign }

// Dir is one directory of durable files. It is safe for concurrent use; calls
// that change the directory wait for one another, reads wait for nothing.
type Dir struct {
	fs       FS
	repaired func(name string, was fs.FileMode)
	writing  sync.Mutex // one change at a time: Sweep must not meet a live temporary file
	changes  gate.Calls // the one that is under way
	hung     func()     // called when a change hangs, and when it returns after that

	noting  sync.Mutex       // guards below
	synced  map[string]Stamp // of files that were synced, by name
	unnoted int              // how many of them the next process would not know
}

// New returns the Dir on fsys, which it owns from now on.
func New(fsys FS) *Dir {
	return &Dir{fs: fsys, repaired: func(string, fs.FileMode) {}, hung: func() {}, synced: map[string]Stamp{}}
}

// OnRepair sets the function that is called for every file whose mode ReadOwn has set to 0600. Call it before; f may be
// called from several goroutines.
func (d *Dir) OnRepair(f func(name string, was fs.FileMode)) { d.repaired = f }

// How long a change of the directory may take before it hangs, and how much longer for each of many files.
const (
	changePatience  = 10 * time.Second
	patienceForFile = 50 * time.Millisecond
)

// change begins a change of so many files, and end ends it.
func (d *Dir) change(files int) (end func()) {
	d.writing.Lock()
	returned := d.changes.Begin("change", changePatience+time.Duration(files)*patienceForFile, d.hung)
	return func() {
		d.writing.Unlock()
		returned()
	}
}

// OnHang sets the function that is called when a change of the directory hangs, and when it returns after that. Call it while
// nothing changes the directory.
func (d *Dir) OnHang(f func()) { d.hung = f }

// HangsSince is when the change of the directory began that has not returned for longer than it may take, or zero. It waits for
// nothing.
func (d *Dir) HangsSince() time.Time { return d.changes.Slow(mono.Now())["change"] }

// placed is an FS that has a path, which may come to lead elsewhere.
type placed interface{ InPlace() error }

// HasPlace reports whether InPlace can ever be an error: a simulated directory has no path.
func (d *Dir) HasPlace() bool {
	_, ok := d.fs.(placed)
	return ok
}

// InPlace is ErrMoved if the path by which the directory was opened does not lead to it now. Any other error says that it
// can't be told. Whatever it is, the methods of d work on the directory that was opened.
func (d *Dir) InPlace() error {
	if fsys, ok := d.fs.(placed); ok {
		return fsys.InPlace()
	}
	return nil
}

// Remove unlinks name for good. If there is no such name it is no error, and the directory
// is synced all the same, so that a second call after an error makes the removal durable.
// A crash leaves the whole file or none.
func (d *Dir) Remove(name string) error {
	defer d.change(1)()
	return wrap("remove", name, d.remove(name))
}

func (d *Dir) remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.fs.Sync()
}

// Sync makes durable all names that the directory has now.
func (d *Dir) Sync() error {
	defer d.change(1)()
	return d.fs.Sync()
}

// List returns the names in the directory, sorted, without the lock file, the note of what was synced and
// temporary files. They may be of any kind of file.
func (d *Dir) List() ([]string, error) {
	names, err := d.fs.List()
	if err != nil {
		return nil, wrap("list", "directory", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return name == LockName || name == SyncedName || IsTemp(name)
	})
	slices.Sort(names)
	return names, nil
}

// Sweep removes the temporary files that a crash or a failed Write has left: regular files
// whose name is one that Write gives. A file that can't be removed does not stop it. Call it
// before the first Write; calling again is safe.
func (d *Dir) Sweep() error {
	defer d.change(1)()
	names, err := d.fs.List()
	if err != nil {
		return wrap("sweep", "directory", err)
	}
	var errs []error
	for _, name := range names {
		if IsTemp(name) {
			errs = append(errs, wrap("sweep", name, d.sweep(name)))
		}
	}
	if errs == nil {
		return nil
	}
	return errors.Join(append(errs, wrap("sweep", "directory", d.fs.Sync()))...)
}

func (d *Dir) sweep(name string) error {
	info, err := d.fs.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	return d.fs.Remove(name)
}

// Close waits for the change under way and releases the directory. Calls after it
// fail.
func (d *Dir) Close() error {
	defer d.change(1)()
	return d.fs.Close()
}

// LockName is the file that OpenDir locks. It stays, empty, when the lock is gone.
const LockName = ".lock"

var tempPattern = regexp.MustCompile(`^\.tmp-[0-9a-f]{32}$`)

// IsTemp reports whether a file of this name is a Write's, cut short or under way.
func IsTemp(name string) bool { return tempPattern.MatchString(name) }

// tempName is random, so that files of an earlier process are never in the way.
func tempName() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return fmt.Sprintf(".tmp-%x", b)
}

// checkName refuses names that are not one plain file name, or are used by this package.
func checkName(name string) error {
	if !filepath.IsLocal(name) || name != filepath.Base(name) || name == "." {
		return errors.New("not a plain file name")
	}
	if name == LockName || IsTemp(name) {
		return errors.New("reserved file name")
	}
	return nil
}

// wrap says what was attempted with which file. The FS has put the directory's
// path into err.
func wrap(attempt, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", attempt, name, err)
}
