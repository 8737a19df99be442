package scenarios_test

// Each kind of problem, made in a real cluster, ends by what its advice says.

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// cured is a cluster that has a problem.
type cured struct {
	c     *keyringtest.Cluster
	on    *keyringtest.Server // which says it
	cure  func()              // what the advice says to do, and no more
	after time.Duration       // when the problem is gone after that, at the latest; zero is a minute
}

// cures make the cause of a problem, which is there when the function returns.
var cures = []struct {
	kind  keyring.ProblemKind
	name  string
	cause func(t *testing.T) cured
}{
	{keyring.ProblemKeyMissing, "the file is brought back", keyNobodyHas},
	{keyring.ProblemPublicKey, "the key is removed", publicKeyAltered},
	{keyring.ProblemRemoved, "it starts again without its directory", removedServer},
	{keyring.ProblemWrite, "the disk has room again", fullDisk},
	{keyring.ProblemNotAFile, "it is moved out", notAFile},
	{keyring.ProblemKEKUnconfigured, "the KEK is configured", kekLeftOut},
	{keyring.ProblemKEKOther, "the right KEK is configured beside it", kekOfTheSameName},
	{keyring.ProblemKeyPending, "the servers are back", pendingKey},
	{keyring.ProblemJWKS, "keys are removed", manyKeys(removeOldest)},
	{keyring.ProblemJWKS, "tokens have ended", manyKeys(letTokensEnd)},
	{keyring.ProblemTime, "a clock that was behind is right", clockBehind},
	{keyring.ProblemTime, "the time comes", clocksWereAhead},
	{keyring.ProblemRekey, "the record is overwritten", spoiledRecord},
	{keyring.ProblemRekey, "the data is given back", dataLeftOut},
	{keyring.ProblemSetAside, "the file is deleted after a backup", fileSetAside},
	{keyring.ProblemOrphan, "it is adopted", orphanFile(true)},
	{keyring.ProblemOrphan, "it is moved out", orphanFile(false)},
	{keyring.ProblemNomad, "the files are deleted", nomadFiles},
	{keyring.ProblemBackup, "a backup is made", noBackup},
	{keyring.ProblemSchedule, "the store works again", storeThatFails},
	{keyring.ProblemOldKEK, "Rewrap", oldKEK},
	{keyring.ProblemKEKFile, "the mode is right", openKEKFile},
	{keyring.ProblemKEKFile, "the file is back", kekFileGone},
	{keyring.ProblemInlineKEK, "another KEK takes its place", inlineKEK},
}

// curedElsewhere are the kinds whose cures have tests of their own: the file, and the test.
var curedElsewhere = map[keyring.ProblemKind][2]string{
	keyring.ProblemKeystoreCopied: {"internal/scenarios/copied_test.go", "TestCopiedKeystoreIsToldUntilTheCopyIsGone"},
	keyring.ProblemIDTwice:        {"node/claims_test.go", "TestTwoServersOfOneID"},
	keyring.ProblemMoved:          {"internal/scenarios/place_test.go", "TestKeystoreThatIsNotInItsPlace"},
	keyring.ProblemKeystore:       {"internal/scenarios/place_test.go", "TestKeystoreThatIsNotInItsPlace"},
	keyring.ProblemNotApplied:     {"internal/scenarios/miswired_test.go", "TestCallsSayThatRaftAppliesElsewhere"},
	keyring.ProblemNoLeader:       {"internal/scenarios/status_test.go", "TestServerThatHearsFromNoLeaderSaysSo"},
	keyring.ProblemBehind:         {"internal/scenarios/caughtup_test.go", "TestServerThatHasNotCaughtUpSaysSo"},
	keyring.ProblemUnconfirmed:    {"internal/scenarios/restore_test.go", "TestI3NothingIsSealedAfterARestoreBeforeAMajorityHoldsTheKey"},
	keyring.ProblemFileOwner:      {"internal/scenarios/badfiles_test.go", "TestBarredFileIsTakenWhenItIsRight"},
	keyring.ProblemFileMode:       {"internal/scenarios/badfiles_test.go", "TestBarredFileIsTakenWhenItIsRight"},
	keyring.ProblemNotAFile:       {"internal/scenarios/badfiles_test.go", "TestBarredFileIsTakenWhenItIsRight"},
	keyring.ProblemKEKAway:        {"internal/scenarios/kekstates_test.go", "TestKEKThatKeepsTheFirstKeyFromBeingMadeIsNamed"},
	keyring.ProblemKEKRefuses:     {"internal/scenarios/kekstates_test.go", "TestKEKThatKeepsTheFirstKeyFromBeingMadeIsNamed"},
	keyring.ProblemKEKThrottled:   {"internal/scenarios/kekstates_test.go", "TestKEKThatKeepsTheFirstKeyFromBeingMadeIsNamed"},
	keyring.ProblemFirstKey:       {"internal/scenarios/firstkey_test.go", "TestFirstKeyComesWhenFilesThatWaitAreMovedAway"},
	keyring.ProblemNoNewKey:       {"internal/scenarios/kekstates_test.go", "TestRotationThatFailsForLongIsAProblem"},
	keyring.ProblemRaftDisk:       {"node/disk_test.go", "TestNodeSaysThatRaftCanNotWrite"},
	keyring.ProblemStuck:          {"internal/scenarios/status_test.go", "TestLeaderNamesServerWhoseLogTakesNothing"},
	keyring.ProblemUnderheld:      {"internal/scenarios/status_test.go", "TestLeaderNamesServersThatAreDownAndLackTheActiveKey"},
	keyring.ProblemUnreachable:    {"internal/scenarios/status_test.go", "TestLeaderNamesServersThatAreDownAndLackTheActiveKey"},
	keyring.ProblemClock:          {"internal/scenarios/clock_test.go", "TestOneWrongClockHarmsNoRotation"},
	keyring.ProblemPolicy:         {"internal/scenarios/problems_test.go", "TestPoliciesThatDifferAreAProblem"},
	keyring.ProblemCertificate:    {"node/certificates_status_test.go", "TestStatusTellsOfCertificatesThatEnd"},
	keyring.ProblemHost:           {"hostcalls_test.go", "TestProblemOfTheHostsFunctionEnds"},
	keyring.ProblemNonvoter:       {"internal/scenarios/hostmembers_test.go", "TestAddedServerGetsItsVoteWithTheKeys"},
	keyring.ProblemNewer:          {"internal/scenarios/badfiles_test.go", "TestKeyFileOfANewerVersionIsLeftAlone"},
	keyring.ProblemWaiting:        {"builds_test.go", "TestLeaderGoesOnWhileACommandWaits"},
	keyring.ProblemAltered:        {"internal/scenarios/altered_test.go", "TestEscrowThatWasTakenOutIsBack"},
	keyring.ProblemOpening:        {"internal/scenarios/slowkek_test.go", "TestThousandsOfKeysUnderASlowKEK"},
}

// TestProblemsEndByTheirAdvice: a server says what docs/problems.md says, keeps to when it began, and after the cure says
// nothing any more. No other server says it then either.
func TestProblemsEndByTheirAdvice(t *testing.T) {
	t.Parallel()
	rows := problemRows(t)
	for _, tt := range cures {
		t.Run(string(tt.kind)+", "+tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now().UTC().Add(-time.Hour) // a server's clock may be behind
				made := tt.cause(t)
				time.Sleep(2 * time.Minute)
				row := rows[string(tt.kind)]
				p := theProblem(t, made.on, tt.kind)
				if string(p.Severity) != row.severity && p.Severity != keyring.SeverityCritical || !strings.Contains(p.Advice, row.advice) || p.Detail == "" {
					t.Errorf("%+v, want it as in %+v", p, row)
				}
				if p.Since.Before(began) || p.Since.After(time.Now()) {
					t.Errorf("since %v, it began after %v", p.Since, began)
				}
				if row.who == "the leader" && made.c.Leader() != made.on {
					t.Errorf("%s leads, %s says it", made.c.Leader().ID, made.on.ID)
				}
				time.Sleep(time.Minute)
				if again := theProblem(t, made.on, tt.kind); !again.Since.Equal(p.Since) {
					t.Errorf("a minute later it began %v, before %v", again.Since, p.Since)
				}
				made.cure()
				time.Sleep(max(made.after, time.Minute))
				for _, s := range made.c.Live() {
					if left := keyringtest.Problems(t, s, tt.kind); len(left) > 0 {
						t.Errorf("%s: after the cure: %v", s.ID, left)
					}
				}
			})
		})
	}
}

// theProblem is the one of a kind that a server has.
func theProblem(t *testing.T, s *keyringtest.Server, kind keyring.ProblemKind) keyring.Problem {
	t.Helper()
	all := keyringtest.Problems(t, s, kind)
	if len(all) != 1 {
		t.Fatalf("%s has %d of the kind %q: %v", s.ID, len(all), kind, keyringtest.StatusOf(t, s).Problems)
	}
	return all[0]
}

// rowOfProblem is a row of docs/problems.md.
type rowOfProblem struct{ severity, who, advice string }

func problemRows(t *testing.T) map[string]rowOfProblem {
	t.Helper()
	text, err := os.ReadFile("../../docs/problems.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]rowOfProblem{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) == 6 {
			rows[strings.TrimPrefix(cells[0], "| ")] = rowOfProblem{cells[1], cells[2], cells[4]}
		}
	}
	return rows
}

// TestEveryProblemHasACure: a new kind needs a case in cures, or a test of its own that is named in curedElsewhere.
func TestEveryProblemHasACure(t *testing.T) {
	here := map[keyring.ProblemKind]bool{}
	for _, c := range cures {
		here[c.kind] = true
	}
	kinds := problemConstants(t)
	for kind, constant := range kinds {
		elsewhere, is := curedElsewhere[kind]
		switch {
		case !is && !here[kind]:
			t.Errorf("%s has neither a case in cures nor a test elsewhere", constant)
		case is && !mentions(t, elsewhere[0], elsewhere[1], constant):
			t.Errorf("%s has no test %s that has to do with %s", elsewhere[0], elsewhere[1], constant)
		}
	}
	if len(kinds) < 40 {
		t.Errorf("problems.go has %d kinds", len(kinds))
	}
}

// problemConstants are the kinds of problems.go, with the names of their constants.
func problemConstants(t *testing.T) map[keyring.ProblemKind]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../../problems.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[keyring.ProblemKind]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		if spec, is := n.(*ast.ValueSpec); is && strings.HasPrefix(spec.Names[0].Name, "Problem") {
			kind, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			kinds[keyring.ProblemKind(kind)] = spec.Names[0].Name
		}
		return true
	})
	return kinds
}

// mentions reports whether a file has that test, and the constant.
func mentions(t *testing.T, file, test, constant string) bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("../..", file), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	named := false
	ast.Inspect(f, func(n ast.Node) bool {
		id, is := n.(*ast.Ident)
		named = named || is && id.Name == constant
		return true
	})
	return named && slices.ContainsFunc(f.Decls, func(d ast.Decl) bool {
		fn, is := d.(*ast.FuncDecl)
		return is && fn.Name.Name == test
	})
}
