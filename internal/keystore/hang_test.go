package keystore_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
)

// frozenFS is a directory in which no sync of the names returns before thaw, once it is frozen.
type frozenFS struct {
	durable.FS
	frozen *atomic.Bool
	thaw   chan struct{}
}

func (f frozenFS) Sync() error {
	if f.frozen.Load() {
		<-f.thaw
	}
	return f.FS.Sync()
}

// TestWriteThatHangsIsReportedUntilItReturns: Report waits for nothing, and both changes are told.
func TestWriteThatHangsIsReportedUntilItReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk, frozen := keyringtest.NewDisk(), frozenFS{frozen: &atomic.Bool{}, thaw: make(chan struct{})}
		var err error
		if frozen.FS, err = disk.Open(); err != nil {
			t.Fatal(err)
		}
		s, err := openOn(t.Context(), frozen, []kek.KEK{kek.Inline()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var told atomic.Int32
		s.OnHang(func() { told.Add(1) })
		frozen.frozen.Store(true)
		began, wrote := time.Now(), make(chan error)
		go func() {
			_, err := put(t, s, meta.KeyID{1})
			wrote <- err
		}()
		look := func(when string, want time.Time, wantTold int32) {
			t.Helper()
			synctest.Wait()
			if since := s.Report(&meta.Ring{}).Hangs; !since.Equal(want) || told.Load() != wantTold {
				t.Errorf("%s: since %v, told %d times, want %v, %d", when, since, told.Load(), want, wantTold)
			}
		}
		time.Sleep(10 * time.Second)
		look("for a while", time.Time{}, 0)
		time.Sleep(time.Second)
		look("for too long", began, 1)
		close(frozen.thaw)
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		look("when it has returned", time.Time{}, 2)
	})
}
