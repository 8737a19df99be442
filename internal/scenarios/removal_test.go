package scenarios_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

const undo = 7 * 24 * time.Hour // the default

// TestRemovedKeyIsGoneAtOnceAndFromDiskAfterUndo, also on a server that was down,
// and does not come back from there.
func TestRemovedKeyIsGoneAtOnceAndFromDiskAfterUndo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, v := keyringtest.WithOldKey(t)
		down := keyringtest.Follower(c)
		c.Stop(down)
		live := c.Live()
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
		if _, err := c.Leader().Keyring.Decrypt(v.Sealed[0], []byte("aad")); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Errorf("the leader still opens: %v", err)
		}
		synctest.Wait()
		time.Sleep(time.Hour) // of heartbeats
		for _, s := range live {
			if _, err := s.Keyring.Decrypt(v.Sealed[0], []byte("aad")); !errors.Is(err, keyring.ErrUnknownKey) {
				t.Errorf("%s: %v", s.ID, err)
			}
			if got := keyringtest.FilesOf(s, old); len(got) != 1 || got[0] != nks.FileName(old)+".removed-1" {
				t.Errorf("%s: files %v while it can be undone", s.ID, got)
			}
		}
		time.Sleep(undo - 2*time.Hour)
		for _, s := range live {
			if got := keyringtest.FilesOf(s, old); len(got) != 1 {
				t.Errorf("%s: files %v before the undo time is over", s.ID, got)
			}
		}
		time.Sleep(3 * time.Hour)
		for _, s := range live {
			if got := keyringtest.FilesOf(s, old); len(got) != 0 {
				t.Errorf("%s: files %v after the undo time", s.ID, got)
			}
		}
		c.Start(down)
		time.Sleep(10 * time.Hour)
		for _, s := range c.Live() {
			if got := keyringtest.FilesOf(s, old); len(got) != 0 {
				t.Errorf("%s: files %v after all are back", s.ID, got)
			}
			if st, err := s.Keyring.Status(t.Context()); err != nil || len(st.Orphans)+len(st.Missing) > 0 {
				t.Errorf("%s: %v, %v", s.ID, st.Problems, err)
			}
		}
		v.Sealed = v.Sealed[1:]
		if got, err := c.Leader().Keyring.Decrypt(v.Sealed[0], []byte("aad")); err != nil || string(got) != "record 1" {
			t.Errorf("the key that stays: %q, %v", got, err)
		}
	})
}

// TestRestoreWithinTheUndoTimeBringsARemovedKeyBack to every server, from its own file.
func TestRestoreWithinTheUndoTimeBringsARemovedKeyBack(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c, old, v := keyringtest.WithOldKey(t)
			restore := keyringtest.TakeSnapshot(t, c.Leader())
			keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
			time.Sleep(undo - 10*time.Hour)
			if restart {
				for _, s := range c.Servers {
					c.Restart(s)
				}
				keyringtest.Ready(t, c)
			}
			c.OnEvent(func(e keyringtest.Event) keyringtest.Reply { // each has it from its own disk
				for _, s := range c.Servers {
					if keyringtest.IsFetch(e, s.ID) {
						return keyringtest.Reply{Err: errors.New("no fetching")}
					}
				}
				return keyringtest.Reply{}
			})
			restore(c.Leader())
			keyringtest.AwaitKeys(t, c)
			v.Check(c)
			time.Sleep(2 * undo)
			v.Check(c)
			for _, s := range c.Servers {
				if got := keyringtest.FilesOf(s, old); len(got) != 1 || got[0] != nks.FileName(old) {
					t.Errorf("%s: files %v", s.ID, got)
				}
			}
			keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
			time.Sleep(undo + 2*time.Hour)
			for _, s := range c.Servers {
				if got := keyringtest.FilesOf(s, old); len(got) != 0 {
					t.Errorf("%s: removed again, files %v", s.ID, got)
				}
			}
		})
	}
}

// TestServerThatIsCutOffUnlinksNothing: the removal that it knows of was undone meanwhile.
func TestServerThatIsCutOffUnlinksNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, v, restore := keyringtest.WithRemovedKey(t)
		for _, cut := range []*keyringtest.Server{keyringtest.Follower(c), c.Leader()} { // each in its turn
			c.Partition(cut)
			time.Sleep(20 * time.Hour)
			leader := c.Leader()
			if leader == cut {
				t.Fatal("the server that is cut off leads")
			}
			restore(leader)
			time.Sleep(2 * undo)
			if got := keyringtest.FilesOf(cut, old); len(got) != 1 {
				t.Errorf("%s: files %v", cut.ID, got)
			}
			c.Partition()
			keyringtest.AwaitKeys(t, c)
			v.Check(c)
			keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
			time.Sleep(10 * time.Hour)
		}
	})
}

// TestRemoveNowLeavesNoFile, and after it a restored snapshot says what is missing.
func TestRemoveNowLeavesNoFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		restore := keyringtest.TakeSnapshot(t, c.Leader())
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true, Now: true})
		time.Sleep(10 * time.Hour)
		for _, s := range c.Servers {
			if got := keyringtest.FilesOf(s, old); len(got) != 0 {
				t.Errorf("%s: files %v", s.ID, got)
			}
		}
		restore(c.Leader())
		time.Sleep(10 * time.Hour)
		for _, s := range c.Servers {
			if st, err := s.Keyring.Status(t.Context()); err != nil || len(st.Missing) != 1 || st.Missing[0] != old {
				t.Errorf("%s: missing %v, %v", s.ID, st.Missing, err)
			}
		}
	})
}

// TestRemoveTakesAlsoWhatTheKeysFileWasBefore: a damaged file that was set aside may be whole
// enough to have the key in it. One that is another key's stays.
func TestRemoveTakesAlsoWhatTheKeysFileWasBefore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		s, name := keyringtest.Follower(c), nks.FileName(old)
		for _, other := range c.Leader().Keyring.Keys() {
			if other.ID != old {
				s.Disk.Plant(name, 0o600, s.Disk.Bytes(nks.FileName(other.ID)))
			}
		}
		c.Restart(s)
		time.Sleep(10 * time.Hour)
		keyringtest.AwaitKeys(t, c)
		s.Disk.Plant(name, 0o600, s.Disk.Bytes(name)[1:])
		c.Restart(s)
		time.Sleep(10 * time.Hour)
		keyringtest.AwaitKeys(t, c)
		if got := keyringtest.FilesOf(s, old); len(got) != 3 {
			t.Fatalf("files %v", got)
		}
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
		time.Sleep(undo + 2*time.Hour)
		if got := keyringtest.FilesOf(s, old); len(got) != 1 || got[0] != name+".misnamed-1" {
			t.Errorf("files %v", got)
		}
		if st, err := s.Keyring.Status(t.Context()); err != nil || len(st.SetAside) > 0 { // another process set it aside
			t.Errorf("set aside: %v, %v", st.SetAside, err)
		}
	})
}

// TestAnotherKeysFileUnderTheNameOfARemovedOneStays, also when it came there while the server ran: it may
// be the only copy.
func TestAnotherKeysFileUnderTheNameOfARemovedOneStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		s, name := keyringtest.Follower(c), nks.FileName(old)
		anothers := s.Disk.Bytes(nks.FileName(keyringtest.Ring(s.FSM).Active().ID))
		s.Disk.Plant(name, 0o600, anothers)
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
		time.Sleep(undo + 10*time.Hour) // virtual
		if got := keyringtest.FilesOf(s, old); len(got) != 1 || !bytes.Equal(s.Disk.Bytes(got[0]), anothers) {
			t.Errorf("files %v", got)
		}
	})
}

// TestRemoveRefuses what could lose data.
func TestRemoveRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, v := keyringtest.WithOldKey(t)
		leader := c.Leader().Keyring
		active := leader.Keys()[0].ID
		for what, tt := range map[string]struct {
			k    *keyring.Keyring
			id   keyring.KeyID
			o    keyring.RemoveOptions
			want error
		}{
			"an inactive key": {leader, old, keyring.RemoveOptions{}, keyring.ErrNoData},
			"on a follower":   {keyringtest.Follower(c).Keyring, old, keyring.RemoveOptions{Force: true}, keyring.ErrNotLeader},
			"an unknown key":  {leader, keyring.KeyID{9}, keyring.RemoveOptions{Force: true}, keyring.ErrUnknownKey},
		} {
			if err := tt.k.Remove(t.Context(), tt.id, tt.o); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := leader.Remove(t.Context(), active, keyring.RemoveOptions{Force: true}); err == nil || !strings.Contains(err.Error(), "active key") {
			t.Errorf("the active key: %v", err)
		}
		v.Check(c)

		later, err := leader.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(undo)})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // it has sealed nothing, and removing it again has no effect
			keyringtest.Remove(t, c, later.ID, keyring.RemoveOptions{})
		}
		time.Sleep(2 * undo)
		v.Check(c)
		if keys := leader.Keys(); len(keys) != 2 || keys[0].ID != active {
			t.Errorf("%v", keys)
		}
	})
}

// TestFileThatTurnsUpAfterItsKeyWasRemovedIsRemovedToo, as when a disk comes back from repair.
func TestFileThatTurnsUpAfterItsKeyWasRemovedIsRemovedToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		s := keyringtest.Follower(c)
		file := s.Disk.Bytes(nks.FileName(old))
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true, Now: true})
		time.Sleep(10 * time.Hour)
		s.Disk.Plant(nks.FileName(old), 0o600, file)
		c.Restart(s)
		keyringtest.Ready(t, c)
		time.Sleep(10 * time.Hour)
		if got := keyringtest.FilesOf(s, old); len(got) != 0 {
			t.Errorf("files %v", got)
		}
	})
}

// TestRemovedKeyIsNoConcernOfOldKEKs: its file is on its way to be set aside, and as it should be.
func TestRemovedKeyIsNoConcernOfOldKEKs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, old, _ := keyringtest.WithOldKey(t)
		keyringtest.Remove(t, c, old, keyring.RemoveOptions{Force: true})
		st, err := c.Leader().Keyring.Status(t.Context())
		if err != nil || st.OnOldKEKs > 0 {
			t.Errorf("%d key files on old KEKs, %v", st.OnOldKEKs, err)
		}
	})
}
