package keyring_test

import (
	"fmt"
	"go/ast"
	"go/doc"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/seal"
	"example.com/keyring/node"
	"example.com/keyring/port"
)

// What pkg.go.dev shows of the public packages.

// examples are those of each package, by the symbols at which they are shown. Each runs.
var examples = map[string][]string{
	".": {
		"AgeKEK", "FileKEK", "InlineKEK", "Keyring_EncryptTo", "Keyring_Sign", "Keyring_Verify", "Keyring_WellKnown", "Keyring_WriteBackup", "Mux", "Open",
		"PassphraseKEK", "Restore", "Transport_http", "Transport_rpc", "VerifyBackup",
	},
	"node":       {"Start"},
	"port":       {"", "Port_Join"}, // the empty one is of the package
	"records":    {"", "Map_SetPlain", "_host"},
	"admin":      {"", "New"},
	"gometrics":  {"New"},
	"prometheus": {"New"},
	"kms":        {"", "New_aws", "New_transit"},
	"grpc":       {""},
}

// parsed returns the files of the package in a directory, those of tests or the others.
func parsed(t *testing.T, dir string, test bool) (fset *token.FileSet, files []*ast.File) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	fset = token.NewFileSet()
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") != test {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		t.Fatalf("%s has no files", dir)
	}
	return fset, files
}

// TestEveryPublicPackageHasExamplesThatRun at the symbols where readers look for them.
func TestEveryPublicPackageHasExamplesThatRun(t *testing.T) {
	for dir, want := range examples {
		_, files := parsed(t, dir, true)
		var have []string
		for _, e := range doc.Examples(files...) {
			have = append(have, e.Name)
			if e.Output == "" && !e.EmptyOutput {
				t.Errorf("%s: Example%s has no output, so it does not run", dir, e.Name)
			}
		}
		for _, name := range want {
			if !slices.Contains(have, name) {
				t.Errorf("%s: there is no Example%s", dir, name)
			}
		}
		for _, name := range have {
			if !slices.Contains(want, name) {
				t.Errorf("%s: Example%s is not in the list here", dir, name)
			}
		}
	}
}

// TestEveryExportedTypeCanBeNamed: no exported declaration of a public package has a type that a caller can't write, and no
// constant hides its value in an internal package.
func TestEveryExportedTypeCanBeNamed(t *testing.T) {
	for dir := range examples {
		fset, files := parsed(t, dir, false)
		for _, wrong := range unnamable(fset, files) {
			t.Error(wrong)
		}
	}
}

// TestTypesThatCanNotBeNamedAreFound where they may stand.
func TestTypesThatCanNotBeNamedAreFound(t *testing.T) {
	for declaration, want := range map[string]bool{
		"type T = meta.KeyID":                               true,
		"type T meta.KeyID":                                 true,
		"type T struct{ F map[string][]*meta.KeyID }":       true,
		"type T struct{ f meta.KeyID; F string }":           false,
		"type T struct{ F hidden }":                         true,
		"type t struct{ F meta.KeyID }":                     false,
		"type T interface{ M(meta.KeyID) }":                 true,
		"func F(meta.KeyID) {}":                             true,
		"func F() (hidden, error) { return hidden{}, nil }": true,
		"func F[P any](p P, s string) []P { return nil }":   false,
		"func f(meta.KeyID) {}":                             false,
		"type T int; func (T) M(func(meta.KeyID)) {}":       true,
		"type t int; func (t) M(meta.KeyID) {}":             false,
		"const C = meta.MaxJoinTokens":                      true,
		"const C = 64":                                      false,
		"var V meta.KeyID":                                  true,
		"var V = meta.ErrCommandRefused":                    false, // an error
	} {
		fset := token.NewFileSet()
		source := "package p; import \"" + module + "/internal/meta\"; type hidden struct{}; " + declaration
		f, err := parser.ParseFile(fset, "p.go", source, 0)
		if err != nil {
			t.Fatal(err)
		}
		if found := unnamable(fset, []*ast.File{f}); (len(found) > 0) != want {
			t.Errorf("%s: %q", declaration, found)
		}
	}
}

// unnamable returns what callers can't name in the exported declarations of a package.
func unnamable(fset *token.FileSet, files []*ast.File) (wrong []string) {
	hidden := map[string]bool{} // types of the package
	for _, f := range files {
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.TYPE {
				for _, s := range g.Specs {
					if name := s.(*ast.TypeSpec).Name.Name; !ast.IsExported(name) {
						hidden[name] = true
					}
				}
			}
		}
	}
	for _, f := range files {
		internal := map[string]bool{} // packages, by the names that they have in the file
		for _, i := range f.Imports {
			name := strings.Trim(i.Path.Value, `"`)
			if !strings.Contains(name, "/internal/") {
				continue
			}
			if i.Name != nil {
				internal[i.Name.Name] = true
			} else {
				internal[path.Base(name)] = true
			}
		}
		v := surface{hidden, internal, func(n ast.Node, what string) {
			wrong = append(wrong, fmt.Sprintf("%s: callers can't name %s", fset.Position(n.Pos()), what))
		}}
		for _, d := range f.Decls {
			v.declaration(d)
		}
	}
	return wrong
}

// surface looks at what is exported of one file.
type surface struct {
	hidden, internal map[string]bool
	found            func(ast.Node, string)
}

func (v surface) declaration(d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && (d.Recv == nil || ast.IsExported(receiverName(d.Recv.List[0].Type))) {
			v.expression(d.Type)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() {
					v.expression(s.Type)
				}
			case *ast.ValueSpec:
				if !slices.ContainsFunc(s.Names, (*ast.Ident).IsExported) {
					continue
				}
				if s.Type != nil {
					v.expression(s.Type)
				}
				for _, value := range s.Values {
					if d.Tok == token.CONST {
						v.expression(value)
					}
				}
			}
		}
	}
}

// expression looks at a type, and at what is exported in it.
func (v surface) expression(e ast.Node) {
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.StructType:
			if n != e {
				v.expression(n)
				return false
			}
		case *ast.Field:
			named := len(n.Names) > 0 && !slices.ContainsFunc(n.Names, (*ast.Ident).IsExported)
			if _, inStruct := e.(*ast.StructType); inStruct && named {
				return false
			}
			v.expression(n.Type)
			return false
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && v.internal[x.Name] {
				v.found(n, x.Name+"."+n.Sel.Name)
			}
			return false
		case *ast.Ident:
			if v.hidden[n.Name] {
				v.found(n, n.Name)
			}
		}
		return true
	})
}

// receiverName is the name of a method's type.
func receiverName(e ast.Expr) string {
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// TestPublicValuesAreThoseOfTheParts of the library: they are written out twice, so that readers see them.
func TestPublicValuesAreThoseOfTheParts(t *testing.T) {
	states := map[keyring.State]meta.State{
		keyring.StatePrepublished: meta.StatePrepublished, keyring.StateActive: meta.StateActive, keyring.StateInactive: meta.StateInactive,
		keyring.StateRekeying: meta.StateRekeying, keyring.StateDeprecated: meta.StateDeprecated,
	}
	for public, inner := range states {
		if string(public) != string(inner) || public.Opens() != inner.Opens() {
			t.Errorf("state %s is %s", public, inner)
		}
	}
	steps := map[keyring.Step]meta.StepKind{
		keyring.StepAdded: meta.StepAdded, keyring.StepAdopted: meta.StepAdopted, keyring.StepTokensAdmitted: meta.StepTokensAdmitted,
		keyring.StepCompromised: meta.StepCompromised, keyring.StepActivated: meta.StepActivated, keyring.StepRetired: meta.StepRetired,
		keyring.StepRevoked: meta.StepRevoked, keyring.StepRekeying: meta.StepRekeying, keyring.StepRemoveAsked: meta.StepRemoveAsked,
		keyring.StepDeprecated: meta.StepDeprecated, keyring.StepRemoved: meta.StepRemoved, keyring.StepBackup: meta.StepBackup,
	}
	for public, inner := range steps {
		if string(public) != string(inner) {
			t.Errorf("step %s is %s", public, inner)
		}
	}
	if n := constants(t, "internal/meta", "State"); n != len(states) {
		t.Errorf("there are %d states, and %d public ones", n, len(states))
	}
	if n := constants(t, "internal/meta", "StepKind"); n != len(steps) {
		t.Errorf("there are %d steps, and %d public ones", n, len(steps))
	}
	for name, values := range map[string][2]any{
		"MaxCommand": {keyring.MaxCommand, fsm.MaxCommand}, "MaxJoinTokens": {keyring.MaxJoinTokens, meta.MaxJoinTokens},
		"Overhead": {keyring.Overhead, seal.Overhead}, "BackupFormat": {keyring.BackupFormat, backup.Format},
		"node.MaxForward": {node.MaxForward, peer.MaxMessage - 1024}, "port.MaxBody": {port.MaxBody, peer.MaxMessage - 1024},
	} {
		if values[0] != values[1] {
			t.Errorf("%s is %v, want %v", name, values[0], values[1])
		}
	}
}

// constants counts the constants of a type.
func constants(t *testing.T, dir, of string) (n int) {
	t.Helper()
	_, files := parsed(t, dir, false)
	for _, f := range files {
		ast.Inspect(f, func(node ast.Node) bool {
			if v, ok := node.(*ast.ValueSpec); ok {
				if name, ok := v.Type.(*ast.Ident); ok && name.Name == of {
					n++
				}
			}
			return true
		})
	}
	return n
}

// TestPublicTypesHaveOneText: keys, digests and check values are written and read as the parts of the library do.
func TestPublicTypesHaveOneText(t *testing.T) {
	type textual interface {
		MarshalText() ([]byte, error)
		UnmarshalText([]byte) error
	}
	id, digest, check := keyring.KeyID{1, 15: 0xab}, keyring.Digest{1, 31: 0xab}, keyring.CheckValue{1, 31: 0xab}
	innerID, innerDigest, innerCheck := meta.KeyID(id), meta.Digest(digest), meta.CheckValue(check)
	for _, pair := range [][2]textual{{&id, &innerID}, {&digest, &innerDigest}, {&check, &innerCheck}} {
		public, err := pair[0].MarshalText()
		inner, _ := pair[1].MarshalText()
		if err != nil || string(public) != string(inner) {
			t.Errorf("%s, %v, want %s", public, err, inner)
		}
		changed := strings.Replace(string(inner), "ab", "cd", 1)
		if err := pair[0].UnmarshalText([]byte(changed)); err != nil {
			t.Error(err)
		}
		if public, _ := pair[0].MarshalText(); string(public) != changed {
			t.Errorf("%s, want %s", public, changed)
		}
		if err := pair[0].UnmarshalText([]byte("ab")); err == nil {
			t.Errorf("%T takes a text that is too short", pair[0])
		}
	}
	if text := (keyring.KeyID{1, 15: 0xab}).String(); text != "01000000-0000-0000-0000-0000000000ab" {
		t.Error(text)
	}
}

// TestPackagePagesShowCodeThatCompiles: what looks like Go in a package comment stands in a test of the package, to the letter.
func TestPackagePagesShowCodeThatCompiles(t *testing.T) {
	for dir := range examples {
		_, files := parsed(t, dir, false)
		sources, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		var tests strings.Builder
		for _, name := range sources {
			source, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(source)
		}
		dedented, snippets := strings.ReplaceAll(tests.String(), "\n\t", "\n"), 0
		for _, f := range files {
			for _, code := range goCode(f.Doc.Text()) {
				snippets++
				if !strings.Contains(tests.String(), code) && !strings.Contains(dedented, code) {
					t.Errorf("%s: the page shows what no test compiles:\n%s", dir, code)
				}
			}
		}
		if snippets == 0 {
			t.Errorf("%s: the page shows no code to begin with", dir)
		}
	}
}

// goCode returns the blocks of a comment that are Go, or look like it.
func goCode(text string) (all []string) {
	for _, block := range new(comment.Parser).Parse(text).Content {
		code, ok := block.(*comment.Code)
		if !ok {
			continue
		}
		_, asBody := parser.ParseFile(token.NewFileSet(), "", "package p; func f() {\n"+code.Text+"}", 0)
		_, asFile := parser.ParseFile(token.NewFileSet(), "", "package p\n"+code.Text, 0)
		if asBody == nil || asFile == nil || strings.Contains(code.Text, ":=") {
			all = append(all, code.Text)
		}
	}
	return all
}
