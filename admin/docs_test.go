package admin

// What docs/operations.md and docs/problems.md show of the overview is what it says.

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"example.com/keyring"
)

func docsPage(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestOperationsPageShowsAStatus that keys status prints, as far as the keys.
func TestOperationsPageShowsAStatus(t *testing.T) {
	all := three()
	all["s3"] = answer{Error: `Get "http://127.0.0.1:8003/v1/status": dial tcp 127.0.0.1:8003: connect: connection refused`}
	var out strings.Builder
	if err := overviewOf(testSite, testNow, all).print(&out); err != nil {
		t.Fatal(err)
	}
	printed, _, _ := strings.Cut(out.String(), "\nactive key: ")
	if !strings.Contains(docsPage(t, "operations.md"), "```text\n"+printed+"```\n") {
		t.Errorf("docs/operations.md does not show:\n%s", printed)
	}
}

// TestProblemsPageHasTheKindsOfTheOverview that no server says of itself, and no others.
func TestProblemsPageHasTheKindsOfTheOverview(t *testing.T) {
	code, err := os.ReadFile("causes.go")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(docsPage(t, "problems.md"), "\n## What keys status adds\n")
	rows := regexp.MustCompile("(?m)^\\| `(.*)` \\| .{20}").FindAllStringSubmatch(section, -1)
	kinds := map[keyring.ProblemKind]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\tproblem\w+ +keyring.ProblemKind = "(.+)"`).FindAllStringSubmatch(string(code), -1) {
		kinds[keyring.ProblemKind(m[1])] = true
	}
	for _, row := range rows {
		if !kinds[keyring.ProblemKind(row[1])] {
			t.Errorf("%q is no kind of the overview's", row[1])
		}
		delete(kinds, keyring.ProblemKind(row[1]))
	}
	if len(kinds) > 0 || len(rows) < 5 {
		t.Errorf("docs/problems.md does not have %v", kinds)
	}
}

// TestProblemsPageHasTheTitlesOfTheOverview with the kind of each, and no others.
func TestProblemsPageHasTheTitlesOfTheOverview(t *testing.T) {
	_, section, _ := strings.Cut(docsPage(t, "problems.md"), "\n## What `keys status` prints\n")
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| (.+) \\| `(.+)` \\|$").FindAllStringSubmatch(section, -1) {
		rows[m[1]] = m[2]
	}
	for kind, r := range remedies {
		if rows[r.title] != string(kind) {
			t.Errorf("docs/problems.md says that %q is %q, want %q", r.title, rows[r.title], kind)
		}
		delete(rows, r.title)
	}
	if len(rows) > 0 {
		t.Errorf("no problem has these titles: %v", rows)
	}
}
