package keyring_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// house says which packages of this module each package may import, tests apart.
var house = map[string][]string{
	".": { // one a line
		"internal/backup",
		"internal/bounded",
		"internal/cluster",
		"internal/durable",
		"internal/gate",
		"internal/join",
		"internal/jwt",
		"internal/kek",
		"internal/meta",
		"internal/mono",
		"internal/nks",
		"internal/peer",
		"internal/plan",
		"internal/raftwire",
		"internal/seal",
	},
	"internal/meta":    {},
	"internal/gate":    {},
	"internal/mono":    {},
	"internal/plan":    {"internal/meta", "internal/mono"},
	"internal/nks":     {"internal/strictjson"},
	"internal/kek":     {"internal/nks", "internal/seal"},
	"internal/seal":    {},
	"internal/durable": {},
	"internal/peer":    {"internal/bounded", "internal/meta", "internal/mono"},
	"internal/bounded": {"internal/strictjson"},
	"internal/backup":  {"internal/bounded", "internal/kek", "internal/meta", "internal/nks", "internal/raftwire"},

	"internal/backup/backuptest": {"internal/backup", "internal/meta", "internal/nks"},

	"internal/bounded/boundedtest": {},
	"internal/kek/kektest":         {"internal/kek"},

	"internal/raftwire": {"internal/mono"},
	"internal/cluster":  {"internal/mono", "internal/peer", "internal/raftwire"},

	"internal/jwt":         {"internal/strictjson"},
	"internal/strictjson":  {},
	"internal/join":        {},
	"internal/keyringtest": {".", "internal/durable"},
	"gometrics":            {"."},
	"examples/quickstart":  {"."},
	"examples/failover":    {"."},

	"examples/controlplane":      {"."},
	"examples/controlplane/demo": {},
}

// pure lists what the packages that decide must do without.
var pure = []string{"os", "net", "sync", "context", "log", "math/rand", "math/rand/v2", "crypto/rand"}

// std lists the packages that are made of the standard library alone, or of the one module named.
var std = map[string]string{
	"internal/gate": "", "internal/meta": "", "internal/mono": "", "internal/plan": "", "internal/nks": "", "internal/seal": "", "internal/peer": "", "internal/bounded": "", "internal/strictjson": "", "internal/join": "",
	"internal/durable": "golang.org/x/sys", "internal/jwt": "github.com/go-jose/go-jose/v3",
}

// TestImportsKeepToTheHouse holds every import against the plan in the package doc.
func TestImportsKeepToTheHouse(t *testing.T) {
	const module = "example.com/keyring"
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return errorsOrSkip(err)
		}
		if d.IsDir() && path != "." {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return filepath.SkipDir // a module of its own
			}
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		allowed, known := house[pkg]
		if !known {
			t.Errorf("%s: the house has no room %s", path, pkg)
			return nil
		}
		seen[pkg] = true
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, _ := strconv.Unquote(spec.Path.Value)
			own, local := strings.CutPrefix(name, module)
			if local && !slices.Contains(allowed, strings.TrimPrefix(own, "/")) && !(own == "" && slices.Contains(allowed, ".")) {
				t.Errorf("%s imports %s", path, name)
			}
			if only, is := std[pkg]; is && !local && strings.Contains(name, ".") && (only == "" || !strings.HasPrefix(name, only)) {
				t.Errorf("%s imports %s", path, name)
			}
			if (pkg == "internal/meta" || pkg == "internal/plan") && slices.Contains(pure, name) {
				t.Errorf("%s imports %s", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range house {
		if !seen[pkg] {
			t.Errorf("the house has a room %s and the tree has none", pkg)
		}
	}
}

func errorsOrSkip(err error) error {
	if err != nil {
		return err
	}
	return filepath.SkipDir
}
