package durable

import "io/fs"

// OpenAs opens a file of OpenDir's that had this info a moment ago.
func OpenAs(fsys FS, name string, named fs.FileInfo) (File, fs.FileInfo, error) {
	return fsys.(*osDir).openAs(name, named)
}

// ReadOpened is ReadFile of a path that named a regular file a moment ago.
var ReadOpened = readOpened
