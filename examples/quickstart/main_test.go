package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// write makes a file and returns its path.
func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// succeed runs the program and returns what it printed.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, &out); err != nil {
		t.Fatalf("%q: %v\n%s", args, err, &out)
	}
	return out.String()
}

// fail runs the program and requires an error that contains want, in one line.
func fail(t *testing.T, want string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, &out)
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%q: %v, want one line with %q\n%s", args, err, want, &out)
	}
}

func contains(t *testing.T, out string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(`(?m)` + p).MatchString(out) {
			t.Errorf("no %q in:\n%s", p, out)
		}
	}
}

func TestSecondRunOpensWhatTheFirstSealed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	a := write(t, "a", []byte("some plaintext that must not be seen"))
	empty := write(t, "empty", nil)
	out := succeed(t, "-dir", dir, a, empty, a) // a twice, under two names
	contains(t, out,
		`^warning: inline KEK: `, `^encrypted .* as sealed/a\.1 under key`, `^decrypted sealed/a\.2: equal to`,
		`^decrypted sealed/empty\.1: equal to`, `^[0-9a-f]{8}  active .* server$`, `^[0-9a-f]{8}  inactive .* server$`,
		`^keystore/\*\.nks\.json `, `^raft/raft.db `, `^sealed/\* `)
	for _, pattern := range []string{"keystore/*.nks.json", "keystore/keystore.id", "raft/raft.db", "raft/snapshots", "sealed/*"} {
		if paths, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(paths) == 0 {
			t.Errorf("the output speaks of %s: there is none, %v", pattern, err)
		}
	}
	for i, want := range []string{`all 3 ciphertexts`, `all 4 ciphertexts`} {
		out := succeed(t, "-dir", dir, a)
		contains(t, out, want)
		if n := strings.Count(out, " inactive "); n != i+2 {
			t.Errorf("%d inactive keys:\n%s", n, out)
		}
	}
	sealed, err := os.ReadFile(filepath.Join(dir, "sealed", "a.1"))
	if err != nil || bytes.Contains(sealed, []byte("plaintext")) {
		t.Errorf("%q, %v", sealed, err)
	}
	if err := os.Rename(filepath.Join(dir, "sealed", "a.1"), filepath.Join(dir, "sealed", "empty.1")); err != nil {
		t.Fatal(err)
	}
	fail(t, "open sealed/empty.1", "-dir", dir, a)
}

func TestTemporaryDirectoryIsRemoved(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	contains(t, succeed(t, write(t, "a", []byte("a"))), regexp.QuoteMeta(tmp)+`.* removed at the end`)
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestFileKEK(t *testing.T) {
	dir, a := t.TempDir(), write(t, "a", []byte("a"))
	kek := write(t, "kek", bytes.Repeat([]byte{7}, 32))
	for range 2 {
		if out := succeed(t, "-dir", dir, "-kek", kek, a); strings.Contains(out, "warning") {
			t.Errorf("a warning:\n%s", out)
		}
	}
	fail(t, "which are not 32 raw bytes", "-dir", dir, "-kek", a, a)
	fail(t, "no such file", "-dir", dir, "-kek", kek+"x", a)
}

func TestFailures(t *testing.T) {
	dir, a := filepath.Join(t.TempDir(), "dir"), write(t, "a", []byte("a"))
	fail(t, "no FILE")
	fail(t, "not defined: -x", "-x", a)
	fail(t, "no such file", "-dir", dir, a, a+"x")
	fail(t, "is a directory", "-dir", dir, filepath.Dir(a))
	fail(t, "not a directory", "-dir", filepath.Join(a, "below a file"), a)
	if os.Geteuid() != 0 { // root writes everywhere
		locked := filepath.Join(t.TempDir(), "dir")
		if err := os.Mkdir(locked, 0o500); err != nil {
			t.Fatal(err)
		}
		fail(t, "permission denied", "-dir", locked, a)
	}
	contains(t, succeed(t, "-h"), `^usage: `)
}
