package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// snapshotDir is where raft keeps snapshots, below its directory. A snapshot has no key material, but the host's data.
const snapshotDir = "snapshots"

// makePrivate takes the permissions of others away from a directory, and from all that lies in it: raft gives them by the
// umask, and so does who copies a snapshot into it. It follows no symlink. What is gone meanwhile is no error, nor is a file of
// another user, which the modes of the directories above keep from others.
func makePrivate(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && (e.IsDir() || e.Type().IsRegular()) {
			err = takeFromOthers(path, e)
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return err
	})
}

func takeFromOthers(path string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return err
	}
	return os.Chmod(path, info.Mode().Perm()&0o700)
}

// privateSnaps are raft's snapshots in a directory, which only this user can read.
type privateSnaps struct {
	raft.SnapshotStore
	dir string
}

// Create implements raft.SnapshotStore. It has made the files of the snapshot when it returns.
func (s privateSnaps) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, conf, confIndex, trans)
	if err != nil {
		return nil, err
	}
	if err := makePrivate(filepath.Join(s.dir, sink.ID()+".tmp")); err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	return sink, nil
}
