package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
)

func init() {
	processes = append(processes, func() bool { return keyringtest.Drilled(drillFound, drillNew) })
}

// TestEverySystemCallKilledOrFailed is the simulated disk's crash table on the real thing:
// every system call of every path is the last one of the process, and fails with each error.
func TestEverySystemCallKilledOrFailed(t *testing.T) {
	for _, d := range []keyringtest.Drill{drillFound, drillNew} {
		t.Run(d.Name, d.Run)
	}
}

// drillFound is all that is done with a directory, on one that an earlier process left with
// wrong modes and a temporary file.
var drillFound = keyringtest.Drill{
	Name: "durable, directory found",
	Prepare: func(t *testing.T, dir string) {
		d := openDir(t, dir)
		for name, what := range map[string]string{
			"replaced": "old", "one": "old", "kept": "kept", "bad": "bad", "removed": "removed", "back.removed-1": "back",
		} {
			must(t, write(d, durable.Named{Name: name, Data: content(what)}))
		}
		must(t, d.Close())
		must(t, os.WriteFile(filepath.Join(dir, staleTemp), nil, 0o600))
		must(t, errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "kept"), 0o644)))
	},
	Do: func(p *keyringtest.Pin, dir string) {
		fsys, err := p.OpenDir(dir)
		if p.Done("open", err); err != nil {
			return
		}
		d := durable.New(fsys)
		for _, s := range steps {
			p.Done(s.name, s.do(d))
		}
		p.Done("close", d.Close())
	},
	Check: checkFound,
}

// steps are what is done with the directory, each once.
var steps = []struct {
	name string
	do   func(d *durable.Dir) error
}{
	{"sweep", func(d *durable.Dir) error { return d.Sweep() }},
	{"create", func(d *durable.Dir) error {
		return write(d, durable.Named{Name: "created", Data: content("created")})
	}},
	{"replace", func(d *durable.Dir) error {
		return write(d, durable.Named{Name: "replaced", Data: content("new")})
	}},
	{"write two", func(d *durable.Dir) error {
		return errors.Join(d.Write(durable.Named{Name: "one", Data: content("new")}, durable.Named{Name: "two", Data: content("new")})...)
	}},
	{"read", func(d *durable.Dir) error {
		b, unsynced, err := d.ReadOwn("kept", 1000, func([]byte) bool { return true })
		err = errors.Join(unsynced, err)
		if err == nil && !bytes.Equal(b, content("kept")) {
			err = errors.New("read something else")
		}
		return err
	}},
	{"set aside", func(d *durable.Dir) error { _, err := d.SetAside("bad", "malformed"); return err }},
	{"take back", func(d *durable.Dir) error { return d.TakeBack("back.removed-1", "back") }},
	{"remove", func(d *durable.Dir) error { return d.Remove("removed") }},
	{"sync", func(d *durable.Dir) error { return d.Sync() }},
	{"list", func(d *durable.Dir) error { _, err := d.List(); return err }},
}

// fates are what each file is before and after its step.
var fates = []struct{ name, before, after, step string }{
	{"created", "none", "created", "create"},
	{"replaced", "old", "new", "replace"},
	{"one", "old", "new", "write two"},
	{"two", "none", "new", "write two"},
	{"kept", "kept", "kept", "read"},
	{"bad", "bad", "none", "set aside"},
	{"bad.malformed-1", "none", "bad", "set aside"},
	{"back", "none", "back", "take back"},
	{"back.removed-1", "back", "none", "take back"},
	{"removed", "removed", "none", "remove"},
}

// checkFound wants every file whole after a fault, what was said to be done to be so, and the
// next process to do it all.
func checkFound(t *testing.T, dir, when string, said []string) {
	t.Helper()
	found := map[string]string{}
	for _, f := range fates {
		found[f.name] = look(t, dir, f.name)
		if got := found[f.name]; got != f.after && (got != f.before || slices.Contains(said, "done "+f.step)) {
			t.Errorf("%s: %s is %s; it said %q", when, f.name, got, said)
		}
	}
	if found["bad"] == found["bad.malformed-1"] || found["back"] == found["back.removed-1"] {
		t.Errorf("%s: a file is not there once: %v", when, found)
	}
	d := openDir(t, dir)
	for _, s := range steps {
		err := s.do(d)
		again := s.name == "set aside" && errors.Is(err, fs.ErrNotExist) || s.name == "take back" && errors.Is(err, fs.ErrExist)
		if err != nil && !again {
			t.Errorf("%s: then %s: %v", when, s.name, err)
		}
	}
	for _, f := range fates {
		if got := look(t, dir, f.name); got != f.after {
			t.Errorf("%s: in the end %s is %s", when, f.name, got)
		}
	}
	checkLeft(t, dir, when, len(fates)-3) // three are gone
	must(t, d.Close())
}

// look says what a file of the drills holds.
func look(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	for _, what := range []string{"created", "old", "new", "kept", "bad", "back", "removed"} {
		if bytes.Equal(b, content(what)) {
			return what
		}
	}
	return fmt.Sprintf("torn (%v)", err)
}

// checkLeft wants so many files, each private, beside the lock file, and a directory that is.
func checkLeft(t *testing.T, dir, when string, n int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if len(entries) != n+1 || err != nil {
		t.Errorf("%s: left %v, %v", when, entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: left %v, %v", when, info, err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: the directory is %v, %v", when, info, err)
	}
}

// drillNew is a first start, which makes the directory and its parents.
var drillNew = keyringtest.Drill{
	Name:    "durable, no directory",
	Prepare: func(*testing.T, string) {},
	Do: func(p *keyringtest.Pin, dir string) {
		fsys, err := p.OpenDir(filepath.Join(dir, "a", "b"))
		if p.Done("open", err); err != nil {
			return
		}
		d := durable.New(fsys)
		p.Done("create", write(d, durable.Named{Name: "key", Data: content("new")}))
		p.Done("close", d.Close())
	},
	Check: func(t *testing.T, dir, when string, said []string) {
		d := openDir(t, filepath.Join(dir, "a", "b"))
		defer d.Close()
		must(t, d.Sweep())
		b, err := d.Read("key", 1000)
		if !bytes.Equal(b, content("new")) && (err == nil || slices.Contains(said, "done create")) {
			t.Errorf("%s: it holds %.20q, %v; it said %q", when, b, err, said)
		}
		must(t, write(d, durable.Named{Name: "key", Data: content("new")}))
		checkLeft(t, filepath.Join(dir, "a", "b"), when, 1)
		for _, above := range []string{dir, filepath.Join(dir, "a")} {
			if got := mode(t, above); got != fs.ModeDir|0o700 {
				t.Errorf("%s: %s is %v", when, strings.TrimPrefix(above, dir), got)
			}
		}
	},
}
