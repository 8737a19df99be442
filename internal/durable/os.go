package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// FS is one directory as a Dir needs it: the operating system's, from OpenDir, or
// a simulated one. Names are plain file names in it. Its errors name the directory.
type FS interface {
	// Create makes a file that must not exist yet and opens it for writing. Its
	// mode is 0600 whatever the umask.
	Create(name string) (File, error)

	// Open opens a regular file for reading and says what it has opened. Anything
	// else is ErrNotRegular, and is not opened: a symlink is not followed, a FIFO not
	// waited for. One that another user owns is ErrForeign.
	Open(name string) (File, fs.FileInfo, error)

	Lstat(name string) (fs.FileInfo, error)
	Rename(old, new string) error // replaces new, if it is a file
	Remove(name string) error
	List() ([]string, error) // in no order

	// Sync makes durable what names the directory has. Each call takes a fresh
	// descriptor, since one whose sync has failed must never be synced again.
	Sync() error

	Close() error
}

// File is one open file of an FS.
type File interface {
	io.Reader
	io.Writer
	Chmod(mode fs.FileMode) error
	Sync() error
	Close() error
}

// ErrMoved says that the path by which a directory was opened does not lead to it any more: it was moved, removed or
// unmounted, or something was mounted over it.
var ErrMoved = errors.New("the directory that was opened is no longer at its path")

// ErrLocked says that the directory is open already, in this process or another.
var ErrLocked = errors.New("directory is in use")

// OpenDir opens the directory at path for this process alone, until Close: a
// second open is ErrLocked. The directory and missing parents are created with
// mode 0700 and are durable when OpenDir returns. An existing directory is given
// mode 0700. One that another user owns is refused and left as it is.
//
// A crash leaves some of the directories, which the next OpenDir completes.
func OpenDir(path string) (FS, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	d, err := openDir(path)
	if err != nil {
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	return d, nil
}

func openDir(path string) (*osDir, error) {
	if err := makeDirs(path); err != nil {
		return nil, err
	}
	root, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	d := &osDir{path: path, root: root, user: uint32(os.Geteuid()), now: time.Now}
	if err = takeOver(root.Open(".")); err == nil {
		err = d.acquire()
	}
	if err == nil {
		d.opened, err = root.Stat(".")
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	d.stamps = hasStamps(d.lock)
	return d, nil
}

// openRoot opens nothing but a directory, or a symlink to one: a slash at the end keeps the system from waiting for a FIFO.
func openRoot(path string) (*os.Root, error) {
	if path == "" {
		return nil, errors.New("the path is empty") // with the slash it would be the root of the file system
	}
	return os.OpenRoot(path + "/")
}

// osDir is a directory of the operating system. All access goes through root, so
// that no name leads out of it, even if path comes to name another directory.
type osDir struct {
	path string // for errors
	root *os.Root
	user uint32 // who has opened it, and owns what is in it
	// anyUser says that others may own what is in it: a file server may map users.
	anyUser bool
	lock    *os.File // locked while it is open

	opened fs.FileInfo // tells the directory from every other

	stamps bool             // its files have stamps
	now    func() time.Time // by the clock that stamps files
}

// InPlace is ErrMoved if path names no directory now, or another one. Any other error says that it can't be told.
func (d *osDir) InPlace() error {
	now, err := os.Stat(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: nothing is at %s", ErrMoved, d.path)
	case err == nil && !os.SameFile(now, d.opened):
		return fmt.Errorf("%w: another one is at %s", ErrMoved, d.path)
	}
	return err
}

// noWait keeps the open of a FIFO from waiting. For files and directories it means nothing, but
// spares the four system calls by which os would try to set it.
const noWait = unix.O_NONBLOCK

func (d *osDir) Create(name string) (File, error) {
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|noWait, 0o600)
	if err != nil {
		return nil, d.in(err)
	}
	// A umask such as 0277 has taken bits away, and can't add any.
	if err := f.Chmod(0o600); err != nil {
		f.Close()
		return nil, err
	}
	return osFile{f, d}, nil
}

// Open opens what name itself names, and only a regular file: to open a device can set it
// going, and os.Root follows a symlink to another name in it, even with O_NOFOLLOW.
func (d *osDir) Open(name string) (File, fs.FileInfo, error) {
	named, err := d.root.Lstat(name)
	if err != nil {
		return nil, nil, d.in(err)
	}
	return d.openAs(name, named)
}

// openAs opens a file, if it is still the one that was named so.
func (d *osDir) openAs(name string, named fs.FileInfo) (File, fs.FileInfo, error) {
	if !named.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%w: %v", ErrNotRegular, named.Mode().Type())
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|noWait, 0)
	if err != nil {
		return nil, nil, d.in(barred(err, owner(named), d.user))
	}
	opened, err := f.Stat()
	if err == nil && !os.SameFile(opened, named) {
		err = &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
	}
	if err == nil && !opened.Mode().IsRegular() { // a new FIFO may have the inode of a file that is gone
		err = fmt.Errorf("%w: %v", ErrNotRegular, opened.Mode().Type())
	}
	if err == nil && !d.anyUser && owner(opened) != d.user {
		err = &OwnerError{Have: owner(opened), Want: d.user}
	}
	if err != nil {
		f.Close()
		return nil, nil, d.in(err)
	}
	return osFile{f, d}, opened, nil
}

// barred is why a file of a user can't be opened. If the system refuses it and it belongs to another user, that is why: another
// mode alone would not help.
func barred(err error, have, want uint32) error {
	if errors.Is(err, fs.ErrPermission) && have != want {
		return &OwnerError{Have: have, Want: want}
	}
	return err
}

// osFile is an os.File whose Sync is one call. That of os.File begins again when a signal has
// interrupted it, and the second may then report success for what the first has lost.
type osFile struct {
	*os.File
	dir *osDir
}

func (f osFile) Sync() error { return syncOnce(f.File) }

// Stamp tells the file as it is from what it was, if this system can.
func (f osFile) Stamp() (s Stamp, ok bool) {
	if !f.dir.stamps {
		return s, false
	}
	return stampAt(f.File, f.dir.now())
}

func (d *osDir) Lstat(name string) (fs.FileInfo, error) {
	info, err := d.root.Lstat(name)
	return info, d.in(err)
}

func (d *osDir) Rename(old, new string) error { return d.in(d.root.Rename(old, new)) }

func (d *osDir) Remove(name string) error { return d.in(d.root.Remove(name)) }

func (d *osDir) List() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, d.in(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	return names, d.in(err)
}

func (d *osDir) Sync() error {
	f, err := d.root.OpenFile(".", os.O_RDONLY|noWait, 0)
	if err != nil {
		return d.in(err)
	}
	return d.in(syncAndClose(f))
}

// Close gives up the lock last: another process must not meet us still at work. It unlocks
// before it closes, because a process that is just being started may have a copy of the
// descriptor.
func (d *osDir) Close() error {
	err := d.root.Close()
	if d.lock != nil {
		err = errors.Join(err, flock(d.lock, unix.LOCK_UN), d.lock.Close())
	}
	return d.in(err)
}

// in adds the directory to an error of d.root, which knows only names in it.
func (d *osDir) in(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", d.path, err)
}

// MakePrivate makes the directory at path and missing parents, with mode 0700. An existing directory is given
// mode 0700, if this user owns it: another user's is refused and left as it is.
func MakePrivate(path string) error {
	err := makeDirs(path)
	if err == nil {
		err = takeOver(os.Open(path + "/")) // nothing but a directory
	}
	if err != nil {
		return fmt.Errorf("make directory %s private: %w", path, err)
	}
	return nil
}

// takeOver refuses a directory that another user owns: its owner could swap files
// at will. It goes by descriptor, since its path may come to name another directory, and closes it.
func takeOver(f *os.File, err error) error {
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !owned(info) {
		return &OwnerError{Have: owner(info), Want: uint32(os.Geteuid())}
	}
	if info.Mode().Perm() == 0o700 {
		return nil
	}
	return f.Chmod(0o700)
}

// acquire takes the lock. The lock file is made after the directory has become
// durable, so where it exists there is nothing to make durable.
func (d *osDir) acquire() error {
	if _, err := d.root.Lstat(LockName); errors.Is(err, fs.ErrNotExist) {
		if err := syncParents(d.path); err != nil {
			return err
		}
	}
	f, err := d.root.OpenFile(LockName, os.O_CREATE|os.O_RDWR|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	if err := lock(f); err != nil {
		f.Close()
		return err
	}
	d.lock = f
	return nil
}

func lock(f *os.File) error {
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}

// flock is the system call, made again if a signal has interrupted it: network file systems
// wait for an answer.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return os.NewSyscallError("flock", err)
		}
	}
}

// makeDirs is os.MkdirAll with modes that no umask changes.
func makeDirs(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was faster
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, 0o700)
}

// syncParents makes path durable. It goes up through every directory that this
// user owns, new or not, because an earlier process may have created it and died
// before it synced. It ends where the file system does: a mount point was not made
// here, and what is above may be a file system that can't sync a directory.
func syncParents(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	for path != filepath.Dir(path) {
		path = filepath.Dir(path)
		parent, err := os.Stat(path)
		if err != nil {
			return err
		}
		if !owned(info) || device(parent) != device(info) {
			return nil
		}
		if err := syncDir(path); err != nil {
			return err
		}
		info = parent
	}
	return nil
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil // not ours to read, so what is in it was not made by us
	}
	if err != nil {
		return err
	}
	return syncAndClose(f)
}

func syncAndClose(f *os.File) error {
	err := syncOnce(f)
	return errors.Join(err, f.Close())
}

func owned(info fs.FileInfo) bool { return owner(info) == uint32(os.Geteuid()) }

func owner(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }

// device is the file system that a file is on.
func device(info fs.FileInfo) uint64 { return uint64(info.Sys().(*syscall.Stat_t).Dev) }
