// Package docs_test holds the pages to what the code does: their snippets compile, their commands run, their
// links lead somewhere, and what they say names the tests that would fail if it were false.
package docs_test

import (
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/keyringtest"
)

var (
	fence    = regexp.MustCompile("(?ms)^( *)```(\\w*)\n(.*?)^ *```$")
	marker   = regexp.MustCompile(`<!-- (snippet|commands): ([\w-]+) -->\s*$`)
	heldBy   = regexp.MustCompile(`<!-- held by ([^>]*) -->`)
	heading  = regexp.MustCompile(`(?m)^(#+) (.*)$`)
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	testName = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz|Example)\w*)\(`)
)

// block is a fenced block of a page.
type block struct {
	page, lang, text string
	kind, name       string // of the comment in the line before
}

// blocks are those of all pages.
func blocks(t *testing.T) (all []block) {
	t.Helper()
	pages := keyringtest.Pages(t)
	for _, page := range slices.Sorted(maps.Keys(pages)) {
		text := pages[page]
		for _, at := range fence.FindAllStringSubmatchIndex(text, -1) {
			b := block{page: page, lang: text[at[4]:at[5]], text: text[at[6]:at[7]]}
			if m := marker.FindStringSubmatch(text[:at[0]]); m != nil {
				b.kind, b.name = m[1], m[2]
			}
			all = append(all, b)
		}
	}
	return all
}

// unindented is text with nothing before the first letter of each line.
func unindented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimLeft(line, " \t"))
	}
	return b.String()
}

// TestEachDocsSnippetCompiles: each Go block stands word for word in a file of tests, which compiles.
func TestEachDocsSnippetCompiles(t *testing.T) {
	var tests strings.Builder
	for _, text := range keyringtest.TestFiles(t) {
		tests.WriteString(unindented(text))
	}
	compiled, n := tests.String(), 0
	for _, b := range blocks(t) {
		if b.lang != "go" {
			continue
		}
		if n++; b.kind != "snippet" {
			t.Errorf("%s: a snippet has no name: %s", b.page, b.text)
		}
		if !strings.Contains(compiled, unindented(b.text)) {
			t.Errorf("%s: snippet %s is in no test", b.page, b.name)
		}
	}
	if n == 0 {
		t.Error("there are no snippets")
	}
}

// TestEachDocsCommandIsRun: a test takes each block of commands from its page, to run it. Those of the go command are
// checked as they stand; and no block is without a language, or only indented, so that none is left out here.
func TestEachDocsCommandIsRun(t *testing.T) {
	var tests strings.Builder
	for _, text := range keyringtest.TestFiles(t) {
		tests.WriteString(text)
	}
	for _, b := range blocks(t) {
		if b.lang == "" {
			t.Errorf("%s: a block names no language: %s", b.page, b.text)
		}
		if b.lang != "sh" || isChecked(b.text) {
			continue
		}
		if taken := `"` + b.page + `", "` + b.name + `")`; b.kind != "commands" || !strings.Contains(tests.String(), taken) {
			t.Errorf("%s: no test runs %q: %s", b.page, b.name, b.text)
		}
	}
	for page, text := range keyringtest.Pages(t) {
		before := ""
		for line := range strings.Lines(fence.ReplaceAllString(text, "")) {
			if strings.HasPrefix(line, "    ") && strings.TrimSpace(before) == "" && before != "" {
				t.Errorf("%s: a block is only indented: %s", page, line)
			}
			before = line
		}
	}
}

// TestEachDocsLinkLeadsSomewhere: to a file of the repository, and a heading in it.
func TestEachDocsLinkLeadsSomewhere(t *testing.T) {
	pages := keyringtest.Pages(t)
	n := 0
	for page, text := range pages {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			n++
			file, anchor, hasAnchor := strings.Cut(m[1], "#")
			to := page
			if file != "" {
				to = path.Join(path.Dir(page), file)
			}
			if !exists(t, to) {
				t.Errorf("%s: there is no %s", page, m[1])
			} else if hasAnchor && !slices.Contains(anchors(pages[to]), anchor) {
				t.Errorf("%s: there is no heading for %s", page, m[1])
			}
		}
	}
	if n == 0 {
		t.Error("there are no links")
	}
}

// anchors are those that GitHub gives to the headings of a page.
func anchors(text string) (all []string) {
	other := regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	times := map[string]string{"": ""}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		a := strings.ReplaceAll(other.ReplaceAllString(strings.ToLower(m[2]), ""), " ", "-")
		for _, again := times[a]; again || a == ""; _, again = times[a] {
			a += "-1"
		}
		times[a] = ""
		all = append(all, a)
	}
	return all
}

// TestEachDocsSectionIsHeld: each section of a page in docs, and of the example to copy from, names a test, or has a snippet or commands, and what it names is there.
func TestEachDocsSectionIsHeld(t *testing.T) {
	there := testNames(t)
	for page, text := range keyringtest.Pages(t) {
		for _, m := range heldBy.FindAllStringSubmatch(text, -1) {
			for _, name := range strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' }) {
				if name, _, _ := strings.Cut(name, "/"); !there[name] {
					t.Errorf("%s: there is no test %s", page, name)
				}
			}
		}
		if path.Dir(page) != "docs" && path.Dir(page) != "examples/controlplane" || slices.Contains(lists, page) {
			continue
		}
		for _, section := range strings.Split(text, "\n## ")[1:] {
			title, _, _ := strings.Cut(section, "\n")
			if !heldBy.MatchString(section) && !strings.Contains(section, "<!-- snippet: ") && !strings.Contains(section, "<!-- commands: ") {
				t.Errorf("%s: nothing holds %q", page, title)
			}
		}
	}
}

// lists are pages of which another test holds each row.
var lists = []string{"docs/README.md", "docs/problems.md"}

// testNames are the names of the tests, benchmarks, fuzz tests and examples of the repository.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	there := map[string]bool{}
	for _, text := range keyringtest.TestFiles(t) {
		for _, m := range testName.FindAllStringSubmatch(text, -1) {
			there[m[1]] = true
		}
	}
	return there
}

// figure is text with a number in it, made from the constant of the code, and the page that has it.
type figure struct{ page, text string }

// checkFigures wants each page to have its figures. A figure without a text is one that nobody has put into words for the
// number that the code has now.
func checkFigures(t *testing.T, figures []figure) {
	t.Helper()
	pages := keyringtest.Pages(t)
	for _, f := range figures {
		if flat := strings.Join(strings.Fields(pages[f.page]), " "); f.text == "" || !strings.Contains(flat, f.text) {
			t.Errorf("%s does not have %q", f.page, f.text)
		}
	}
}

// commands are the lines of the block of that name in a page, such as docs/backup.md.
func commands(t *testing.T, page, name string) []string {
	t.Helper()
	return keyringtest.Commands(t, page, name)
}
