package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/keyringtest"
)

// directories are those of the repository that have a file of Go, by the module that they belong to.
func directories(t *testing.T) map[string][]string {
	t.Helper()
	root, all := keyringtest.Root(t), map[string][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (name == "testdata" || name == "node_modules" || strings.HasPrefix(name, ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		dir := filepath.Dir(path)
		module := dir
		for module != root {
			if _, err := os.Stat(filepath.Join(module, "go.mod")); err == nil {
				break
			}
			module = filepath.Dir(module)
		}
		if module, err = filepath.Rel(root, module); err != nil {
			return err
		}
		if dir, err = filepath.Rel(root, dir); err != nil {
			return err
		}
		if dirs := all[filepath.ToSlash(module)]; !slices.Contains(dirs, filepath.ToSlash(dir)) {
			all[filepath.ToSlash(module)] = append(dirs, filepath.ToSlash(dir))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// firstCells are the names in backquotes in the first cells of the tables of a section.
func firstCells(t *testing.T, page, section string) (names []string) {
	t.Helper()
	_, text, found := strings.Cut(keyringtest.Pages(t)[page], "\n## "+section+"\n")
	if !found {
		t.Fatalf("%s has no section %q", page, section)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	for line := range strings.Lines(text) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
				names = append(names, m[1])
			}
		}
	}
	return names
}

// TestContributingListsEveryPackage of the main module once, every module, and nothing else.
func TestContributingListsEveryPackage(t *testing.T) {
	all := directories(t)
	var modules []string
	for module := range all {
		modules = append(modules, module)
	}
	for section, want := range map[string][]string{"The packages": all["."], "The modules": modules} {
		listed := firstCells(t, "CONTRIBUTING.md", section)
		slices.Sort(listed)
		slices.Sort(want)
		if !slices.Equal(listed, want) {
			t.Errorf("%s: CONTRIBUTING.md lists\n%q\nand there are\n%q", section, listed, want)
		}
	}
}

// TestContributingNamesTestsThatAreThere: those in its sentences, which are no marks.
func TestContributingNamesTestsThatAreThere(t *testing.T) {
	text, there := keyringtest.Pages(t)["CONTRIBUTING.md"], testNames(t)
	names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(text, -1)
	for _, m := range names {
		if !there[m[1]] {
			t.Errorf("there is no %s", m[1])
		}
	}
	if len(names) < 5 {
		t.Errorf("only %d tests are named", len(names))
	}
}

// TestOnlyDurableWritesFiles: what a crash leaves is known of its files alone. The commands of admin write backups.
func TestOnlyDurableWritesFiles(t *testing.T) {
	writes := regexp.MustCompile(`\bos\.(Create|CreateTemp|WriteFile|Rename|Mkdir|MkdirAll|MkdirTemp|Symlink|Link|Truncate|O_CREATE|O_WRONLY|O_RDWR)\b`)
	writers := map[string]bool{}
	for _, dir := range directories(t)["."] {
		if strings.HasPrefix(dir, "examples/") || strings.HasSuffix(dir, "test") {
			continue
		}
		files, err := filepath.Glob(filepath.Join(keyringtest.Root(t), filepath.FromSlash(dir), "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if found := writes.Find(b); found != nil && !strings.HasSuffix(f, "_test.go") {
				writers[dir] = true
				if dir != "internal/durable" && dir != "admin" {
					t.Errorf("%s has %s", f, found)
				}
			}
		}
	}
	if !writers["internal/durable"] {
		t.Error("not even internal/durable writes files")
	}
}
