package durable

// How files are set aside, and taken back.

import (
	"cmp"
	"errors"
	"io/fs"
	"regexp"
	"strconv"
)

// SetAside renames name, whatever kind of file it is, to "<name>.<why>-<n>" with
// the first n from 1 that is free, so that nothing is overwritten, and returns
// the new name. A crash leaves the file under one of the two names or, on a file
// system without a journal, under both.
//
// After an error the file may have been renamed, to the name that is returned if there is one,
// without the rename being durable: call again. If name is not there, the directory is synced,
// which makes an earlier rename durable, and the error is fs.ErrNotExist.
func (d *Dir) SetAside(name, why string) (string, error) {
	defer d.change(1)()
	aside, err := d.setAside(name, why)
	return aside, wrap("set aside", name, err)
}

func (d *Dir) setAside(name, why string) (string, error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	if _, err := d.fs.Lstat(name); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		return "", cmp.Or(d.fs.Sync(), err)
	}
	aside, err := d.freeAside(name, why)
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
	defer d.change(1)()
	aside, err := d.freeAside(name, why)
	if err != nil {
		return "", wrap("keep aside", name, err)
	}
	return aside, d.write(Named{aside, data})[0]
}

// freeAside returns the first name that SetAside may give and that names nothing. It
// stays free: other processes are locked out, other calls wait for d.writing.
func (d *Dir) freeAside(name, why string) (string, error) {
	if err := errors.Join(checkName(name), checkName(why)); err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		aside := name + "." + why + "-" + strconv.Itoa(n)
		_, err := d.fs.Lstat(aside)
		if errors.Is(err, fs.ErrNotExist) {
			return aside, nil
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
	defer d.change(1)()
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
