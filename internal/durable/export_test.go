package durable

import (
	"io/fs"
	"time"
)

// OpenAs opens a file of OpenDir's that had this info a moment ago.
func OpenAs(fsys FS, name string, named fs.FileInfo) (File, fs.FileInfo, error) {
	return fsys.(*osDir).openAs(name, named)
}

// ReadOpened is ReadFile of a path that named a regular file a moment ago.
var ReadOpened = readOpened

// StampAt is the stamp of a file of OpenDir's, as it is at a time.
func StampAt(fsys FS, name string, now time.Time) (s Stamp, ok bool, err error) {
	f, _, err := fsys.Open(name)
	if err != nil {
		return s, false, err
	}
	defer f.Close()
	fsys.(*osDir).now = func() time.Time { return now }
	s, ok = f.(stamped).Stamp()
	return s, ok, nil
}
