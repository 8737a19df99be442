package keyringgrpc_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strings"
	"testing"
)

// mostLines is how many lines a host writes for the keyring, at most. TLS and membership are in none of them.
const mostLines = 21

var ofKeyring = regexp.MustCompile(`\b(keyring|keyringgrpc|peers|keys|fsm)\b`)

// TestAHostWritesFewLines counts those of the example's host that are there for the keyring: in start and close, all lines of each
// statement that names a part of it.
func TestAHostWritesFewLines(t *testing.T) {
	text, err := os.ReadFile("example_test.go")
	must(err)
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, "example_test.go", text, 0)
	must(err)
	lines := strings.Split(string(text), "\n")
	n := 0
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Name.Name != "start" && fn.Name.Name != "close" {
			continue
		}
		for _, s := range fn.Body.List {
			from, to := files.Position(s.Pos()).Line, files.Position(s.End()).Line
			if ofKeyring.MatchString(strings.Join(lines[from-1:to], "\n")) {
				n += to - from + 1
			}
		}
	}
	t.Logf("%d lines", n)
	if n > mostLines || n < 15 {
		t.Errorf("a host writes %d lines for the keyring, want at most %d", n, mostLines)
	}
}
