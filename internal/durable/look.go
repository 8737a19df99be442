package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Look is a directory that is only looked at, beside the process that may have it open: nothing is locked, created or
// changed. What it says of a file is what the owner of the directory would find, who alone can open it with OpenDir.
type Look struct{ dir *osDir }

// OpenLook opens the directory at path to be looked at. The caller closes it.
func OpenLook(path string) (*Look, error) {
	root, err := openRoot(path)
	if err != nil {
		return nil, err
	}
	info, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &Look{&osDir{path: path, root: root, user: owner(info)}}, nil
}

// List returns all names in the directory, sorted.
func (l *Look) List() ([]string, error) {
	names, err := l.dir.List()
	slices.Sort(names)
	return names, err
}

// Read is Dir.Read, and returns the mode of the file as well. A file that its owner may not read is fs.ErrPermission, also
// for root.
func (l *Look) Read(name string, limit int64) ([]byte, fs.FileMode, error) {
	f, info, err := l.dir.Open(name)
	if err != nil {
		return nil, 0, wrap("read", name, err)
	}
	defer f.Close()
	if l.dir.user != 0 && info.Mode().Perm()&0o400 == 0 {
		return nil, 0, wrap("read", name, fmt.Errorf("%w: its mode is %v", fs.ErrPermission, info.Mode()))
	}
	b, err := readAll(f, info.Size(), limit)
	return b, info.Mode(), wrap("read", name, err)
}

// Close closes the directory.
func (l *Look) Close() error { return l.dir.root.Close() }
