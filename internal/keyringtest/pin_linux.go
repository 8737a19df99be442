package keyringtest

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"example.com/keyring/internal/durable"
	"golang.org/x/sys/unix"
)

// idle makes each system call that can be failed, in a way that comes to nothing.
var idle = map[string]func(){
	"openat":     func() { unix.Openat(-1, "idle", 0, 0) },
	"newfstatat": func() { unix.Fstatat(-1, "idle", &unix.Stat_t{}, 0) },
	"fstat":      func() { unix.Fstat(-1, &unix.Stat_t{}) },
	"fstatfs":    func() { unix.Fstatfs(-1, &unix.Statfs_t{}) },
	"read":       func() { unix.Read(-1, make([]byte, 1)) },
	"write":      func() { unix.Write(-1, make([]byte, 1)) },
	"fsync":      func() { unix.Fsync(-1) },
	"close":      func() { unix.Close(-1) },
	"renameat":   func() { unix.Renameat(-1, "idle", -1, "idle") },
	"unlinkat":   func() { unix.Unlinkat(-1, "idle", 0) },
	"mkdirat":    func() { unix.Mkdirat(-1, "idle", 0) },
	"fchmod":     func() { unix.Fchmod(-1, 0) },
	"fchmodat":   func() { unix.Fchmodat(-1, "idle", 0, 0) },
	"flock":      func() { unix.Flock(-1, 0) },
	"getdents64": func() { unix.Getdents(-1, make([]byte, 1)) },
	"fcntl":      func() { unix.FcntlInt(^uintptr(0), unix.F_GETFL, 0) },
	"epoll_ctl":  func() { unix.EpollCtl(-1, unix.EPOLL_CTL_DEL, -1, nil) },
}

// The main goroutine of the other process keeps the main thread, which has made calls of its
// own when the process started.
func init() {
	if os.Getenv(jobEnv) != "" {
		runtime.LockOSThread()
	}
}

// Drilled is for TestMain: it reports whether this is the other process of one of the drills,
// and has done what was asked.
func Drilled(drills ...Drill) bool {
	env := os.Getenv(jobEnv)
	if env == "" {
		return false
	}
	var j job
	if err := json.Unmarshal([]byte(env), &j); err != nil {
		panic(err)
	}
	startPoller()
	for _, d := range drills {
		if d.Name == j.Drill {
			j.do(d)
		}
	}
	return true
}

// startPoller has the runtime make its epoll_create1, eventfd2 and epoll_ctl, which it makes for the first file of a
// process: here, in the main thread, and never in a run. Some package may have opened a file before.
func startPoller() {
	if f, err := os.Open(os.DevNull); err == nil {
		f.Close()
	}
}

// do has each run in a thread that ends with it. What the runs say goes out through this
// goroutine, by a call that is never failed.
func (j job) do(d Drill) {
	var end int64
	for i, r := range j.Runs {
		p := &Pin{calls: make(chan func()), said: make(chan string)}
		go func() {
			runtime.LockOSThread() // never unlocked: so the thread ends with the run
			j.pad(r.Nth)
			unix.Faccessat(-1, fmt.Sprintf("%s%d", marker, i), 0, 0)
			go func() {
				d.Do(p, r.Dir)
				close(p.said)
			}()
			for f := range p.calls {
				f()
			}
		}()
		for what := range p.said {
			n, err := unix.Pwrite(3, fmt.Appendf(nil, "%d %s\n", i, what), end)
			if err != nil {
				panic(err)
			}
			end += int64(n)
			p.said <- ""
		}
		close(p.calls)
	}
}

// pad makes the nth of the calls to come the one that is failed.
func (j job) pad(nth int) {
	for n := j.When - nth; j.Call != "" && n > 0; n-- {
		idle[j.Call]()
	}
}

// Pin is one run of a drill. All that it does with files, it does in one thread, the only one
// whose system calls count: so the nth of a kind is the same in every run.
type Pin struct {
	calls chan func()
	said  chan string
}

// Say tells the test something. Once it has returned, a crash no longer takes it away.
func (p *Pin) Say(format string, args ...any) {
	p.said <- fmt.Sprintf(format, args...)
	<-p.said
}

// Done says that a step is done, or that it failed.
func (p *Pin) Done(step string, err error) {
	if err != nil {
		p.Say("failed %s: %q", step, err)
		return
	}
	p.Say("done %s", step)
}

// OpenDir opens a directory as durable.OpenDir does, for use in the thread.
func (p *Pin) OpenDir(path string) (durable.FS, error) {
	fsys, err := on(p, func() (durable.FS, error) { return durable.OpenDir(path) })
	return pinnedFS{p, fsys}, err
}

// on runs f in the thread.
func on[T any](p *Pin, f func() (T, error)) (v T, err error) {
	done := make(chan struct{})
	p.calls <- func() {
		defer close(done)
		v, err = f()
	}
	<-done
	return v, err
}

// do is on without a value.
func (p *Pin) do(f func() error) error {
	_, err := on(p, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// pinnedFS is an FS whose calls are made in the thread.
type pinnedFS struct {
	pin *Pin
	fs  durable.FS
}

func (s pinnedFS) Create(name string) (durable.File, error) {
	file, err := on(s.pin, func() (durable.File, error) { return s.fs.Create(name) })
	if err != nil {
		return nil, err
	}
	return pinnedFile{s.pin, file}, nil
}

func (s pinnedFS) Open(name string) (file durable.File, info fs.FileInfo, err error) {
	err = s.pin.do(func() error { file, info, err = s.fs.Open(name); return err })
	if err != nil {
		return nil, nil, err
	}
	return pinnedFile{s.pin, file}, info, nil
}

func (s pinnedFS) Lstat(name string) (fs.FileInfo, error) {
	return on(s.pin, func() (fs.FileInfo, error) { return s.fs.Lstat(name) })
}

func (s pinnedFS) List() ([]string, error) { return on(s.pin, s.fs.List) }

func (s pinnedFS) Rename(old, new string) error {
	return s.pin.do(func() error { return s.fs.Rename(old, new) })
}

func (s pinnedFS) Remove(name string) error {
	return s.pin.do(func() error { return s.fs.Remove(name) })
}

func (s pinnedFS) Sync() error  { return s.pin.do(s.fs.Sync) }
func (s pinnedFS) Close() error { return s.pin.do(s.fs.Close) }

// pinnedFile is a File whose calls are made in the thread.
type pinnedFile struct {
	pin  *Pin
	file durable.File
}

func (f pinnedFile) Read(b []byte) (int, error) {
	return on(f.pin, func() (int, error) { return f.file.Read(b) })
}

func (f pinnedFile) Write(b []byte) (int, error) {
	return on(f.pin, func() (int, error) { return f.file.Write(b) })
}

func (f pinnedFile) Chmod(mode fs.FileMode) error {
	return f.pin.do(func() error { return f.file.Chmod(mode) })
}

func (f pinnedFile) Sync() error  { return f.pin.do(f.file.Sync) }
func (f pinnedFile) Close() error { return f.pin.do(f.file.Close) }
