package cluster

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// Due reports whether the log is too long.
func (d *Disk) Due() bool { return d.due() }

// Disown takes out of a raft directory whose it is, as older builds leave it.
func Disown(t testing.TB, path string) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(path, "raft.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		conf := tx.Bucket([]byte("conf"))
		if conf.Get(ownerKey) == nil {
			return errors.New("it was nobody's")
		}
		return conf.Delete(ownerKey)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// OwnEmpty makes a raft directory without a log, in which that server has begun.
func OwnEmpty(t testing.TB, path string, id raft.ServerID) {
	t.Helper()
	dir, err := OpenDir(path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(dir.own(id, ""), dir.Close()); err != nil {
		t.Fatal(err)
	}
}
