package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// most is how many lines of code the keyring may take.
const most = 60

// shared is the directory of the packages store and before.
const shared = "../../../examples/watchmap/"

// TestTheKeyringTakesSixtyLines: the service has no more lines of code than that on top of those that it had before it had a
// keyring. What is in no file of these is the same, but for three lines in main.go.
func TestTheKeyringTakesSixtyLines(t *testing.T) {
	now, was := 3, 0
	for _, path := range []string{"keyring.go", "operate.go", shared + "store/store.go", shared + "store/snapshot.go"} {
		now += len(code(t, path))
		t.Log(path, len(code(t, path)))
	}
	for _, path := range []string{"before_test.go", shared + "before/store.go", shared + "before/snapshot.go"} {
		was += len(code(t, path))
		t.Log(path, len(code(t, path)))
	}
	if more := now - was; more > most || more < most/2 {
		t.Errorf("the keyring takes %d lines", more)
	} else {
		t.Logf("the keyring takes %d lines", more)
	}
}

// hard is what a host should not have to write.
var hard = regexp.MustCompile(`\b(tls|x509)\.[A-Z]|PeerID|ServerTLS|ClientTLS|GetConfiguration|Configuration|Voter|PromoteServers|Index\b|Barrier`)

// TestNoLineIsAboutTLSMembersOrIndexes: the certificates are named once, and that is all.
func TestNoLineIsAboutTLSMembersOrIndexes(t *testing.T) {
	for _, path := range []string{"keyring.go", "operate.go"} {
		for _, line := range code(t, path) {
			if hard.MatchString(line) {
				t.Errorf("%s: %s", path, line)
			}
		}
	}
	if !slices.ContainsFunc(code(t, "client.go"), hard.MatchString) {
		t.Error("what users need of TLS is not found")
	}
}

// TestOnlyTwoFilesUseTheKeyring: no other imports its packages.
func TestOnlyTwoFilesUseTheKeyring(t *testing.T) {
	using := map[string][]string{
		"keyring.go": {"", "/admin", "/grpc", "/records"},
		"operate.go": {"", "/admin"},
	}
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := 0
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
	if files < 7 {
		t.Errorf("there are only %d files", files)
	}
}

// code is the lines of a file but for the package clause, imports, comments and blank lines.
func code(t *testing.T, path string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(b), "\nimport (")
	_, after, ended := strings.Cut(after, "\n)\n")
	if !found || !ended {
		t.Fatalf("%s imports nothing", path)
	}
	for line := range strings.Lines(after) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
			lines = append(lines, line)
		}
	}
	return lines
}
