package node_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"example.com/keyring/node"
)

// TestOthersReadNothingOfANode: its directories and files are its user's alone, also those that were there with other
// modes, as after a copy.
func TestOthersReadNothingOfANode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"raft", "keystore"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, when := range []string{"new", "after a copy"} {
		n := startAlone(t, dir)
		if err := n.Keyring().WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := node.SnapshotRaft(n); err != nil {
			t.Fatal(err)
		}
		closeNode(t, n)
		files := 0
		eachBelow(t, dir, func(path string, mode fs.FileMode) {
			if files++; mode.Perm()&0o077 != 0 {
				t.Errorf("%s: %v %s", when, mode, path)
			}
			if err := os.Chmod(path, mode.Perm()|mode.Perm()>>3|mode.Perm()>>6); err != nil {
				t.Error(err)
			}
		})
		if files < 8 { // two directories, raft.db, snapshots with one of two files, keystore.id, a key
			t.Errorf("%s: only %d files", when, files)
		}
	}
}

func eachBelow(t *testing.T, dir string, do func(path string, mode fs.FileMode)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err == nil {
			do(path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
