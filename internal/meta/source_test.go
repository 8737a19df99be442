package meta_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Invariant 7 by reading the source: nothing in the package can reach a clock, randomness,
// I/O or another goroutine. The codec of snapshots reads and writes what its caller hands it: it imports
// io, for its two interfaces, and no other file does.
func TestI7SourceIsPure(t *testing.T) {
	forbidden := []string{"os", "net", "sync", "context", "log", "math/rand", "crypto/rand", "io", "runtime", "unsafe", "reflect", "maps", "example.com"}
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Local", "LoadLocation"}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, file := range files {
		name := file.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			continue
		}
		read++
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range f.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			if spec.Name != nil {
				t.Errorf("%s imports %s under another name, which hides it from this test", name, path)
			}
			for _, bad := range forbidden {
				if path == "io" && name == "snapshot.go" {
					continue
				}
				if path == bad || strings.HasPrefix(path, bad+"/") {
					t.Errorf("%s imports %s", name, path)
				}
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt, *ast.SelectStmt, *ast.SendStmt:
				t.Errorf("%s: concurrency", fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
					t.Errorf("%s: time.%s", fset.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
	if read == 0 {
		t.Error("no source read")
	}
}
