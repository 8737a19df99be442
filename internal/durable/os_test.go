package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/keyring/internal/durable"
)

func openDir(t *testing.T, path string) *durable.Dir {
	t.Helper()
	fsys, err := durable.OpenDir(path)
	must(t, err)
	d := durable.New(fsys)
	t.Cleanup(func() { d.Close() })
	return d
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	return info.Mode()
}

func TestModesWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o177, 0o277, 0o777} {
		t.Run(fmt.Sprintf("%04o", umask), func(t *testing.T) {
			top := filepath.Join(t.TempDir(), "a")
			dir := filepath.Join(top, "b", "c")
			defer syscall.Umask(syscall.Umask(umask))
			d := openDir(t, dir)
			must(t, write(d, durable.Named{Name: "key", Data: []byte("x")}))
			for _, path := range []string{top, filepath.Dir(dir), dir} {
				if got := mode(t, path); got != fs.ModeDir|0o700 {
					t.Errorf("%s is %v", path, got)
				}
			}
			for _, name := range []string{"key", ".lock"} {
				if got := mode(t, filepath.Join(dir, name)); got != 0o600 {
					t.Errorf("%s is %v", name, got)
				}
			}
		})
	}
}

func TestTemporaryFilesArePrivateToo(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	fsys, err := durable.OpenDir(dir)
	must(t, err)
	defer fsys.Close()
	f, err := fsys.Create("a")
	must(t, err)
	defer f.Close()
	if got := mode(t, filepath.Join(dir, "a")); got != 0o600 {
		t.Errorf("mode %v", got)
	}
	if _, err := fsys.Create("a"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created again: %v", err)
	}
}

func TestOpenDirRepairsModes(t *testing.T) {
	for _, wrong := range []fs.FileMode{0o755, 0o777, 0o500} {
		dir := t.TempDir()
		must(t, os.Chmod(dir, wrong))
		openDir(t, dir)
		if got := mode(t, dir); got != fs.ModeDir|0o700 {
			t.Errorf("%v became %v", wrong, got)
		}
	}
}

func isKey(b []byte) bool { return bytes.Equal(b, content("key")) }

// TestReadChangesNoMode of a file, nor does ReadOwn of one that is not the caller's own.
func TestReadChangesNoMode(t *testing.T) {
	dir := t.TempDir()
	d, path := openDir(t, dir), filepath.Join(dir, "key")
	must(t, os.WriteFile(path, content("another"), 0o600))
	must(t, os.Chmod(path, 0o644))
	_, err := d.Read("key", 1000)
	must(t, err)
	_, _, err = d.ReadOwn("key", 1000, isKey)
	must(t, err)
	if got := mode(t, path); got != 0o644 {
		t.Errorf("it became %v", got)
	}
}

func TestReadOwnRepairsModes(t *testing.T) {
	for _, wrong := range []fs.FileMode{0o644, 0o666, 0o777, 0o400} {
		dir := t.TempDir()
		d := openDir(t, dir)
		path := filepath.Join(dir, "key")
		must(t, os.WriteFile(path, content("key"), 0o600))
		must(t, os.Chmod(path, wrong))
		var told []string
		d.OnRepair(func(name string, was fs.FileMode) { told = append(told, fmt.Sprint(name, was)) })
		for range 2 {
			if b, unsynced, err := d.ReadOwn("key", 1000, isKey); err != nil || unsynced != nil || !bytes.Equal(b, content("key")) {
				t.Errorf("%v: %q, %v, %v", wrong, b, unsynced, err)
			}
		}
		if got := mode(t, path); got != 0o600 {
			t.Errorf("%v became %v", wrong, got)
		}
		if want := fmt.Sprint("key", wrong); len(told) != 1 || told[0] != want {
			t.Errorf("%v: told %q", wrong, told)
		}
	}
}

// Root alone can give a file away; for others there is nothing that could be refused.
func TestReadRefusesAForeignOwner(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	path := filepath.Join(dir, "key")
	must(t, os.WriteFile(path, content("key"), 0o600))
	foreign := os.Geteuid() == 0
	if foreign {
		must(t, os.Chown(path, 12345, -1))
	}
	if _, err := d.Read("key", 1000); errors.Is(err, durable.ErrForeign) != foreign {
		t.Errorf("foreign %v: %v", foreign, err)
	}
	if aside, err := d.SetAside("key", "foreign"); err != nil || aside != "key.foreign-1" {
		t.Errorf("set aside: %q, %v", aside, err)
	}
}

// Root makes a foreign directory of its own; any other user finds root's.
func TestOpenDirRefusesAForeignOwner(t *testing.T) {
	dir := "/"
	if os.Geteuid() == 0 {
		dir = t.TempDir()
		must(t, os.Chmod(dir, 0o755))
		must(t, os.Chown(dir, 12345, -1))
	}
	before := mode(t, dir)
	fsys, err := durable.OpenDir(dir)
	if err == nil {
		fsys.Close()
		t.Fatal("opened")
	}
	if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "owned by user") {
		t.Errorf("error: %v", err)
	}
	if mode(t, dir) != before {
		t.Errorf("mode changed to %v", mode(t, dir))
	}
	if _, err := os.Lstat(filepath.Join(dir, ".lock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock file: %v", err)
	}
}

func TestOpenDirNeedsADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if _, err := durable.OpenDir(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestOneOpenAtATime(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	must(t, write(d, durable.Named{Name: "a"}))
	_, err := durable.OpenDir(dir)
	if !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second open: %v", err)
	}
	if out := openElsewhere(t, dir); !strings.Contains(out, durable.ErrLocked.Error()) {
		t.Errorf("open in another process: %s", out)
	}
	must(t, d.Close())
	if out := openElsewhere(t, dir); !strings.Contains(out, "opened") {
		t.Errorf("open in another process after close: %s", out)
	}
	if names, err := openDir(t, dir).List(); err != nil || !slices.Equal(names, []string{"a"}) {
		t.Errorf("list: %q, %v", names, err)
	}
}

// openElsewhere opens dir in another process and returns what came of it.
func openElsewhere(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DURABLE_TEST_OPEN="+dir)
	out, err := cmd.CombinedOutput()
	must(t, err)
	return string(out)
}

// processes are other things that another process does. Each says whether it was asked to.
var processes []func() bool

// TestMain is also what other processes of these tests do.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DURABLE_TEST_OPEN"); dir != "" {
		if _, err := durable.OpenDir(dir); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("opened")
		return
	}
	if dir := os.Getenv("DURABLE_TEST_TRACE"); dir != "" {
		if err := changeAll(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	for _, asked := range processes {
		if asked() {
			return
		}
	}
	os.Exit(m.Run())
}

func changeAll(dir string) error {
	fsys, err := durable.OpenDir(dir)
	if err != nil {
		return err
	}
	d := durable.New(fsys)
	write := d.Write(durable.Named{Name: "key"})
	_, aside := d.SetAside("key", "bad")
	remove := d.Remove("key.bad-1")
	return errors.Join(write[0], aside, remove, d.Close())
}

// TestSystemCalls shows what the simulated disk can't: that a Sync reaches the
// kernel, and on what. It compares where strace is there and may trace.
func TestSystemCalls(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-y", "-o", out,
		"-e", "trace=mkdir,mkdirat,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,flock", os.Args[0])
	cmd.Env = append(os.Environ(), "DURABLE_TEST_TRACE="+filepath.Join(top, "a", "b"))
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Logf("no trace: %v: %s", err, msg)
		return
	}
	trace, err := os.ReadFile(out)
	must(t, err)
	want := `
mkdir a
mkdir a/b
fsync a
fsync .
flock a/b/.lock
fsync a/b/TEMP
rename TEMP key
fsync a/b
rename key key.bad-1
fsync a/b
unlink key.bad-1
fsync a/b
flock a/b/.lock
`
	if got := calls(top, string(trace)); got != want {
		t.Errorf("system calls:%s\nwant:%s", got, want)
	}
}

var (
	traced  = regexp.MustCompile(`(mkdir|fsync|fdatasync|flock|rename|unlink)[a-z0-9]*\((.*)`)
	tmpName = regexp.MustCompile(`\.tmp-[0-9a-f]{32}`)
	operand = regexp.MustCompile(`"([^"]*)"|<([^>]*)>`)
)

// calls shortens a trace to what was done with the files below top.
func calls(top, trace string) string {
	short := "\n"
	for line := range strings.Lines(tmpName.ReplaceAllString(trace, "TEMP")) {
		call := traced.FindStringSubmatch(line)
		if call == nil || !strings.Contains(line, top) {
			continue
		}
		args, quoted := call[2], strings.Contains(call[2], `"`)
		short += call[1]
		for _, m := range operand.FindAllStringSubmatch(args, -1) {
			if quoted && m[1] == "" || m[2] == "unfinished ..." {
				continue // the directory that a quoted name is in
			}
			path, err := filepath.Rel(top, m[1]+m[2])
			if err != nil {
				path = m[1]
			}
			short += " " + path
		}
		short += "\n"
	}
	return short
}

// odd makes a file of each kind that is not regular.
var odd = map[string]func(path string) error{
	"directory":        func(path string) error { return os.MkdirAll(filepath.Join(path, "full"), 0o700) },
	"FIFO":             func(path string) error { return unix.Mkfifo(path, 0o600) },
	"socket":           listen,
	"symlink inside":   func(path string) error { return os.Symlink("regular", path) },
	"symlink outside":  func(path string) error { return os.Symlink("/etc/passwd", path) },
	"symlink to none":  func(path string) error { return os.Symlink("none", path) },
	"symlink to FIFO":  func(path string) error { return os.Symlink("fifo", path) },
	"symlink to self":  func(path string) error { return os.Symlink(filepath.Base(path), path) },
	"symlink upwards":  func(path string) error { return os.Symlink("../x", path) },
	"symlink to above": func(path string) error { return os.Symlink(".", path) },
}

func listen(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

func TestOddFilesAreNeverReadAndCanBeSetAside(t *testing.T) {
	for name, plant := range odd {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "odd") // short: a socket's path is at most 108 bytes
			must(t, err)
			defer os.RemoveAll(dir)
			fsys, err := durable.OpenDir(dir)
			must(t, err)
			d := durable.New(fsys)
			defer d.Close()
			must(t, write(d, durable.Named{Name: "regular", Data: []byte("secret")}))
			must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
			must(t, plant(filepath.Join(dir, "key")))
			kind := mode(t, filepath.Join(dir, "key")).Type()

			if data, err := d.Read("key", 1000); !errors.Is(err, durable.ErrNotRegular) {
				t.Errorf("read: %q, %v", data, err)
			}
			if f, _, err := fsys.Open("key"); err == nil {
				if data, _ := io.ReadAll(f); len(data) > 0 || kind == fs.ModeSymlink {
					t.Errorf("opened, holds %q", data)
				}
				f.Close()
			}
			if aside, err := d.SetAside("key", "odd"); aside != "key.odd-1" || err != nil {
				t.Errorf("set aside: %q, %v", aside, err)
			}
			if got := mode(t, filepath.Join(dir, "key.odd-1")).Type(); got != kind {
				t.Errorf("%v became %v", kind, got)
			}
			must(t, write(d, durable.Named{Name: "key", Data: []byte("good")}))
			if data, err := d.Read("key", 1000); string(data) != "good" || err != nil {
				t.Errorf("read after write: %q, %v", data, err)
			}
		})
	}
}

// TestFileThatIsReplacedWhileItIsOpenedIsRefused: os.Root would follow a symlink to another name in it, and the open of a
// FIFO would wait for ever.
func TestFileThatIsReplacedWhileItIsOpenedIsRefused(t *testing.T) {
	for what, replace := range map[string]func(dir string) error{
		"by a symlink to another": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "a")), os.Symlink("b", filepath.Join(dir, "a")))
		},
		"by another": func(dir string) error { return os.Rename(filepath.Join(dir, "b"), filepath.Join(dir, "a")) },
		"by a FIFO": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "a")), unix.Mkfifo(filepath.Join(dir, "a"), 0o600))
		},
		"by none": func(string) error { return nil },
	} {
		dir := t.TempDir()
		for _, name := range []string{"a", "b"} {
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
		}
		fsys, err := durable.OpenDir(dir)
		must(t, err)
		defer fsys.Close()
		named, err := fsys.Lstat("a")
		must(t, err)
		must(t, replace(dir))
		f, _, err := durable.OpenAs(fsys, "a", named)
		if err == nil {
			f.Close()
		}
		if (err == nil) != (what == "by none") {
			t.Errorf("replaced %s: %v", what, err)
		}
	}
}

// A planted symlink is replaced by a write, never written through.
func TestWriteReplacesASymlink(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	must(t, write(d, durable.Named{Name: "other", Data: []byte("other")}))
	must(t, os.Symlink("other", filepath.Join(dir, "key")))
	must(t, write(d, durable.Named{Name: "key", Data: []byte("key")}))
	for _, name := range []string{"key", "other"} {
		if data, err := d.Read(name, 100); string(data) != name || err != nil {
			t.Errorf("%s holds %q, %v", name, data, err)
		}
	}
}

func TestReadRefusesAGibibyteUnread(t *testing.T) {
	dir := t.TempDir()
	d := openDir(t, dir)
	name := filepath.Join(dir, "key")
	must(t, os.WriteFile(name, nil, 0o600))
	must(t, os.Truncate(name, 1<<30))
	allocated := testing.AllocsPerRun(1, func() {
		if _, err := d.Read("key", 1<<20); !errors.Is(err, durable.ErrTooLarge) {
			t.Error(err)
		}
	})
	if allocated > 100 {
		t.Errorf("%v allocations", allocated)
	}
}

func TestSweepAndListOnTheSystemsFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{staleTemp, ".tmp-mine", "b", "a", "a.corrupt-1"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	d := openDir(t, dir)
	must(t, d.Sweep())
	names, err := d.List()
	if want := []string{".tmp-mine", "a", "a.corrupt-1", "b"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("list: %q, %v, want %q", names, err, want)
	}
	if _, err := os.Lstat(filepath.Join(dir, staleTemp)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stale temporary file: %v", err)
	}
}

func TestUnlinkedDirectoryIsAnError(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	d := openDir(t, dir)
	must(t, write(d, durable.Named{Name: "a", Data: []byte("1")}))
	must(t, os.RemoveAll(dir))
	check := func(when string) {
		if data, err := d.Read("a", 100); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: read: %q, %v", when, data, err)
		}
		if err := write(d, durable.Named{Name: "a", Data: []byte("2")}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: write: %v", when, err)
		}
		if _, err := d.SetAside("a", "bad"); err == nil {
			t.Errorf("%s: set aside", when)
		}
	}
	check("unlinked")
	must(t, os.Mkdir(dir, 0o700))
	check("another in its place")
	if entries, err := os.ReadDir(dir); len(entries) != 0 || err != nil {
		t.Errorf("the other directory has %v, %v", entries, err)
	}
}
