package durable

// How files of a Dir are read, and what is common to all that reads.

import (
	"errors"
	"fmt"
	"io"
	"syscall"
)

// Read returns the content of a regular file of at most limit bytes, and changes nothing. It opens
// nothing else: other kinds of file are ErrNotRegular, larger ones ErrTooLarge, those of
// another user ErrForeign. A file that is not there is fs.ErrNotExist.
func (d *Dir) Read(name string, limit int64) ([]byte, error) {
	data, _, err := d.read(name, limit, func([]byte) bool { return false })
	return data, wrap("read", name, err)
}

// ReadOwn is Read of a file on which the caller relies, if by its content it is one of its own. Such a file is synced, unless
// it is known to have been: who has put it there may not have done so. What was read is durable if unsynced is nil, once the name is, which a
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
	return data, d.syncFile(name, f), nil
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
