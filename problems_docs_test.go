package keyring

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// problemRow is a row of docs/problems.md.
type problemRow struct{ kind, severity, who, means, advice, goes string }

// TestEachKindOfProblemHasItsPlace: without one it would have no advice.
func TestEachKindOfProblemHasItsPlace(t *testing.T) {
	code, err := os.ReadFile("problems.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := regexp.MustCompile(`(?m)^\tProblem\w+ +ProblemKind += +"(.+?)"`).FindAllStringSubmatch(string(code), -1)
	for _, c := range constants {
		if kind := ProblemKind(c[1]); kind.advice() == "" {
			t.Errorf("%q is not in problemKinds", kind)
		}
	}
	if len(constants) != len(problemKinds) {
		t.Errorf("problems.go has %d constants, and problemKinds %d kinds", len(constants), len(problemKinds))
	}
}

// TestProblemsHaveRowsInTheDocs, one each, with the severity and the advice of the code; and where it says that only the
// leader tells of a problem, no other server does.
func TestProblemsHaveRowsInTheDocs(t *testing.T) {
	text, err := os.ReadFile("docs/problems.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]problemRow{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) != 6 || cells[0] == "| kind" {
			continue
		}
		row := problemRow{strings.TrimPrefix(cells[0], "| "), cells[1], cells[2], cells[3], cells[4], strings.TrimSuffix(cells[5], " |")}
		if _, twice := rows[row.kind]; twice || slices.Contains([]string{row.means, row.advice, row.goes}, "") {
			t.Errorf("a row is there twice, or has an empty cell: %+v", row)
		}
		rows[row.kind] = row
	}
	for _, p := range problemKinds {
		row := rows[string(p.kind)]
		if row.severity != string(p.severity) || row.advice != p.advice {
			t.Errorf("the row of %q has %+v, want the severity %q and the advice %q", p.kind, row, p.severity, p.advice)
		}
		if want := saidByOthers(p.kind); (row.who != "the leader") != want {
			t.Errorf("by its row %q is said by %s; said by a server that does not lead: %t", p.kind, row.who, want)
		}
		delete(rows, string(p.kind))
	}
	if len(rows) > 0 {
		t.Errorf("these rows are of no kind: %v", rows)
	}
}

// saidByOthers reports whether a server that does not lead says that there is a problem of the kind.
func saidByOthers(kind ProblemKind) bool {
	for _, tt := range problemCases {
		o := goodOverview()
		tt.wrong(&o)
		o.leader = "s2"
		if slices.ContainsFunc(o.status().Problems, func(p Problem) bool { return p.Kind == kind }) {
			return true
		}
	}
	return false
}
