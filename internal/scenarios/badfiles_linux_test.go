package scenarios_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// badKind is what may lie in a key file's place on a real file system.
type badKind struct {
	name string
	why  string // it is set aside
	put  func(t *testing.T, p place) error
	both bool // it is done to the other file too
}

// place is where it lies.
type place struct {
	id    keyring.KeyID
	path  string
	good  []byte // what was there
	other string // the path of another key's file
}

func content(make func(good []byte) []byte) func(*testing.T, place) error {
	return func(_ *testing.T, p place) error { return os.WriteFile(p.path, make(bytes.Clone(p.good)), 0o600) }
}

func version(v string) func(*testing.T, place) error {
	return content(func(good []byte) []byte {
		return withVersion(good, v)
	})
}

var badKinds = []badKind{
	{name: "empty", why: "malformed", put: content(func([]byte) []byte { return nil })},
	{name: "one byte", why: "malformed", put: content(func(good []byte) []byte { return good[:1] })},
	{name: "half", why: "malformed", put: content(func(good []byte) []byte { return good[:len(good)/2] })},
	{name: "all but a byte", why: "malformed", put: content(func(good []byte) []byte { return good[:len(good)-1] })},
	{name: "a byte more", why: "malformed", put: content(func(good []byte) []byte { return append(good, '\n') })},
	{name: "zeros", why: "malformed", put: content(func(good []byte) []byte { clear(good); return good })},
	{name: "text", why: "malformed", put: content(func([]byte) []byte { return []byte("hello\n") })},
	{name: "an older version", why: "malformed", put: version("0")},
	{name: "another key's", why: "misnamed", put: func(_ *testing.T, p place) error {
		b, err := os.ReadFile(p.other)
		return errors.Join(err, os.WriteFile(p.path, b, 0o600))
	}},
	{name: "swapped with another", why: "misnamed", both: true, put: func(_ *testing.T, p place) error {
		return errors.Join(os.Rename(p.other, p.path), os.WriteFile(p.other, p.good, 0o600))
	}},
	{name: "another key by that name", why: "wrong", put: func(t *testing.T, p place) error {
		b, _ := keyringtest.NewKeyFile(t, p.id, keyring.InlineKEK())
		return os.WriteFile(p.path, b, 0o600)
	}},
	{name: "1 GiB", why: "oversized", put: func(_ *testing.T, p place) error {
		return errors.Join(os.WriteFile(p.path, nil, 0o600), os.Truncate(p.path, 1<<30))
	}},
}

// TestBadFileBesideAThousandGoodOnes: the server starts, has all the others, sets the bad
// one aside under a name that says why, whatever it is, reports it, and fetches the key again.
func TestBadFileBesideAThousandGoodOnes(t *testing.T) {
	c := newThousand(t)
	for _, kind := range badKinds {
		t.Run(kind.name, func(t *testing.T) { c.spoil(t, kind) })
	}
}

// thousand is a server with a thousand keys on a real file system, and two more.
type thousand struct {
	*keyringtest.Host
	dir string
	ids []keyring.KeyID
	v   keyringtest.Sealings
}

func newThousand(t *testing.T) *thousand {
	t.Helper()
	dir := t.TempDir() // removed after the hosts are closed
	hosts := keyringtest.NewQuickHosts(t, 3)
	c := &thousand{Host: hosts[0], dir: dir, v: keyringtest.Sealings{}}
	for i := range 1000 {
		id := keyring.KeyID{1, byte(i >> 8), byte(i)}
		b, m := keyringtest.NewKeyFile(t, id, keyring.InlineKEK())
		key, err := seal.New(m.Root(), id)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := key.Seal(nil, []byte("data"), []byte("aad"))
		if err := errors.Join(err, os.WriteFile(filepath.Join(c.dir, nks.FileName(id)), b, 0o600)); err != nil {
			t.Fatal(err)
		}
		c.ids, c.v[id] = append(c.ids, id), [][]byte{sealed}
	}
	// The keyring is empty, so the leader adopts them, and all servers fetch them.
	if err := c.OpenIn(t, c.dir); err != nil {
		t.Fatal(err)
	}
	hosts[1].Open(t, nil)
	hosts[2].Open(t, nil)
	leader := readyLeader(t, hosts)
	for _, id := range c.ids {
		keyringtest.AwaitHolders(leader.Keyring, id, 3)
	}
	return c
}

// spoil has the server find something bad in the place of its file number 500.
func (c *thousand) spoil(t *testing.T, kind badKind) {
	c.Stop(t)
	bad, other := nks.FileName(c.ids[500]), nks.FileName(c.ids[700])
	p := place{id: c.ids[500], path: filepath.Join(c.dir, bad), other: filepath.Join(c.dir, other)}
	var err error
	if p.good, err = os.ReadFile(p.path); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(p.path), kind.put(t, p)); err != nil {
		t.Fatal(err)
	}
	was, before := describe(t, p.path), inodes(t, c.dir)
	if err := c.OpenIn(t, c.dir); err != nil {
		t.Fatal(err)
	}
	want := []string{bad + "." + kind.why + "-1"}
	if kind.both {
		want = append(want, other+"."+kind.why+"-1")
	}
	awaitStatus(t, c.Host, func(st keyring.Status) bool {
		return len(st.Keys) > len(c.ids) && len(st.Missing) == 0 && len(st.SetAside) > 0
	})
	st := c.Status(t)
	slices.Sort(st.SetAside)
	if !slices.Equal(st.SetAside, want) {
		t.Errorf("set aside: %v, want %v", st.SetAside, want)
	}
	for _, name := range want {
		if !slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool {
			return p.Kind == keyring.ProblemSetAside && strings.Contains(p.Detail, name)
		}) {
			t.Errorf("%s is not reported: %v", name, st.Problems)
		}
	}
	if is := describe(t, filepath.Join(c.dir, want[0])); is != was {
		t.Errorf("kept is %s, it was %s", is, was)
	}
	if info, err := os.Lstat(p.path); err != nil || info.Mode() != 0o600 {
		t.Errorf("fetched: %v, %v", info, err)
	}
	after := inodes(t, c.dir)
	for _, id := range c.ids { // the others have not been fetched, but found
		if name := nks.FileName(id); before[name] != after[name] && name != bad && !(kind.both && name == other) {
			t.Errorf("%s is another file now", name)
		}
	}
	c.v.CheckOpens(t, c.Keyring, kind.name)
	for _, name := range want {
		if err := os.RemoveAll(filepath.Join(c.dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// inodes tells the files in a directory from others by the same names.
func inodes(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for _, name := range namesIn(t, dir) {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		all[name] = st.Ino
	}
	return all
}

// describe says what lies there, so that it can be compared.
func describe(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	what := fmt.Sprint(info.Mode(), info.Size(), info.Sys().(*syscall.Stat_t).Uid)
	if link, err := os.Readlink(path); err == nil {
		return what + link
	}
	if !info.Mode().IsRegular() || info.Size() > nks.MaxFile {
		return what
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrPermission) {
		err = os.Chmod(path, 0o600)
		b, _ = os.ReadFile(path)
		err = errors.Join(err, os.Chmod(path, info.Mode()))
	}
	if err != nil {
		t.Fatal(err)
	}
	return what + string(b)
}

// barredKinds are what keeps a server from reading a file on a real disk. good is what was there.
func barredKinds() map[string]func(p place) error {
	inode := func(mode uint32, dev uint64) func(place) error {
		return func(p place) error { return unix.Mknod(p.path, mode|0o600, int(dev)) }
	}
	symlink := func(to string) func(place) error {
		return func(p place) error { return os.Symlink(to, p.path) }
	}
	kinds := map[string]func(place) error{
		"symlink to a good file": func(p place) error { return os.Symlink(p.other, p.path) },
		"symlink to nothing":     symlink("nothing"),
		"symlink to a device":    symlink("/dev/zero"),
		"symlink to itself":      func(p place) error { return os.Symlink(p.path, p.path) },
		"FIFO":                   inode(unix.S_IFIFO, 0),
		"socket":                 inode(unix.S_IFSOCK, 0),
		"directory":              func(p place) error { return os.Mkdir(p.path, 0o700) },
		"directory that is full": func(p place) error { return os.MkdirAll(filepath.Join(p.path, "full"), 0o700) },
	}
	if os.Geteuid() != 0 { // what is no hindrance to root
		kinds["no permission"] = func(p place) error { return os.WriteFile(p.path, p.good, 0) }
		return kinds
	}
	kinds["device"] = inode(unix.S_IFCHR, unix.Mkdev(1, 5)) // /dev/zero
	for _, what := range []string{"another user's", "another user's too"} {
		kinds[what] = func(p place) error {
			return errors.Join(os.WriteFile(p.path, p.good, 0o600), os.Chown(p.path, 12345, -1))
		}
	}
	return kinds
}

// TestBarredFilesOnARealDisk, all at once: they are left as they are, one problem a cause names them, and they are taken
// when they are mended, without a restart.
func TestBarredFilesOnARealDisk(t *testing.T) {
	h, dir, kinds := keyringtest.NewQuickHosts(t, 1)[0], t.TempDir(), barredKinds()
	places := map[string]place{}
	for i, what := range slices.Sorted(maps.Keys(kinds)) {
		p := place{id: keyring.KeyID{1, byte(i)}, other: filepath.Join(dir, nks.FileName(keyring.KeyID{2}))}
		p.path = filepath.Join(dir, nks.FileName(p.id))
		p.good, _ = keyringtest.NewKeyFile(t, p.id, keyring.InlineKEK())
		if err := os.WriteFile(p.path, p.good, 0o600); err != nil {
			t.Fatal(err)
		}
		places[what] = p
	}
	h.MustOpenIn(t, dir)
	awaitStatus(t, h, func(st keyring.Status) bool { return len(st.Keys) > len(places) && len(st.Missing) == 0 })
	h.Stop(t)
	for what, p := range places {
		if err := errors.Join(os.Remove(p.path), kinds[what](p)); err != nil {
			t.Fatal(err)
		}
	}
	before := inodes(t, dir)
	h.MustOpenIn(t, dir)
	awaitStatus(t, h, func(st keyring.Status) bool { return len(st.Missing) == len(places) })
	named := 0
	for _, p := range h.Status(t).Problems {
		switch p.Kind {
		case keyring.ProblemFileOwner, keyring.ProblemFileMode, keyring.ProblemNotAFile:
			named += len(p.Keys)
		}
	}
	if after := inodes(t, dir); named != len(places) || !maps.Equal(before, after) {
		t.Errorf("%d of %d are named; there is %v, there was %v: %v", named, len(places), after, before, h.Status(t).Problems)
	}
	for _, p := range places {
		if err := errors.Join(os.RemoveAll(p.path), os.WriteFile(p.path+".part", p.good, 0o600), os.Rename(p.path+".part", p.path)); err != nil {
			t.Fatal(err)
		}
	}
	awaitStatus(t, h, func(st keyring.Status) bool { return len(st.Missing) == 0 })
}

// TestModesAreRepairedWithAWarning: of the directory and of the files, which stay where they are.
func TestModesAreRepairedWithAWarning(t *testing.T) {
	h, v, dir := keyringtest.NewQuickHosts(t, 1)[0], keyringtest.Sealings{}, t.TempDir()
	h.MustOpenIn(t, dir)
	v.Seal(t, h)
	name := nks.FileName(h.Keyring.Keys()[0].ID)
	for _, wrong := range []os.FileMode{0o644, 0o660, 0o777, 0o400} {
		h.Stop(t)
		if err := errors.Join(os.Chmod(filepath.Join(dir, name), wrong), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		h.MustOpenIn(t, dir, func(c *keyring.Config) { c.Logger = hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Warn}) })
		v.CheckOpens(t, h.Keyring, "repaired")
		if st := h.Status(t); len(st.SetAside) > 0 {
			t.Errorf("%v: set aside: %v", wrong, st.SetAside)
		}
		h.Stop(t) // nobody logs any more
		for path, want := range map[string]os.FileMode{dir: os.ModeDir | 0o700, filepath.Join(dir, name): 0o600} {
			if info, err := os.Stat(path); err != nil || info.Mode() != want {
				t.Errorf("%v: %s is %v, %v", wrong, path, info.Mode(), err)
			}
		}
		if got := log.String(); !strings.Contains(got, "[WARN]") || !strings.Contains(got, name) || !strings.Contains(got, wrong.String()) {
			t.Errorf("%v: logged %q", wrong, got)
		}
	}
}

// TestOnlyOurTemporaryFilesGo: what else lies there stays as it is, and a key file that the
// keyring does not know is reported at every start.
func TestOnlyOurTemporaryFilesGo(t *testing.T) {
	h, v, dir := keyringtest.NewQuickHosts(t, 1)[0], keyringtest.Sealings{}, t.TempDir()
	h.MustOpenIn(t, dir)
	v.Seal(t, h)
	h.Stop(t)
	orphan := keyring.KeyID{7}
	key, _ := keyringtest.NewKeyFile(t, orphan, keyring.InlineKEK())
	stray := strings.Replace(staleTemp, "00", "ff", 1)
	stays := map[string]string{
		nks.FileName(orphan): string(key), ".tmp-mine": "x", staleTemp + "0": "x", "notes.txt": "x", nks.FileName(orphan) + "~": "x",
		nks.FileName(orphan) + ".malformed-1": "x", strings.ToUpper(nks.FileName(keyring.KeyID{0xaa})): "x", "nks.json": "x",
	}
	for name, content := range stays {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, stray), 0o700); err != nil {
		t.Fatal(err)
	}
	before := inodes(t, dir)
	for range 2 {
		if err := os.WriteFile(filepath.Join(dir, staleTemp), []byte("torn"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.MustOpenIn(t, dir)
		v.CheckOpens(t, h.Keyring, "started")
		if st := h.Status(t); !slices.Equal(st.Orphans, []keyring.KeyID{orphan}) || len(st.SetAside) > 0 {
			t.Errorf("orphans %v, set aside %v", st.Orphans, st.SetAside)
		}
		h.Stop(t)
		if after := inodes(t, dir); !maps.Equal(before, after) {
			t.Errorf("there is %v, there was %v", after, before)
		}
	}
	for name, content := range stays {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != content {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// staleTemp is the name of a temporary file of an earlier process.
const staleTemp = ".tmp-000102030405060708090a0b0c0d0e0f"
