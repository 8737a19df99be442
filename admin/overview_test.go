package admin

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

var (
	testNow  = time.Date(2026, 11, 30, 8, 0, 0, 0, time.FixedZone("elsewhere", 3600)) // 07:00 UTC
	testSite = site{cluster: "prod", server: "s1", program: testProgram, urls: map[raft.ServerID]string{"s1": testProgram.Server, "s2": "http://127.0.0.1:8002", "s3": "http://127.0.0.1:8003"}}
)

// three is three servers that are well, with two keys, of which s1 leads.
func three() map[raft.ServerID]answer {
	all := map[raft.ServerID]answer{}
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		all[id] = answer{Status: Status{
			ID: id, Leader: "s1", Ready: true, NextRotation: testNow.Add(72 * time.Hour),
			Keys: []KeyStatus{
				{ID: "new", State: keyring.StateActive, Algorithm: "ES256", Since: testNow.Add(-3 * time.Hour), Records: 5},
				{ID: "old", State: keyring.StateRekeying, Algorithm: "ES256", Since: testNow.Add(-100 * time.Hour), Records: 2},
			},
			KEKs:       []keyring.KEKStatus{{ID: "file:" + string(id)}, {ID: "age:escrow"}},
			LastBackup: keyring.LastBackup{Index: 7, Time: testNow.Add(-50 * time.Minute)},
		}}
	}
	return all
}

// change changes the answer of a server.
func change(all map[raft.ServerID]answer, id raft.ServerID, f func(*answer)) {
	a := all[id]
	f(&a)
	all[id] = a
}

func TestViewOfServersThatAreWell(t *testing.T) {
	all := three()
	change(all, "s1", func(a *answer) { a.Rekeying = []RekeyStatus{{Key: "old", Moved: 8, Left: 2}} })
	got := overviewOf(testSite, testNow, all)
	held := []string{"held", "held", "held"}
	want := Overview{
		Cluster: "prod", Server: "s1", Counted: true, Verdict: Verdict{"", "All is well: 3 of 3 servers answer, s1 leads."},
		NextRotation: "2026-12-03 07:00 UTC, in 3 days", LastBackup: "2026-11-30 06:10 UTC, 50 minutes ago",
		KEKs: []KEKRow{
			{ID: "file:s1", Servers: []raft.ServerID{"s1"}, State: "wraps"},
			{ID: "age:escrow", Servers: []raft.ServerID{"s1", "s2", "s3"}, State: "wraps"},
			{ID: "file:s2", Servers: []raft.ServerID{"s2"}, State: "wraps"},
			{ID: "file:s3", Servers: []raft.ServerID{"s3"}, State: "wraps"},
		},
		Problems: []Cause{},
		Servers:  []ServerRow{{ID: "s1", Role: "leader"}, {ID: "s2", Role: "follower"}, {ID: "s3", Role: "follower"}},
		Keys: []KeyRow{
			{ID: "new", State: "active", Algorithm: "ES256", Since: "2026-11-30 04:00 UTC", Age: "3 hours", Records: 5, Held: held},
			{ID: "old", State: "rekeying", Algorithm: "ES256", Since: "2026-11-26 03:00 UTC", Age: "4 days", Records: 2, Held: held, Moving: &Moving{Moved: 8, Left: 2}},
		},
	}
	want.Active = &want.Keys[0]
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Each row is what goes wrong, and the verdict, and the causes, the worst first, each with its commands.
func TestViewOfTrouble(t *testing.T) {
	one, two := keyring.KeyID{1}, keyring.KeyID{2}
	since := testNow.Add(-2 * time.Hour)
	problem := func(kind keyring.ProblemKind, severity keyring.Severity) keyring.Problem {
		return keyring.Problem{Kind: kind, Severity: severity, Detail: "why", Advice: "Call It."}
	}
	for _, test := range []struct {
		name    string
		change  func(map[raft.ServerID]answer)
		verdict string
		causes  []string // severity, title | servers | since | commands
	}{
		{"a notice on each", func(all map[raft.ServerID]answer) {
			for id := range all {
				change(all, id, func(a *answer) { a.Causes = []keyring.Problem{problem(keyring.ProblemInlineKEK, "notice")} })
			}
		}, "All is well: 3 of 3 servers answer, s1 leads. There is 1 notice.", []string{"notice inline KEK |s1, s2, s3||"}},
		{"two keys on two servers are one cause", func(all map[raft.ServerID]answer) {
			p := problem(keyring.ProblemKeyMissing, "critical")
			p.Keys, p.Since = []keyring.KeyID{one}, since
			q := p
			q.Keys, q.Since = []keyring.KeyID{one, two}, since.Add(-time.Hour)
			change(all, "s2", func(a *answer) { a.Causes = []keyring.Problem{p} })
			change(all, "s3", func(a *answer) { a.Causes = []keyring.Problem{q} })
		}, "Something is wrong now. First: Keys are missing: these servers can't decrypt the data under them (s2, s3).",
			[]string{"critical key missing |s2, s3|2026-11-30 04:00 UTC|controlplane inspect -kek /tmp/cp/s2.kek /tmp/cp/s2/keystore; controlplane inspect -kek /tmp/cp/s3.kek /tmp/cp/s3/keystore"}},
		{"the worst first", func(all map[raft.ServerID]answer) {
			orphan := problem(keyring.ProblemOrphan, "notice")
			orphan.Keys = []keyring.KeyID{one}
			change(all, "s1", func(a *answer) {
				a.Causes = []keyring.Problem{orphan, problem(keyring.ProblemBackup, "warning"), problem("of the host", "critical")}
			})
		}, "Something is wrong now. First: of the host (s1).",
			[]string{"critical of the host |s1||", "warning no backup |s1||controlplane backup -to RECIPIENT FILE", "notice orphan file |s1||controlplane keys adopt " + one.String()}},
		{"of what presses as much, a backup is the last", func(all map[raft.ServerID]answer) {
			change(all, "s1", func(a *answer) { a.Causes = []keyring.Problem{problem(keyring.ProblemBackup, "warning")} })
			change(all, "s2", func(a *answer) { a.Causes = []keyring.Problem{problem(keyring.ProblemKEKUnconfigured, "warning")} })
		}, "It works, with 2 problems to solve. First: Key files name a KEK that the server was not given (s2).", []string{
			"warning KEK not configured |s2||controlplane inspect -kek /tmp/cp/s2.kek /tmp/cp/s2/keystore; controlplane serve -escrow RECIPIENT -identity FILE /tmp/cp s2; mv /tmp/cp/s2/keystore /tmp/cp/s2/keystore.old",
			"warning no backup |s1||controlplane backup -to RECIPIENT FILE"}},
		{"one that does not answer, as others say too", func(all map[raft.ServerID]answer) {
			all["s3"] = answer{Error: "connection refused"}
			p := problem(keyring.ProblemUnreachable, "warning")
			p.Server = "s3"
			change(all, "s1", func(a *answer) { a.Causes = []keyring.Problem{p} })
		}, "It works, with 1 problem to solve. First: No answer (s3).", []string{"warning no usable answer |s3||controlplane serve /tmp/cp s3"}},
		{"no leader", func(all map[raft.ServerID]answer) {
			all["s1"], all["s3"] = answer{Error: "connection refused"}, answer{Error: "connection refused"}
			change(all, "s2", func(a *answer) { a.Leader = "" })
		}, "Something is wrong now. First: No leader: nothing can be stored, signed or rotated (s2).",
			[]string{"critical no leader |s2||controlplane recover /tmp/cp ID", "warning no usable answer |s1, s3||controlplane serve /tmp/cp s1; controlplane serve /tmp/cp s3"}},
		{"one server hears from no leader", func(all map[raft.ServerID]answer) {
			change(all, "s3", func(a *answer) {
				a.Leader, a.Causes = "", []keyring.Problem{problem(keyring.ProblemNoLeader, "critical")}
			})
		}, "Something is wrong now. First: A server hears from no leader, although there is one (s3).",
			[]string{"critical cut off |s3||timedatectl; openssl verify -CAfile /tmp/cp/ca.pem /tmp/cp/s3.pem"}},
		{"a clock that is wrong, as its server says of the leader's", func(all map[raft.ServerID]answer) {
			p := problem(keyring.ProblemClock, "warning")
			p.Server = "s1"
			change(all, "s2", func(a *answer) { a.Causes = []keyring.Problem{p} })
		}, "It works, with 1 problem to solve. First: Clocks differ: servers may refuse each other's tokens (s1, s2).",
			[]string{"warning clock |s1, s2||timedatectl"}},
		{"two notices", func(all map[raft.ServerID]answer) {
			change(all, "s2", func(a *answer) {
				a.Causes = []keyring.Problem{problem(keyring.ProblemInlineKEK, "notice"), problem("of the host", "notice")}
			})
		}, "All is well: 3 of 3 servers answer, s1 leads. There are 2 notices.", []string{"notice inline KEK |s2||", "notice of the host |s2||"}},
		{"two servers vote: a notice", func(all map[raft.ServerID]answer) {
			change(all, "s1", func(a *answer) { a.Voters = []string{"s1", "s2"} })
		}, "It works, but would not if a server failed: 3 of 3 servers answer, s1 leads. There is 1 notice.", []string{"notice no redundancy |||"}},
		{"two clusters", func(all map[raft.ServerID]answer) {
			change(all, "s3", func(a *answer) { a.Leader = "s3" })
		}, "It works, with 1 problem to solve. First: A server follows another leader than the one that is shown (s3).",
			[]string{"warning two clusters |s3||controlplane servers add s3"}},
		{"not ready, and nothing says why", func(all map[raft.ServerID]answer) {
			change(all, "s2", func(a *answer) { a.Ready = false })
		}, "It works, with 1 problem to solve. First: Not ready (s2).", []string{"warning not ready |s2||controlplane keys status"}},
		{"removed and stopped", func(all map[raft.ServerID]answer) {
			all["s3"] = answer{Error: "connection refused"}
			change(all, "s1", func(a *answer) { a.Members = []raft.ServerID{"s1", "s2"} })
		}, "All is well: 2 of 2 servers answer, s1 leads. There is 1 notice.",
			[]string{"notice not a member |s3||controlplane servers add s3; controlplane serve /tmp/cp s3"}},
		{"the server that is asked was removed", func(all map[raft.ServerID]answer) {
			change(all, "s2", func(a *answer) {
				a.Leader, a.Members, a.Causes = "s2", []raft.ServerID{"s2", "s3"}, []keyring.Problem{problem(keyring.ProblemBackup, "warning")}
			})
			change(all, "s3", func(a *answer) { a.Leader = "s2" })
			change(all, "s1", func(a *answer) {
				a.Leader, a.Causes = "", []keyring.Problem{problem(keyring.ProblemRemoved, "critical")}
			})
		}, "Something is wrong now. First: Removed from the cluster, and still running (s1).", []string{
			"critical removed |s1||", // a command to add it would let a stolen server in again
			"warning no backup |s2||controlplane -server http://127.0.0.1:8002 backup -to RECIPIENT FILE"}},
		{"a command for another server", func(all map[raft.ServerID]answer) {
			change(all, "s2", func(a *answer) { a.Causes = []keyring.Problem{problem(keyring.ProblemOldKEK, "notice")} })
		}, "All is well: 3 of 3 servers answer, s1 leads. There is 1 notice.", []string{"notice old KEKs |s2||controlplane -server http://127.0.0.1:8002 keys rewrap"}},
		{"an older build", func(all map[raft.ServerID]answer) {
			change(all, "s2", func(a *answer) { a.Problems = []string{"no backup: why. Call Backup."} })
		}, "It works, with 1 problem to solve. First: Keys are in no backup (s2).", []string{"warning no backup |s2||controlplane backup -to RECIPIENT FILE"}},
	} {
		all := three()
		test.change(all)
		v := overviewOf(testSite, testNow, all)
		var causes []string
		for _, c := range v.Problems {
			causes = append(causes, fmt.Sprintf("%s %s |%s|%s|%s", c.Severity, c.Kind, list(c.Servers), c.Since, strings.Join(c.Commands, "; ")))
		}
		if v.Verdict.Text != test.verdict || !slices.Equal(causes, test.causes) {
			t.Errorf("%s: %q\n%s\nwant %q\n%s", test.name, v.Verdict.Text, strings.Join(causes, "\n"), test.verdict, strings.Join(test.causes, "\n"))
		}
	}
}

func TestViewOfKeysThatAreNotEverywhere(t *testing.T) {
	all := three()
	all["s3"] = answer{Error: "connection refused"}
	change(all, "s2", func(a *answer) { a.Missing, a.Ready = []string{"old"}, false })
	v := overviewOf(testSite, testNow, all)
	if got := v.Keys[1].Held; !slices.Equal(got, []string{"held", "missing", "unknown"}) {
		t.Errorf("held: %q", got)
	}
	change(all, "s2", func(a *answer) { a.Missing, a.Keys = nil, a.Keys[1:] }) // it is behind
	if got := overviewOf(testSite, testNow, all).Keys[0].Held; !slices.Equal(got, []string{"held", "missing", "unknown"}) {
		t.Errorf("a key that one has not heard of: %q", got)
	}
	if v.Servers[1].Role != "not ready" || v.Servers[2].Role != "no answer" {
		t.Errorf("%+v", v.Servers)
	}
	none := overviewOf(testSite, testNow, map[raft.ServerID]answer{"s1": {Status: Status{ID: "s1"}}})
	if none.Active != nil || none.NextRotation != "only by hand" || none.LastBackup != "none yet" || none.Verdict.Severity != keyring.SeverityCritical {
		t.Errorf("%+v", none)
	}
}

func TestViewSaysWhatAKEKDoes(t *testing.T) {
	all := three()
	change(all, "s2", func(a *answer) {
		a.KEKs = []keyring.KEKStatus{{ID: "lost", State: keyring.KEKUnconfigured, Away: "x"}, {ID: "of an older build", Away: "y"}}
	})
	got := map[string]string{}
	for _, k := range overviewOf(testSite, testNow, all).KEKs {
		got[k.ID] = k.State
	}
	if got["lost"] != "not configured" || got["of an older build"] != "does not answer" {
		t.Errorf("%q", got)
	}
}

// However much there is to say of a cause, it stays a few lines, and a few commands.
func TestACauseStaysShort(t *testing.T) {
	all := three()
	p := keyring.Problem{Kind: keyring.ProblemOrphan, Severity: "notice"}
	for i := range 60 {
		p.Detail, p.Keys = fmt.Sprint("file ", i), []keyring.KeyID{{byte(i + 1)}}
		change(all, "s1", func(a *answer) { a.Causes = append(a.Causes, p) })
	}
	c := overviewOf(testSite, testNow, all).Problems[0]
	if len(c.Details) != shownDetails+1 || c.Details[shownDetails] != "and 56 more" || len(c.Keys) != 60 || len(c.Commands) != shownKeys {
		t.Errorf("%d details, %d keys, %d commands: %+v", len(c.Details), len(c.Keys), len(c.Commands), c)
	}
}

// Words that come from others are quoted in a command that somebody pastes into a shell.
func TestCommandsAreSafeToPaste(t *testing.T) {
	at := site{cluster: "c", server: "s1", program: Program{Start: `controlplane serve '/tmp/o'\''brien' $SERVER`}}
	got := remedies[keyring.ProblemUnreachable].commandsFor(at, []raft.ServerID{"s2; rm -rf /", "$(x)"}, nil)
	want := []string{`controlplane serve '/tmp/o'\''brien' 's2; rm -rf /'`, `controlplane serve '/tmp/o'\''brien' '$(x)'`}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	at.program.Keystore = "/tmp/o'brien/$SERVER/keystore"
	got = remedy{commands: []string{"df -h $KEYSTORE"}}.commandsFor(at, []raft.ServerID{"$(x)"}, nil)
	if want := `df -h '/tmp/o'\''brien/$(x)/keystore'`; !slices.Equal(got, []string{want}) {
		t.Errorf("%q, want %s", got, want)
	}
}

// A process that hangs is not helped by a start: the address and the directory are taken.
func TestRemedyOfAServerThatDoesNotAnswerEndsAProcessThatHangs(t *testing.T) {
	if r := remedies[keyring.ProblemUnreachable]; !strings.Contains(r.advice, "kill -9 and start it again") {
		t.Errorf("it says %q", r.advice)
	}
}

// Each kind of the library has its remedy here, in words of this program, and each command in it is one of this program.
func TestEachKindOfProblemHasARemedy(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../problems.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	kinds := 0
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || fmt.Sprint(spec.Type) != "ProblemKind" {
			return true
		}
		kind, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		kinds++
		if r := remedies[keyring.ProblemKind(kind)]; r.title == "" || r.advice == "" {
			t.Errorf("the kind %q has no remedy", kind)
		}
		return true
	})
	if kinds < 25 {
		t.Errorf("problems.go has %d kinds", kinds)
	}
	usage := newCLI(CommandOptions{Program: testProgram}).usageOf("") + " serve  recover "
	for kind, r := range remedies {
		for _, command := range r.commandsFor(testSite, []raft.ServerID{"s1"}, []string{"x"}) {
			words := strings.Fields(command)
			if words[0] == "controlplane" && !strings.Contains(usage, " "+words[1]+" ") || strings.Contains(command, "$") {
				t.Errorf("%s: %q", kind, command)
			}
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "less than 2 minutes", time.Minute: "less than 2 minutes", 2 * time.Minute: "2 minutes", 119 * time.Minute: "119 minutes",
		2 * time.Hour: "2 hours", 47 * time.Hour: "47 hours", 48 * time.Hour: "2 days", 999 * 24 * time.Hour: "999 days", 1000 * 24 * time.Hour: "years",
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// The first certificate to end is shown, and what is still in the clear.
func TestOverviewHasCertificatesAndRecordsInTheClear(t *testing.T) {
	all := three()
	ends := func(server raft.ServerID, ca bool, in time.Duration) keyring.Certificate {
		return keyring.Certificate{Server: server, CA: ca, NotAfter: testNow.Add(in)}
	}
	change(all, "s1", func(a *answer) {
		a.Certificates = []keyring.Certificate{ends("s2", false, 72*time.Hour), ends("s1", true, 200*time.Hour)}
		a.Rekeying = []RekeyStatus{{Key: keyring.KeyID{}.String(), Moved: 3, Left: -1}}
	})
	change(all, "s3", func(a *answer) { a.Certificates = []keyring.Certificate{ends("s3", true, 50*time.Hour)} })
	v := overviewOf(testSite, testNow, all)
	if want := "2026-12-02 09:00 UTC, in 2 days (s3, its CA's)"; v.Certificate != want || v.Clear == nil || *v.Clear != (Moving{3, -1, ""}) {
		t.Errorf("%q, want %q; %+v", v.Certificate, want, v.Clear)
	}
	var out strings.Builder
	if err := v.print(&out); err != nil || !strings.Contains(out.String(), v.Certificate) || !strings.Contains(out.String(), "3 records encrypted, ? left") {
		t.Errorf("%v: %s", err, &out)
	}
	change(all, "s3", func(a *answer) { a.Certificates = []keyring.Certificate{ends("s3", false, 0)} })
	if v := overviewOf(testSite, testNow, all); !strings.Contains(v.Certificate, "expired (s3)") {
		t.Errorf("%q", v.Certificate)
	}
}
