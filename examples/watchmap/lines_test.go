package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// most is how many lines of code the keyring may take.
const most = 60

// TestTheKeyringTakesSixtyLines: the service has no more lines of code than that on top of those that it had before it had a
// keyring. What is in no file of these is the same, but for three lines in main.go.
func TestTheKeyringTakesSixtyLines(t *testing.T) {
	now, was := 3, 0
	for _, path := range []string{"keyring.go", "operate.go", "store/store.go", "store/snapshot.go"} {
		now += codeLines(t, path)
		t.Log(path, codeLines(t, path))
	}
	for _, path := range []string{"before_test.go", "before/store.go", "before/snapshot.go"} {
		was += codeLines(t, path)
		t.Log(path, codeLines(t, path))
	}
	if more := now - was; more > most || more < most/2 {
		t.Errorf("the keyring takes %d lines", more)
	} else {
		t.Logf("the keyring takes %d lines", more)
	}
}

// TestOnlyKeyringAndStoreUseTheKeyring: no other file imports its packages.
func TestOnlyKeyringAndStoreUseTheKeyring(t *testing.T) {
	using := map[string][]string{
		"keyring.go":        {"", "/admin", "/port", "/records"},
		"operate.go":        {"", "/admin"},
		"store/store.go":    {"/records"},
		"store/snapshot.go": {"/records"},
	}
	files := 0
	for _, pattern := range []string{"*.go", "*/*.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			files++
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range f.Imports {
				name, _ := strconv.Unquote(spec.Path.Value)
				part, ours := strings.CutPrefix(name, "example.com/keyring")
				if ours && !strings.HasPrefix(part, "/examples/") && !slices.Contains(using[path], part) {
					t.Errorf("%s imports %s", path, name)
				}
			}
		}
	}
	if files < 8 {
		t.Errorf("there are only %d files", files)
	}
}

// codeLines counts the lines of a file but for the package clause, imports, comments and blank lines.
func codeLines(t *testing.T, path string) (n int) {
	t.Helper()
	for _, line := range code(t, path) {
		if line != "" && !strings.HasPrefix(line, "//") {
			n++
		}
	}
	return n
}

// code is the lines of a file after the imports.
func code(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		lines = append(lines, strings.TrimSpace(line))
	}
	if i := slices.Index(lines, "import ("); i >= 0 {
		return lines[i+1+slices.Index(lines[i:], ")"):]
	}
	t.Fatalf("%s imports nothing", path)
	return nil
}
