package scenarios_test

import (
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore/keystoretest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestRemovalThatWasUndoneBeforeItsFileWasSetAsideLeavesNothing: neither is a file counted that
// Rewrap can't find.
func TestRemovalThatWasUndoneBeforeItsFileWasSetAsideLeavesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		restore := keyringtest.TakeSnapshot(t, c.Leader())
		s := keyringtest.Follower(c)
		s.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == "rename" {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
		time.Sleep(10 * time.Hour)
		restore(c.Leader())
		time.Sleep(10 * time.Hour)
		s.Disk.OnOp(nil)
		time.Sleep(10 * time.Hour)
		keyringtest.AwaitKeys(t, c)
		st, _ := s.Keyring.Status(t.Context())
		if err := s.Keyring.Rewrap(t.Context()); err != nil || st.OnOldKEKs != 0 {
			t.Errorf("%d on old KEKs, missing %v; rewrap: %v; files %v", st.OnOldKEKs, st.Missing, err, keyringtest.FilesOf(s, old))
		}
	})
}

// TestServersOwnFileComesBackBeforeAPeersCopy, which would leave it aside for ever.
func TestServersOwnFileComesBackBeforeAPeersCopy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, v, restore := keyringtest.WithRemovedKey(t)
		late := keyringtest.Follower(c)
		c.Partition(late)
		restore(c.Leader())
		time.Sleep(10 * time.Hour)
		c.Partition()
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
		if got := keyringtest.FilesOf(late, old); len(got) != 1 {
			t.Errorf("%s: files %v", late.ID, got)
		}
	})
}

// TestRemovedFileThatCannotBeTakenBackIsFetched from a peer that could.
func TestRemovedFileThatCannotBeTakenBackIsFetched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _, v, restore := keyringtest.WithRemovedKey(t)
		s := keyringtest.Follower(c)
		s.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == "rename" && strings.Contains(op.Name, ".removed-") {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		restore(c.Leader())
		keyringtest.AwaitKeys(t, c)
		v.Check(c)
	})
}

// TestNomadFileDoesNotHideARemovedOne: the file that was set aside is taken back beside it.
func TestNomadFileDoesNotHideARemovedOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, v, restore := keyringtest.WithRemovedKey(t)
		planted := keystoretest.NewNomadKey(t, 1, "damaged")
		planted.ID = meta.KeyID(old)
		for _, s := range c.Servers {
			for name, b := range planted.Files(t) {
				s.Disk.Plant(name, 0o600, b)
			}
		}
		restore(c.Leader())
		time.Sleep(10 * time.Hour)
		for _, s := range c.Servers {
			st, _ := s.Keyring.Status(t.Context())
			if len(st.Missing) > 0 {
				t.Errorf("%s: missing %v, files %v", s.ID, st.Missing, keyringtest.FilesOf(s, old))
			}
		}
		v.Check(c)
	})
}

// TestPrepublishedKeyThatCameBackIsNotDropped before its file has been taken back.
func TestPrepublishedKeyThatCameBackIsNotDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _, _ := keyringtest.WithOldKey(t)
		l := c.Leader().Keyring
		later, err := l.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(100 * 24 * time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		restore := keyringtest.TakeSnapshot(t, c.Leader())
		keyringtest.Remove(t, c, later.ID, keyring.RemoveOptions{})
		time.Sleep(10 * time.Hour)
		restore(c.Leader())
		time.Sleep(10 * time.Hour)
		if keyringtest.Ring(c.Leader().FSM).Key(meta.KeyID(later.ID)) == nil {
			t.Errorf("dropped: files %v", keyringtest.FilesOf(c.Leader(), later.ID))
		}
	})
}

// TestRemoveNowHurriesAnEarlierRemoval.
func TestRemoveNowHurriesAnEarlierRemoval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
		time.Sleep(10 * time.Hour)
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Now: true})
		time.Sleep(10 * time.Hour)
		for _, s := range c.Servers {
			if got := keyringtest.FilesOf(s, old); len(got) != 0 {
				t.Errorf("%s: files %v", s.ID, got)
			}
		}
	})
}

// TestFilesOfRemovedKeysDoNotWaitForEachOther: one can't be set aside, and the others are at the first try.
func TestFilesOfRemovedKeysDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _, v := keyringtest.WithOldKey(t)
		keyringtest.Rotate(t, c, v, 3)
		keyringtest.AwaitKeys(t, c)
		s := keyringtest.Follower(c)
		failed := make(chan struct{})
		var once sync.Once
		s.Disk.OnOp(func(op keyringtest.Op) (f keyringtest.Fault) {
			if _, keys := nks.ParseFileName(op.Name); keys && op.Kind == "rename" { // not one that is being written
				once.Do(func() { f.Err = syscall.EIO; close(failed) })
			}
			return f
		})
		var removed []keyring.KeyID
		var all []meta.Command                     // in one entry: the server learns of them together
		for _, key := range s.Keyring.Keys()[1:] { // all but the active one
			all = append(all, meta.Command{Remove: &meta.Remove{ID: meta.KeyID(key.ID), From: meta.State(key.State), Force: true, Time: time.Now().UTC().Round(0)}})
			removed = append(removed, key.ID)
		}
		if err := keyringtest.Propose(c.Leader().Raft, all...); err != nil {
			t.Fatal(err)
		}
		<-failed
		synctest.Wait() // no time passes
		left := slices.DeleteFunc(removed, func(id keyring.KeyID) bool { return s.Disk.Bytes(nks.FileName(id)) == nil })
		if len(left) != 1 {
			t.Errorf("at the first try %d files are left under their names", len(left))
		}
	})
}
