package keyring_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// versionsOf are the versions of the key files of a server, in the order of its keys.
func versionsOf(t *testing.T, s *keyringtest.Server) (versions []int) {
	t.Helper()
	for _, k := range s.Keyring.Keys() {
		f, err := nks.DecodeFile(s.Disk.Bytes(nks.FileName(k.ID)))
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, f.Version)
	}
	return versions
}

// TestKeyFilesAreOfVersion2WhenAllServersReadIt, and not before: while one runs the build before, each may go back to it. The one
// that is upgraded last opens the door for all. One that does not answer keeps it closed.
func TestKeyFilesAreOfVersion2WhenAllServersReadIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		builds := map[raft.ServerID]meta.Build{"s1": meta.This, "s2": meta.This, "s3": first}
		c := mixed(t, 3, builds)
		all := func(when string, version int, but ...*keyringtest.Server) {
			t.Helper()
			keyringtest.RotateWhenReady(t, c)
			time.Sleep(time.Minute) // in which they ask again, and write again
			for _, s := range c.Servers {
				if slices.Contains(but, s) {
					continue
				}
				for _, v := range versionsOf(t, s) {
					if v != version {
						t.Errorf("%s: %s has files of the versions %v", when, s.ID, versionsOf(t, s))
						break
					}
				}
				if st, err := s.Keyring.Status(t.Context()); err != nil || st.OnOldKEKs > 0 {
					t.Errorf("%s: %s: %d files are outdated, %v", when, s.ID, st.OnOldKEKs, err)
				}
			}
		}
		all("one is older", 1)
		s3 := c.Server("s3")
		c.Stop(s3)
		all("one does not answer", 1, s3)
		time.Sleep(10 * time.Minute) // the others ask more and more seldom
		builds["s3"] = meta.This
		c.Start(s3)
		all("all read version 2", 2)
	})
}

// TestFirstKeyFileIsOfVersion2 in a cluster of one: there is nobody to ask.
func TestFirstKeyFileIsOfVersion2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{})
		if got := versionsOf(t, keyringtest.Ready(t, c)); len(got) != 1 || got[0] != 2 {
			t.Errorf("files of the versions %v", got)
		}
	})
}

// TestReadsFilesIsWhatIsRead: the FSM's build says it to other servers.
func TestReadsFilesIsWhatIsRead(t *testing.T) {
	if got := meta.This.ReadsFiles(); got != nks.FileVersion {
		t.Errorf("it says %d, and reads %d", got, nks.FileVersion)
	}
	if got := first.ReadsFiles(); got != 1 {
		t.Errorf("a build of version 1 reads %d", got)
	}
}
