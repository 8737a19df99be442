package docs_test

import (
	"regexp"
	"strings"
	"testing"

	"example.com/keyring/internal/keyringtest"
)

// TestPerformancePageHasItsBenchmarks: each one that a table names is there, and a command of the page runs it.
func TestPerformancePageHasItsBenchmarks(t *testing.T) {
	const page = "docs/performance.md"
	text, there := keyringtest.Pages(t)[page], testNames(t)
	var patterns []*regexp.Regexp
	for _, m := range regexp.MustCompile(`(?m)^go test .*-bench (\S+)`).FindAllStringSubmatch(text, -1) {
		patterns = append(patterns, regexp.MustCompile(strings.Trim(m[1], "'")))
	}
	rows, runs := 0, map[*regexp.Regexp]bool{}
	for line := range strings.Lines(text) {
		cells := strings.Split(line, " | ")
		if len(cells) < 3 || strings.Contains(line, "| benchmark |") {
			continue
		}
		rows++
		name := "Benchmark" + strings.Trim(cells[1], "`")
		if !there[name] {
			t.Errorf("there is no %s: %s", name, line)
		}
		run := false
		for _, p := range patterns {
			if p.MatchString(name) {
				run, runs[p] = true, true
			}
		}
		if !run {
			t.Errorf("no command of the page runs %s", name)
		}
	}
	for _, p := range patterns {
		if !runs[p] {
			t.Errorf("%s runs nothing that a table names", p)
		}
	}
	if rows < 15 || len(patterns) < 5 {
		t.Errorf("%d rows, %d commands", rows, len(patterns))
	}
}
