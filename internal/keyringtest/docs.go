package keyringtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Pages are the Markdown files of the repository, by their paths from its root, with slashes.
func Pages(t testing.TB) map[string]string {
	t.Helper()
	pages := map[string]string{}
	files(t, func(path string) bool { return strings.HasSuffix(path, ".md") }, func(path string, b []byte) { pages[path] = string(b) })
	return pages
}

// TestFiles are the files of tests of the repository, those of its other modules included.
func TestFiles(t testing.TB) map[string]string {
	t.Helper()
	tests := map[string]string{}
	files(t, func(path string) bool { return strings.HasSuffix(path, "_test.go") }, func(path string, b []byte) { tests[path] = string(b) })
	return tests
}

func files(t testing.TB, wanted func(path string) bool, use func(path string, content []byte)) {
	t.Helper()
	root := Root(t)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == "node_modules" || name == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || !wanted(rel) {
			return err
		}
		b, err := os.ReadFile(path)
		use(filepath.ToSlash(rel), b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Root is the directory of the repository.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, ".ci")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("this is not in the repository", err)
	return ""
}

// Commands are the lines of the block of shell commands that has this name in a page, such as docs/backup.md. Lines that end with a
// backslash go on in the next one. Comments and empty lines are left out.
func Commands(t testing.TB, page, name string) []string {
	t.Helper()
	block := regexp.MustCompile("(?s)<!-- commands: " + regexp.QuoteMeta(name) + " -->\n *```sh\n(.*?)```")
	b, err := os.ReadFile(filepath.Join(Root(t), filepath.FromSlash(page)))
	if err != nil {
		t.Fatal(err)
	}
	found := block.FindAllStringSubmatch(string(b), -1)
	if len(found) != 1 {
		t.Fatalf("%s has %d blocks of commands with the name %s", page, len(found), name)
	}
	var lines []string
	for line := range strings.Lines(strings.ReplaceAll(found[0][1], "\\\n", " ")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}
