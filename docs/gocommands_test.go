package docs_test

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/keyringtest"
)

// isChecked reports whether TestEachDocsGoCommandIsTrue checks all lines of a block of commands.
func isChecked(text string) bool {
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "go test ") && !strings.HasPrefix(line, "go run ./") && !strings.HasPrefix(line, "cd ") &&
			!strings.HasPrefix(line, ".ci/") && strings.TrimSpace(line) != "" {
			return false
		}
	}
	return true
}

// testFlags are those of go test itself. From the first other one on, everything is the tests' own, a package too.
var testFlags = []string{
	"-run", "-bench", "-benchtime", "-benchmem", "-count", "-cpu", "-fuzz", "-fuzztime", "-p", "-parallel", "-race", "-skip", "-timeout", "-v", "-vet",
}

// TestEachDocsGoCommandIsTrue: go test names packages that are there, tests of theirs and flags that these have; go run
// names a program, and what is called in .ci is there.
func TestEachDocsGoCommandIsTrue(t *testing.T) {
	n := 0
	for _, b := range blocks(t) {
		if b.lang != "sh" {
			continue
		}
		dir := "."
		for line := range strings.Lines(b.text) {
			words := strings.Fields(line)
			switch {
			case len(words) < 2:
				if len(words) == 1 && strings.HasPrefix(words[0], ".ci/") && !exists(t, words[0]) {
					t.Errorf("%s: there is no %s", b.page, words[0])
				}
			case words[0] == "cd":
				if dir = path.Join(dir, words[1]); isChecked(b.text) && !exists(t, dir) {
					t.Errorf("%s: there is no %s", b.page, dir)
				}
			case words[0] == "go" && words[1] == "test":
				n++
				checkGoTest(t, b.page, dir, words[2:])
			case words[0] == "go" && words[1] == "run" && strings.HasPrefix(words[2], "./"):
				n++
				if !exists(t, path.Join(dir, words[2], "main.go")) && !exists(t, path.Join(dir, words[2], "doc.go")) {
					t.Errorf("%s: there is no program %s", b.page, words[2])
				}
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d commands", n)
	}
}

// checkGoTest checks the arguments of a go test in dir.
func checkGoTest(t *testing.T, page, dir string, args []string) {
	t.Helper()
	command, pkg, own := strings.Join(args, " "), ".", false
	var patterns, flags []string
	for i, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		switch isPackage := arg == "." || strings.HasPrefix(arg, "./"); {
		case isPackage && own:
			t.Errorf("%s: %s comes after a flag of the tests' own: %s", page, arg, command)
		case isPackage:
			pkg = arg
		case (name == "-run" || name == "-bench" || name == "-fuzz") && i+1 < len(args):
			patterns = append(patterns, strings.Trim(args[i+1], "'"))
		case strings.HasPrefix(arg, "-") && !slices.Contains(testFlags, name):
			own, flags = true, append(flags, strings.TrimPrefix(name, "-"))
		}
	}
	source := testSource(t, path.Join(dir, strings.TrimSuffix(pkg, "...")), strings.HasSuffix(pkg, "..."))
	if source == "" {
		t.Errorf("%s: there are no tests in %s: %s", page, pkg, command)
	}
	names := testName.FindAllStringSubmatch(source, -1)
	for _, p := range patterns {
		first, _, _ := strings.Cut(p, "/")
		match, err := regexp.Compile(first)
		if err != nil || first != "^$" && first != "." && !slices.ContainsFunc(names, func(m []string) bool { return match.MatchString(m[1]) }) {
			t.Errorf("%s: %q matches no test, %v: %s", page, p, err, command)
		}
	}
	for _, f := range flags {
		if !strings.Contains(source, `"`+f+`"`) {
			t.Errorf("%s: -%s is no flag of these tests: %s", page, f, command)
		}
	}
}

// testSource is the text of the tests of a package, and of those below it if all is wanted.
func testSource(t *testing.T, dir string, all bool) string {
	t.Helper()
	var b strings.Builder
	for name, text := range keyringtest.TestFiles(t) {
		if in := path.Dir(name); in == dir || all && (dir == "." || strings.HasPrefix(in, dir)) {
			b.WriteString(text)
		}
	}
	return b.String()
}

// exists reports whether the repository has a file or directory.
func exists(t *testing.T, name string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(keyringtest.Root(t), filepath.FromSlash(name)))
	return err == nil
}
