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

// house lists the packages of this module that each package may import. Tests are not checked.
var house = map[string][]string{
	".": { // one a line
		"internal/backup",
		"internal/bounded",
		"internal/durable",
		"internal/fsm",
		"internal/gate",
		"internal/join",
		"internal/jwt",
		"internal/kek",
		"internal/keystore",
		"internal/lead",
		"internal/local",
		"internal/members",
		"internal/meta",
		"internal/mono",
		"internal/nks",
		"internal/parallel",
		"internal/peer",
		"internal/plan",
		"internal/raftwire",
		"internal/replication",
		"internal/seal",
		"internal/simulated",
	},
	"internal/meta": {},
	"internal/gate": {"internal/mono"},
	"internal/mono": {},
	"internal/plan": {"internal/meta", "internal/mono"},
	"internal/fsm":  {"internal/gate", "internal/meta", "internal/nks", "internal/plan", "internal/seal"},
	"internal/nks":  {"internal/secret", "internal/strictjson"},
	"internal/lead": {
		"internal/backup", "internal/fsm", "internal/gate", "internal/keystore", "internal/local", "internal/meta", "internal/mono", "internal/nks", "internal/peer", "internal/plan",
	},
	"internal/members": {
		"internal/fsm", "internal/join", "internal/lead", "internal/local", "internal/meta", "internal/nks", "internal/peer", "internal/plan",
	},
	"internal/replication": {
		"internal/fsm", "internal/keystore", "internal/local", "internal/meta", "internal/mono", "internal/nks", "internal/peer", "internal/plan",
	},
	"internal/local": {
		"internal/fsm", "internal/gate", "internal/kek", "internal/keystore", "internal/meta", "internal/mono", "internal/peer", "internal/plan",
	},
	"internal/kek":     {"internal/durable", "internal/nks", "internal/seal", "internal/secret"},
	"internal/seal":    {"internal/secret"},
	"internal/secret":  {},
	"internal/durable": {"internal/gate", "internal/mono"},
	"internal/peer":    {"internal/bounded", "internal/meta", "internal/mono"},
	"internal/bounded": {"internal/strictjson"},
	"internal/backup":  {"internal/bounded", "internal/kek", "internal/meta", "internal/nks", "internal/raftwire"},

	"internal/backup/backuptest": {"internal/backup", "internal/meta", "internal/nks"},

	"internal/bounded/boundedtest": {},
	"internal/kek/kektest":         {"internal/kek"},

	"internal/parallel":              {},
	"internal/keystore":              {"internal/durable", "internal/jwt", "internal/kek", "internal/meta", "internal/mono", "internal/nks", "internal/parallel", "internal/seal"},
	"internal/keystore/keystoretest": {"internal/kek", "internal/meta", "internal/nks"},

	"internal/raftwire": {"internal/mono"},
	"internal/port": {
		"internal/bounded", "internal/fsm", "internal/gate", "internal/join", "internal/local", "internal/meta", "internal/mono", "internal/peer", "internal/plan", "internal/raftwire", "internal/seal",
	},
	"internal/cluster": {
		"internal/bounded", "internal/durable", "internal/gate", "internal/mono", "internal/peer", "internal/port", "internal/raftwire",
	},
	"port": {".", "internal/gate", "internal/peer", "internal/port"},
	"node": {
		".", "internal/bounded", "internal/cluster", "internal/gate", "internal/join", "internal/jwt", "internal/meta", "internal/mono", "internal/peer", "internal/plan", "internal/port",
	},

	"internal/jwt":        {"internal/secret", "internal/strictjson"},
	"internal/strictjson": {},
	"internal/join":       {},
	"internal/simulated":  {"internal/durable"},
	"internal/keyringtest": {
		".", "internal/backup/backuptest", "internal/durable", "internal/kek", "internal/kek/kektest", "internal/keystore/keystoretest", "internal/meta", "internal/nks", "internal/peer",
		"internal/simulated", "node",
	},
	"internal/scenarios":  {},
	"admin":               {".", "internal/bounded"},
	"gometrics":           {"."},
	"records":             {".", "internal/gate"},
	"examples/quickstart": {".", "node"},
	"examples/failover":   {".", "node"},

	"examples/controlplane":      {".", "admin", "node", "records"},
	"examples/controlplane/demo": {},

	"examples/watchmap":           {".", "admin", "examples/watchmap/store", "port", "records"},
	"examples/watchmap/store":     {"records"},
	"examples/watchmap/processes": {},
	"examples/watchmap/before":    {"examples/watchmap/store"},
}

// pure lists the packages that decide and do not act. They import none of impure, nor a package below one of those.
var (
	pure   = []string{"internal/meta", "internal/plan"}
	impure = []string{"os", "net", "sync", "context", "log", "math/rand", "crypto/rand", "runtime", "testing"}
)

// hosts lists the packages below internal that may import the root: they are the hosts of tests, and tests.
var hosts = []string{"internal/keyringtest", "internal/scenarios"}

// std lists the packages that import nothing but the standard library, this module, and the one module named.
var std = map[string]string{
	"internal/gate": "", "internal/meta": "", "internal/mono": "", "internal/plan": "", "internal/nks": "", "internal/seal": "", "internal/secret": "", "internal/peer": "", "internal/bounded": "", "internal/strictjson": "", "internal/join": "", "internal/parallel": "", "internal/simulated": "",
	"internal/durable": "golang.org/x/sys", "internal/jwt": "github.com/go-jose/go-jose/v3",
}

const module = "example.com/keyring"

// imports returns the imports of each package of this module, by the file that has them. Tests are left out.
func imports(t *testing.T) map[string]map[string][]string {
	t.Helper()
	all := map[string]map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return enter(path, d.Name())
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		if all[pkg] == nil {
			all[pkg] = map[string][]string{}
		}
		all[pkg][path] = nil
		for _, spec := range f.Imports {
			name, _ := strconv.Unquote(spec.Path.Value)
			all[pkg][path] = append(all[pkg][path], name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestImportsKeepToTheHouse checks every import against these lists.
func TestImportsKeepToTheHouse(t *testing.T) {
	all := imports(t)
	for pkg, files := range all {
		if _, known := house[pkg]; !known {
			t.Errorf("the house has no room %s", pkg)
			continue
		}
		for path, names := range files {
			for _, name := range names {
				if wrong := whyNot(pkg, name); wrong != "" {
					t.Errorf("%s imports %s: %s", path, name, wrong)
				}
			}
		}
	}
	for pkg := range house {
		if all[pkg] == nil {
			t.Errorf("the house has a room %s and the tree has none", pkg)
		}
	}
}

// heavy lists the modules that only a whole server needs, or a sink of metrics: a host with a raft of its own builds the
// root without them.
var heavy = []string{
	"github.com/hashicorp/raft-boltdb", "go.etcd.io/bbolt", "github.com/hashicorp/go-metrics", "github.com/armon/go-metrics",
}

// TestRootIsLight follows the imports of the root through this module, and those of what a host with a raft of its own adds.
func TestRootIsLight(t *testing.T) {
	all := imports(t)
	rooms := []string{".", "port"}
	for i := 0; i < len(rooms); i++ {
		for path, names := range all[rooms[i]] {
			for _, name := range names {
				if slices.ContainsFunc(heavy, func(h string) bool { return name == h || strings.HasPrefix(name, h+"/") }) {
					t.Errorf("the root needs %s, which imports %s", path, name)
				}
				if room, local := strings.CutPrefix(name, module+"/"); local && !slices.Contains(rooms, room) {
					rooms = append(rooms, room)
				}
			}
		}
	}
	if len(rooms) < 10 {
		t.Errorf("the root needs only %q", rooms)
	}
}

// enter skips what is no part of this module.
func enter(dir, name string) error {
	if dir == "." {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil || name == "testdata" || strings.HasPrefix(name, ".") {
		return filepath.SkipDir
	}
	return nil
}

// whyNot says why a package may not import another. It is empty if it may.
func whyNot(pkg, name string) string {
	below := func(parent string) bool { return name == parent || strings.HasPrefix(name, parent+"/") }
	room, local := strings.CutPrefix(name, module+"/")
	if name == module {
		room, local = ".", true
	}
	only, limited := std[pkg]
	switch {
	case local && !slices.Contains(house[pkg], room):
		return "the house has no such door"
	case room == "." && strings.HasPrefix(pkg, "internal/") && !slices.Contains(hosts, pkg):
		return "nothing internal imports the root"
	case limited && !local && strings.Contains(name, ".") && (only == "" || !below(only)):
		return "it needs no other module"
	case slices.Contains(pure, pkg) && slices.ContainsFunc(impure, below):
		return "it is pure"
	}
	return ""
}

func TestHouseRules(t *testing.T) {
	for _, tt := range []struct {
		pkg, name string
		allowed   bool
	}{
		{".", module + "/internal/plan", true},
		{"internal/plan", module + "/internal/meta", true},
		{"internal/plan", module + "/internal/peer", false},
		{"internal/plan", "slices", true},
		{"internal/plan", "log/slog", false},
		{"internal/plan", "sync/atomic", false},
		{"internal/meta", "net", false},
		{"internal/meta", "github.com/hashicorp/raft", false},
		{"internal/durable", "golang.org/x/sys/unix", true},
		{"internal/durable", "golang.org/x/text", false},
		{"internal/peer", module, false},
		{"internal/keyringtest", module, true},
		{"examples/quickstart", module, true},
		{"examples/quickstart", module + "/internal/plan", false},
	} {
		if why := whyNot(tt.pkg, tt.name); (why == "") != tt.allowed {
			t.Errorf("%s imports %s: %q", tt.pkg, tt.name, why)
		}
	}
}
