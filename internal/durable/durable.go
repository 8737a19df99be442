// Package durable keeps whole files in one directory so that a crash at any
// point, a full disk or a failed sync loses none of them. No other package of
// this module writes files.
//
// A file is created, replaced whole by rename, set aside under another name, or
// removed; nothing is ever written in place. So a reader, also after a crash, finds
// under a name the whole old content or the whole new one, and never a mixture. A
// crash can also leave temporary files, which Sweep removes.
//
// Limits: it trusts the device to keep what fsync has acknowledged, and it trusts the
// owner of the directory, the only user who can change names in it besides this
// process.
package durable

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"
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
}

// New returns the Dir on fsys, which it owns from now on.
func New(fsys FS) *Dir { return &Dir{fs: fsys, repaired: func(string, fs.FileMode) {}} }

// OnRepair sets the function that is called for every file whose mode ReadOwn has set to 0600. Call it before; f may be
// called from several goroutines.
func (d *Dir) OnRepair(f func(name string, was fs.FileMode)) { d.repaired = f }

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

// Named is one file: its plain name and its content.
type Named struct {
	Name string
	Data []byte
}

// Write makes each file hold exactly its data, creating or replacing it. The
// result has one element a file: nil if the file is durable, else the reason why
// it may not be. A failure of one file fails that file alone. After an error the
// name holds the whole old content or the whole new one, and the file may be
// there without being durable: the caller must write it again, whole, before it
// relies on it. If a name is given twice, the later data stays.
//
// The steps, and what a crash in or after each leaves:
//
//  1. Every file's data goes to a temporary file. A crash leaves every name as
//     it was, and temporary files, empty, torn or whole.
//  2. Every temporary file is synced and closed. A crash leaves the same.
//  3. Every temporary file is renamed to its name. A crash leaves each name with
//     its old content or its new one, whole, since nothing is renamed before its
//     content is synced. Which of the two is chance, each file by itself.
//  4. The directory is synced, once. From here on each name has its new content.
//
// A file that fails in steps 1 to 3 drops out, and its temporary file is removed.
// If step 4 fails, all files that were renamed fail. No descriptor is synced
// again after its sync has failed, because the kernel may by then have marked
// the lost pages clean and report success.
func (d *Dir) Write(files ...Named) []error {
	d.writing.Lock()
	defer d.writing.Unlock()
	return d.write(files...)
}

func (d *Dir) write(files ...Named) []error {
	temps := make([]*temp, len(files))
	for i, f := range files {
		temps[i] = &temp{Named: f, name: tempName()}
	}
	for open := range slices.Chunk(temps, maxOpen) {
		for _, t := range open {
			t.write(d.fs)
		}
		syncAll(open)
	}
	d.publish(temps)

	errs := make([]error, len(files))
	for i, t := range temps {
		errs[i] = wrap("write", t.Name, t.err)
	}
	return errs
}

// publish renames the files that are synced, removes those that failed, and syncs the directory.
func (d *Dir) publish(temps []*temp) {
	renamed := false
	for _, t := range temps {
		if t.err == nil {
			t.err = d.fs.Rename(t.name, t.Name)
			renamed = renamed || t.err == nil
		}
		if t.err != nil {
			// Also after a failed create, which may have created the file. If it can't be
			// removed now, Sweep does it.
			_ = d.fs.Remove(t.name)
		}
	}
	if !renamed {
		return
	}
	if err := d.fs.Sync(); err != nil {
		for _, t := range temps {
			if t.err == nil {
				t.err = err
			}
		}
	}
}

// Read returns the content of a regular file of at most limit bytes, and changes nothing. It opens
// nothing else: other kinds of file are ErrNotRegular, larger ones ErrTooLarge, those of
// another user ErrForeign. A file that is not there is fs.ErrNotExist.
func (d *Dir) Read(name string, limit int64) ([]byte, error) {
	data, _, err := d.read(name, limit, func([]byte) bool { return false })
	return data, wrap("read", name, err)
}

// ReadOwn is Read of a file on which the caller relies, if by its content it is one of its own. Such a file is synced:
// who has put it there may not have done so. What was read is durable if unsynced is nil, once the name is, which a
// later Sync of the directory sees to. When unsynced is not nil, only to write the file again makes it so. A file that
// others could read is made 0600, as it was when it was created.
func (d *Dir) ReadOwn(name string, limit int64, own func(data []byte) bool) (data []byte, unsynced, err error) {
	data, unsynced, err = d.read(name, limit, own)
	return data, wrap("sync", name, unsynced), wrap("read", name, err)
}

func (d *Dir) read(name string, limit int64, own func([]byte) bool) (data []byte, unsynced, err error) {
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	f, info, err := d.fs.Open(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err = readAll(f, info.Size(), limit)
	if err != nil || !own(data) {
		return data, nil, err
	}
	if was := info.Mode().Perm(); was != 0o600 && f.Chmod(0o600) == nil { // on a read-only mount it is read as it is
		d.repaired(name, was)
	}
	if err := f.Sync(); err != nil && !hasNoSync(err) {
		return data, err, nil
	}
	return data, nil, nil
}

// hasNoSync reports whether an error of a sync says that the file system has none: it can't be written.
func hasNoSync(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EROFS) || errors.Is(err, errors.ErrUnsupported)
}

// readAll reads a file of that size.
func readAll(f File, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, limit)
	}
	// One byte more, since it may have grown. A read that stops short of it has found the
	// end: to ask for that again is one system call of six.
	data := make([]byte, size+1)
	n, err := io.ReadAtLeast(f, data, int(max(size, 1)))
	if int64(n) > size {
		return nil, fmt.Errorf("%w: %w", ErrTooLarge, ErrGrew)
	}
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	return data[:n], nil
}

// SetAside renames name, whatever kind of file it is, to "<name>.<why>-<n>" with
// the first n from 1 that is free, so that nothing is overwritten, and returns
// the new name. A crash leaves the file under one of the two names or, on a file
// system without a journal, under both.
//
// After an error the file may have been renamed, to the name that is returned if there is one,
// without the rename being durable: call again. If name is not there, the directory is synced,
// which makes an earlier rename durable, and the error is fs.ErrNotExist.
func (d *Dir) SetAside(name, why string) (string, error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	aside, err := d.setAside(name, why)
	return aside, wrap("set aside", name, err)
}

func (d *Dir) setAside(name, why string) (string, error) {
	if err := errors.Join(checkName(name), checkName(why)); err != nil {
		return "", err
	}
	if _, err := d.fs.Lstat(name); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		return "", cmp.Or(d.fs.Sync(), err)
	}
	aside, err := d.free(name + "." + why + "-")
	if err != nil {
		return "", err
	}
	if err := d.fs.Rename(name, aside); err != nil {
		return aside, err
	}
	return aside, d.fs.Sync()
}

// KeepAside writes data under the name that SetAside would give to name, which stays as it is, and returns that name. A
// crash leaves all of the copy or none.
func (d *Dir) KeepAside(name, why string, data []byte) (string, error) {
	d.writing.Lock()
	defer d.writing.Unlock()
	if err := errors.Join(checkName(name), checkName(why)); err != nil {
		return "", err
	}
	aside, err := d.free(name + "." + why + "-")
	if err != nil {
		return "", wrap("keep aside", name, err)
	}
	return aside, d.write(Named{aside, data})[0]
}

// free returns the first of prefix1, prefix2 and so on that names nothing. It
// stays free: other processes are locked out, other calls wait for d.writing.
func (d *Dir) free(prefix string) (string, error) {
	for n := 1; ; n++ {
		name := prefix + strconv.Itoa(n)
		_, err := d.fs.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
	}
}

// asidePattern matches the names that SetAside gives.
var asidePattern = regexp.MustCompile(`^(.+)\.([a-z-]+)-([1-9][0-9]*)$`)

// ParseAside reports whether SetAside may have given a file this name, which it had before,
// and why it was set aside.
func ParseAside(aside string) (name, why string, ok bool) {
	m := asidePattern.FindStringSubmatch(aside)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// TakeBack reverses SetAside: it renames aside to name, unless there is a file of that name
// again, which is fs.ErrExist. A crash leaves the file under one of the
// two names or, on a file system without a journal, under both. After an error the file may
// have been renamed without the rename being durable: Sync before relying on it.
func (d *Dir) TakeBack(aside, name string) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	return wrap("take back", aside, d.takeBack(aside, name))
}

func (d *Dir) takeBack(aside, name string) error {
	_, _, ok := ParseAside(aside)
	if err := errors.Join(checkName(aside), checkName(name)); err != nil || !ok {
		return cmp.Or(err, errors.New("it was not set aside"))
	}
	_, err := d.fs.Lstat(name)
	if err == nil {
		return fs.ErrExist
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.fs.Rename(aside, name); err != nil {
		return err
	}
	return d.fs.Sync()
}

// Remove unlinks name for good. If there is no such name it is no error, and the directory
// is synced all the same, so that a second call after an error makes the removal durable.
// A crash leaves the whole file or none.
func (d *Dir) Remove(name string) error {
	d.writing.Lock()
	defer d.writing.Unlock()
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
	d.writing.Lock()
	defer d.writing.Unlock()
	return d.fs.Sync()
}

// List returns the names in the directory, sorted, without the lock file and
// temporary files. They may be of any kind of file.
func (d *Dir) List() ([]string, error) {
	names, err := d.fs.List()
	if err != nil {
		return nil, wrap("list", "directory", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return name == LockName || IsTemp(name)
	})
	slices.Sort(names)
	return names, nil
}

// Sweep removes the temporary files that a crash or a failed Write has left: regular files
// whose name is one that Write gives. A file that can't be removed does not stop it. Call it
// before the first Write; calling again is safe.
func (d *Dir) Sweep() error {
	d.writing.Lock()
	defer d.writing.Unlock()
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
	d.writing.Lock()
	defer d.writing.Unlock()
	return d.fs.Close()
}

// maxOpen bounds the descriptors that one Write holds, maxSyncs how many of them
// it syncs at once. File systems commit syncs that wait together in one go: on ext4,
// 64 files take two thirds of the time that they take one after another, and 500 files a third
// to a quarter less than 16 at a time, and a fifth less if 256 of them are created before the
// first is synced than if 64 are.
const (
	maxOpen  = 256
	maxSyncs = 64
)

// temp is a file that Write is writing. After its first error nothing more is done with it.
type temp struct {
	Named
	name string // before it is renamed
	file File   // nil if it could not be created
	err  error
}

func (t *temp) write(fsys FS) {
	if t.err = checkName(t.Name); t.err != nil {
		return
	}
	if t.file, t.err = fsys.Create(t.name); t.err != nil {
		t.file = nil
		return
	}
	_, t.err = t.file.Write(t.Data)
}

// sync syncs the file unless it has failed, and closes it in any case.
func (t *temp) sync() {
	if t.file == nil {
		return
	}
	if t.err == nil {
		t.err = t.file.Sync()
	}
	if err := t.file.Close(); t.err == nil {
		t.err = err
	}
}

// syncAll syncs and closes temps. The caller is one of the workers, so a single
// file needs no other goroutine.
func syncAll(temps []*temp) {
	queue := make(chan *temp, len(temps))
	for _, t := range temps {
		queue <- t
	}
	close(queue)
	work := func() {
		for t := range queue {
			t.sync()
		}
	}
	var wg sync.WaitGroup
	for range min(len(temps), maxSyncs) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
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
