package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a pipe brings when the command before it has failed empties no secret.
func TestAnEmptyStandardInputEmptiesNoSecret(t *testing.T) {
	_, c := alone(t, nil)
	put := func(stdin string, args ...string) error {
		return run(t.Context(), append([]string{"-server", c.base, "put"}, args...), strings.NewReader(stdin), &bytes.Buffer{}, &bytes.Buffer{})
	}
	if err := put("hunter2", "a"); err != nil {
		t.Fatal(err)
	}
	if err := put("", "a"); err == nil || !strings.Contains(err.Error(), "-empty") {
		t.Errorf("%v", err)
	}
	if out, err := runCommand(t, c, "get", "a"); out != "hunter2" {
		t.Errorf("%q, %v", out, err)
	}
	if err := put("", "-empty", "a"); err != nil {
		t.Error(err)
	}
	if out, err := runCommand(t, c, "get", "a"); out != "" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	if err := put(strings.Repeat("x", maxValue+1), "a"); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("%v", err)
	}
}

// Whoever else could write to the directory, or read it, can no longer.
func TestInitClosesADirectoryThatIsThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := runCommand(t, client{}, "init", "-port", "0", dir); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if info, _ := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 || len(files) == 0 {
		t.Errorf("%v, %v, %d files", info.Mode(), err, len(files))
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f.Name(), info.Mode(), err)
		}
	}
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "own"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(other, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = runCommand(t, client{}, "init", "-port", "0", other)
	if info, _ := os.Stat(other); err == nil || info.Mode().Perm() != 0o755 {
		t.Errorf("what is not empty is changed: %v, %v", info.Mode(), err)
	}
}

func TestInitTakesPortsThatThereAre(t *testing.T) {
	for _, args := range []string{"-port 70000", "-port -1", "-port 65535", "-port 65520 -servers 9"} {
		dir := filepath.Join(t.TempDir(), "cluster")
		_, err := runCommand(t, client{}, append(append([]string{"init"}, strings.Fields(args)...), dir)...)
		if _, e := os.Stat(dir); !errors.As(err, new(usage)) || e == nil {
			t.Errorf("%s: %v", args, err)
		}
	}
	if _, err := runCommand(t, client{}, "init", "-port", "65530", filepath.Join(t.TempDir(), "cluster")); err != nil {
		t.Error(err)
	}
}

func TestArgumentsAreCountedInEnglish(t *testing.T) {
	for args, want := range map[string]string{"get": "takes 1 argument after", "keys rotate x": "takes no arguments after", "recover x": "takes 2 arguments after"} {
		if _, err := runCommand(t, client{}, strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestWriteNewWritesOverNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s1.kek")
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeNew(path, []byte("new")); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "kept" {
		t.Errorf("%q", b)
	}
}
