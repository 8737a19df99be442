package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/durable"
)

// The main goroutine stays on the main thread, the only one that strace is told to look at:
// so the n-th system call of a kind is the same in every run.
func init() {
	runtime.LockOSThread()
	processes["DURABLE_TEST_STAGES"] = runStages
}

// marker is opened between what the runtime does to start and what is tested.
const marker = "/nowhere/the-test-begins"

// injected are the system calls that change the directory or read it.
var injected = []string{
	"mkdirat", "openat", "newfstatat", "fstat", "fchmod", "fchmodat", "flock", "getdents64", "read", "write", "fsync",
	"renameat", "unlinkat", "close",
}

var ways = []string{"signal=SIGKILL", "error=EIO", "error=ENOSPC", "error=EROFS", "error=EMFILE", "error=EINTR"}

// stages is what the other process does, each once; it says so when one is done.
func stages(d *durable.Dir) map[string]func() error {
	write := func(name, what string) func() error {
		return func() error { return d.Write(durable.Named{Name: name, Data: content(what)})[0] }
	}
	return map[string]func() error{
		"0 sweep":   d.Sweep,
		"1 create":  write("created", "created"),
		"2 replace": write("replaced", "new"),
		"3 read": func() error {
			b, err := d.Read("kept", 1000)
			if err == nil && !bytes.Equal(b, content("kept")) {
				err = errors.New("read something else")
			}
			return err
		},
		"4 aside":  func() error { _, err := d.SetAside("bad", "malformed"); return err },
		"5 remove": func() error { return d.Remove("removed") },
		"6 list":   func() error { _, err := d.List(); return err },
	}
}

// runStages is the other process.
func runStages(dir string) error {
	os.Open(marker)
	fsys, err := durable.OpenDir(dir)
	if err != nil {
		return err
	}
	d := durable.New(fsys)
	all := stages(d)
	for _, name := range sortedKeys(all) {
		if err := all[name](); err != nil {
			fmt.Printf("failed %s: %v\n", name, err)
			continue
		}
		fmt.Println("done", name)
	}
	return d.Close()
}

func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// prepare fills the directory as an earlier process left it.
func prepare(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keystore")
	d := openDir(t, dir)
	for name, what := range map[string]string{"replaced": "old", "kept": "kept", "bad": "bad", "removed": "removed"} {
		must(t, write(d, durable.Named{Name: name, Data: content(what)}))
	}
	must(t, d.Close())
	must(t, os.WriteFile(filepath.Join(dir, ".tmp-0123456789abcdef0123456789abcdef"), nil, 0o600))
	return dir
}

// underStrace runs the stages in dir, with one fault or none, and returns what the process said and
// which calls the main thread made.
func underStrace(t *testing.T, dir, inject string) (said string, calls []string) {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	args := []string{"-o", trace, "-e", "trace=" + strings.Join(injected, ",")}
	if inject != "" {
		args = append(args, "-e", "inject="+inject)
	}
	cmd := exec.Command("strace", append(args, os.Args[0])...)
	cmd.Env = append(os.Environ(), "DURABLE_TEST_STAGES="+dir, "GOGC=off", "GODEBUG=asyncpreemptoff=1")
	out, _ := cmd.CombinedOutput() // most of them fail: that is what is looked at
	b, err := os.ReadFile(trace)
	must(t, err)
	return string(out), strings.Split(string(b), "\n")
}

// TestEverySystemCallKilledOrFailed is the simulated disk's crash table on the real thing:
// every system call of every path is the last one of the process, and fails with each error.
func TestEverySystemCallKilledOrFailed(t *testing.T) {
	if out, err := exec.Command("strace", "-V").CombinedOutput(); err != nil {
		if os.Getenv("CI") != "" {
			t.Errorf("strace: %v: %s", err, out)
		}
		t.Log("nothing tested: there is no strace")
		return
	}
	said, calls := underStrace(t, prepare(t), "")
	if n := strings.Count(said, "done "); n != 7 || strings.Contains(said, "failed") {
		t.Fatalf("without a fault: %s", said)
	}
	hit, missed := 0, 0
	for call, when := range afterMarker(calls) {
		for _, n := range when {
			for _, way := range ways {
				dir := prepare(t)
				inject := fmt.Sprintf("%s:%s:when=%d", call, way, n)
				said, calls := underStrace(t, dir, inject)
				if took(calls, way) {
					hit++
				} else {
					missed++
					t.Errorf("%s: not hit", inject)
				}
				checkStages(t, dir, inject, said)
			}
		}
	}
	t.Logf("%d system calls killed or failed, %d missed", hit, missed)
	if hit < 6*40 {
		t.Errorf("only %d were hit", hit)
	}
}

var callName = regexp.MustCompile(`^([a-z0-9]+)\(`)

// afterMarker returns, for each kind of call, which of them came after the marker, from 1.
func afterMarker(calls []string) map[string][]int {
	seen, after := map[string]int{}, map[string][]int{}
	begun := false
	for _, line := range calls {
		m := callName.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		seen[m[1]]++
		switch {
		case strings.Contains(line, marker):
			begun = true
		case begun && !(m[1] == "write" && strings.HasPrefix(line, "write(1,")): // what it says
			after[m[1]] = append(after[m[1]], seen[m[1]])
		}
	}
	return after
}

// took reports whether a fault was injected, after the marker.
func took(calls []string, way string) bool {
	text := strings.Join(calls, "\n")
	_, after, ok := strings.Cut(text, marker)
	if strings.HasPrefix(way, "signal") {
		return ok && strings.Contains(after, "killed by SIGKILL")
	}
	return ok && strings.Contains(after, "(INJECTED)")
}

// checkStages wants every file whole after a fault, what was said to be done to be so, and
// the next process to do it all.
func checkStages(t *testing.T, dir, when, said string) {
	t.Helper()
	one := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return "none"
		}
		for _, what := range []string{"created", "old", "new", "kept", "bad", "removed"} {
			if bytes.Equal(b, content(what)) {
				return what
			}
		}
		return "torn"
	}
	for _, f := range []struct{ name, before, after, stage string }{
		{"created", "none", "created", "1 create"},
		{"replaced", "old", "new", "2 replace"},
		{"kept", "kept", "kept", "3 read"},
		{"bad", "bad", "none", "4 aside"},
		{"bad.malformed-1", "none", "bad", "4 aside"},
		{"removed", "removed", "none", "5 remove"},
	} {
		got, done := one(f.name), strings.Contains(said, "done "+f.stage)
		if got != f.after && (done || got != f.before) {
			t.Errorf("%s: %s is %s; it said %s", when, f.name, got, said)
		}
	}
	if one("bad") == one("bad.malformed-1") {
		t.Errorf("%s: the bad file is not there once", when)
	}
	d := openDir(t, dir)
	for name, do := range stages(d) {
		if err := do(); err != nil && !(name == "4 aside" && errors.Is(err, fs.ErrNotExist)) {
			t.Errorf("%s: then %s: %v", when, name, err)
		}
	}
	names, err := os.ReadDir(dir)
	must(t, err)
	for _, n := range names {
		if strings.HasPrefix(n.Name(), ".tmp-") {
			t.Errorf("%s: %s is left", when, n.Name())
		}
	}
	must(t, d.Close())
}
