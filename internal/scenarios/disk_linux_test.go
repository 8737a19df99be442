package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"golang.org/x/sys/unix"
)

// mount mounts a small file system, where that may be done.
func mount(t *testing.T) (dir string, ok bool) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=96k,nr_inodes=32,mode=0700"); err != nil {
		if os.Getenv("CI") != "" {
			t.Errorf("mount: %v", err)
		}
		t.Logf("nothing tested: there is no file system of our own: %v", err)
		return "", false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, true
}

// troubles are what a file system can be in that is mounted at dir.
var troubles = []struct {
	name        string
	errno       syscall.Errno
	begin, over func(t *testing.T, dir string)
}{
	{"no space", syscall.ENOSPC, func(t *testing.T, dir string) { fill(t, dir, make([]byte, 4096)) }, empty},
	{"no inodes", syscall.ENOSPC, func(t *testing.T, dir string) { fill(t, dir, nil) }, empty},
	{"read-only", syscall.EROFS, func(t *testing.T, dir string) {
		letGo(t, filepath.Join(dir, "keystore", ".lock"))
		remount(t, dir, unix.MS_RDONLY)
	}, func(t *testing.T, dir string) { remount(t, dir, 0) }},
}

// fill puts files there until no more fits.
func fill(t *testing.T, dir string, content []byte) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	err := os.Mkdir(ballast, 0o700)
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(ballast, fmt.Sprint(i)), content, 0o600)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
}

func remount(t *testing.T, dir string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatal(err)
	}
}

// letGo has this process keep a file open for reading only. The system makes no file system
// read-only at our request while one is open for writing; after an error of the device it does.
func letGo(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for fd := range 1000 {
		if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && name == path {
			if err := unix.Dup3(int(f.Fd()), fd, unix.O_CLOEXEC); err != nil && fd != int(f.Fd()) {
				t.Fatal(err)
			}
		}
	}
}

// TestTroubledDiskFailsARotationCleanAndHealsWithoutARestart: the server that rotates is
// alone, and its disk is full or has become read-only.
func TestTroubledDiskFailsARotationCleanAndHealsWithoutARestart(t *testing.T) {
	for _, trouble := range troubles {
		t.Run(trouble.name, func(t *testing.T) {
			disk, ok := mount(t)
			if !ok {
				return
			}
			h, v := keyringtest.NewQuickHosts(t, 1)[0], keyringtest.Sealings{}
			dir := filepath.Join(disk, "keystore")
			h.MustOpenIn(t, dir)
			v.Seal(t, h)
			trouble.begin(t, disk)
			fails := func(when string) {
				t.Helper()
				before := namesIn(t, dir)
				_, err := h.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
				if !errors.Is(err, trouble.errno) || !strings.Contains(err.Error(), dir) {
					t.Errorf("%s: rotate: %v", when, err)
				}
				if n := len(h.Keyring.Keys()); n != 1 {
					t.Errorf("%s: %d keys", when, n)
				}
				if after := namesIn(t, dir); !slices.Equal(before, after) {
					t.Errorf("%s: left %v", when, after)
				}
				v.Seal(t, h)
				v.CheckOpens(t, h.Keyring, when)
			}
			fails("in trouble")
			if trouble.errno != syscall.EROFS {
				h.Stop(t)
				h.MustOpenIn(t, dir)
				fails("started in trouble")
			}
			trouble.over(t, disk)
			if _, err := h.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Errorf("when it is over: %v", err)
			}
			v.Seal(t, h)
			h.Stop(t)
			h.MustOpenIn(t, dir)
			v.CheckOpens(t, h.Keyring, "restarted")
			if st := h.Status(t); len(v) != 2 || len(st.Orphans)+len(st.SetAside)+len(st.Missing) > 0 {
				t.Errorf("restarted, with %d keys in use: %v", len(v), st.Problems)
			}
		})
	}
}

// TestFollowerOnATroubledDiskIsNoHolderUntilItIsOver: it opens what it has the key of, the
// rotation goes on without it, and it catches up without a restart.
func TestFollowerOnATroubledDiskIsNoHolderUntilItIsOver(t *testing.T) {
	for _, trouble := range troubles {
		t.Run(trouble.name, func(t *testing.T) {
			disk, ok := mount(t)
			if !ok {
				return
			}
			hosts, v := keyringtest.NewQuickHosts(t, 3), keyringtest.Sealings{}
			f := hosts[1]
			for _, h := range hosts {
				dir := filepath.Join(t.TempDir(), "keystore")
				if h == f {
					dir = filepath.Join(disk, "keystore")
				}
				if err := h.OpenIn(t, dir); err != nil {
					t.Fatal(err)
				}
			}
			leader := readyLeader(t, hosts)
			if leader == f { // it has no trouble of its own
				if err := f.Raft.LeadershipTransfer().Error(); err != nil {
					t.Fatal(err)
				}
				leader = readyLeader(t, hosts)
			}
			v.Seal(t, leader)
			keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
			trouble.begin(t, disk)
			key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			v.CheckOpens(t, f.Keyring, "in trouble")
			awaitStatus(t, f, func(st keyring.Status) bool {
				return slices.Equal(st.Missing, []keyring.KeyID{key.ID}) && slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool {
					return p.Kind == keyring.ProblemWrite && slices.Contains(p.Keys, key.ID) && strings.Contains(p.Detail, trouble.errno.Error())
				})
			})
			if keyringtest.Ring(f.FSM).Key(meta.KeyID(key.ID)).HeldBy(string(f.ID)) {
				t.Error("it is recorded as a holder")
			}
			trouble.over(t, disk)
			keyringtest.AwaitHolders(leader.Keyring, key.ID, 3)
			v.Seal(t, leader)
			awaitStatus(t, f, func(st keyring.Status) bool { return len(st.Missing) == 0 })
			v.CheckOpens(t, f.Keyring, "when it is over")
		})
	}
}

// TestFullDiskStopsNoStart: a bad file is set aside there too.
func TestFullDiskStopsNoStart(t *testing.T) {
	disk, ok := mount(t)
	if !ok {
		return
	}
	h, v := keyringtest.NewQuickHosts(t, 1)[0], keyringtest.Sealings{}
	dir := filepath.Join(disk, "keystore")
	h.MustOpenIn(t, dir)
	v.Seal(t, h)
	if _, err := h.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	bad := h.Keyring.Keys()[1].ID
	delete(v, bad)
	v.Seal(t, h)
	h.Stop(t)
	if err := os.Truncate(filepath.Join(dir, nks.FileName(bad)), 100); err != nil {
		t.Fatal(err)
	}
	fill(t, disk, make([]byte, 4096))
	h.MustOpenIn(t, dir)
	v.CheckOpens(t, h.Keyring, "the good key")
	if st := h.Status(t); !slices.Equal(st.SetAside, []string{nks.FileName(bad) + ".malformed-1"}) {
		t.Errorf("set aside: %v", st.SetAside)
	}
}

// TestOpenRefusesAReadOnlyDirectory: a server that could hold no new key does not start as if
// it could. The directory is as it was, and opens when it can be written again.
func TestOpenRefusesAReadOnlyDirectory(t *testing.T) {
	disk, ok := mount(t)
	if !ok {
		return
	}
	h, v := keyringtest.NewQuickHosts(t, 1)[0], keyringtest.Sealings{}
	dir := filepath.Join(disk, "keystore")
	h.MustOpenIn(t, dir)
	v.Seal(t, h)
	h.Stop(t)
	before := namesIn(t, dir)
	remount(t, disk, unix.MS_RDONLY)
	for _, dir := range []string{dir, filepath.Join(disk, "new")} {
		if err := h.OpenIn(t, dir); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", dir, err)
		}
		h.Stop(t)
	}
	remount(t, disk, 0)
	if after := namesIn(t, dir); !slices.Equal(before, after) {
		t.Errorf("it has %v, and had %v", after, before)
	}
	h.MustOpenIn(t, dir)
	v.CheckOpens(t, h.Keyring, "writable again")
}

// readyLeader waits until every server is ready, and returns the leader.
func readyLeader(t *testing.T, hosts []*keyringtest.Host) *keyringtest.Host {
	t.Helper()
	for {
		changed := hosts[0].Keyring.Changed()
		for _, h := range hosts {
			if err := h.Keyring.WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range hosts {
			if _, err := h.Keyring.Encrypt(nil, nil); err == nil {
				return h
			}
		}
		<-changed
	}
}

// awaitStatus waits until a server's status is as it should be.
func awaitStatus(t *testing.T, h *keyringtest.Host, want func(keyring.Status) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		changed := h.Keyring.Changed()
		st := h.Status(t)
		if want(st) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%s: %v", h.ID, st.Problems)
		}
	}
}
