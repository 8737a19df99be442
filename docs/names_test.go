package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"example.com/keyring/internal/keyringtest"
)

var (
	comment     = regexp.MustCompile(`(?s)<!--.*?-->`)
	quoted      = regexp.MustCompile("`([^`\n]+)`")
	goFile      = regexp.MustCompile(`^[\w/-]+\.go$`)
	goName      = regexp.MustCompile(`^(?:\w+\.)*[A-Za-z]\w*$`)
	exportedOne = regexp.MustCompile(`\b[A-Z]\w*`)
)

// TestEachDocsNameIsInTheCode: what a page names as a function, type, field or file of the code is one: a name that the code has
// no longer is nothing that somebody can look up.
func TestEachDocsNameIsInTheCode(t *testing.T) {
	names, files := map[string]bool{}, map[string]bool{}
	err := filepath.WalkDir(keyringtest.Root(t), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[d.Name()] = true
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		b, err := os.ReadFile(path)
		for _, name := range exportedOne.FindAllString(string(b), -1) {
			names[name] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for page, text := range keyringtest.Pages(t) {
		for _, m := range quoted.FindAllStringSubmatch(comment.ReplaceAllString(fence.ReplaceAllString(text, ""), ""), -1) {
			switch {
			case goFile.MatchString(m[1]):
				if n++; !files[filepath.Base(m[1])] {
					t.Errorf("%s: there is no file %s", page, m[1])
				}
			case goName.MatchString(m[1]):
				for _, name := range exportedOne.FindAllString(m[1], -1) {
					if n++; !names[name] && !names["Benchmark"+name] {
						t.Errorf("%s: the code has no %s", page, m[1])
					}
				}
			}
		}
	}
	if n < 300 {
		t.Errorf("only %d names", n)
	}
}
