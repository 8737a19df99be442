package admin

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// tells has a server tell of problems: each is a kind, a severity, and the server that it is about, if that is another.
func tells(all map[raft.ServerID]answer, from raft.ServerID, problems ...string) {
	change(all, from, func(a *answer) {
		for _, p := range problems {
			words := strings.Split(p, ", ")
			problem := keyring.Problem{Kind: keyring.ProblemKind(words[0]), Severity: keyring.Severity(words[1]), Detail: "why"}
			if len(words) > 2 {
				problem.Server = raft.ServerID(words[2])
			}
			if strings.HasPrefix(words[0], "KEK") {
				problem.KEK = "file:" + string(from)
				a.KEKs[0].Away = "why"
			}
			if problem.Kind == keyring.ProblemNoLeader {
				a.Leader = ""
			}
			a.Causes = append(a.Causes, problem)
		}
	})
}

var symptomCases = []struct {
	name   string
	change func(map[raft.ServerID]answer)
	want   []string // severity, kind, servers
}{
	{"the log can't be written", func(all map[raft.ServerID]answer) {
		tells(all, "s3", "no leader, critical", "raft not written, critical")
		tells(all, "s1", "no usable answer, warning, s3", "server behind, warning, s3")
	}, []string{"critical raft not written s3"}},
	{"removed", func(all map[raft.ServerID]answer) {
		tells(all, "s3", "no leader, critical", "not caught up, critical", "removed, critical")
	}, []string{"critical removed s3"}},
	{"a certificate that is refused", func(all map[raft.ServerID]answer) {
		tells(all, "s3", "not caught up, critical", "no leader, critical", "certificate, critical")
		tells(all, "s1", "no usable answer, warning, s3", "underheld, warning, s3")
	}, []string{"critical certificate s3", "warning underheld s3"}},
	{"a certificate that ends soon is no cause", func(all map[raft.ServerID]answer) {
		tells(all, "s3", "no leader, critical", "certificate, warning")
	}, []string{"critical cut off s3", "warning certificate s3"}},
	{"a clock", func(all map[raft.ServerID]answer) {
		tells(all, "s3", "no leader, critical", "clock, warning, s1", "clock, warning, s2")
		tells(all, "s1", "clock, warning, s3", "no usable answer, warning, s3")
	}, []string{"critical clock s3"}},
	{"a clock of two that differ is no cause", func(all map[raft.ServerID]answer) {
		tells(all, "s3", "no leader, critical", "clock, warning, s1")
	}, []string{"critical cut off s3", "warning clock s1, s3"}},
	{"a KEK that refuses", func(all map[raft.ServerID]answer) {
		tells(all, "s2", "key missing, critical", "KEK refuses, critical")
		tells(all, "s1", "underheld, warning, s2")
	}, []string{"critical KEK refuses s2"}},
	{"an old KEK does not say why other keys are missing", func(all map[raft.ServerID]answer) {
		tells(all, "s2", "key missing, critical", "KEK away, critical")
		change(all, "s2", func(a *answer) { a.KEKs[0].Old = true })
	}, []string{"critical KEK away s2", "critical key missing s2"}},
	{"a KEK of another server", func(all map[raft.ServerID]answer) {
		tells(all, "s1", "key missing, critical")
		tells(all, "s2", "KEK refuses, critical")
	}, []string{"critical KEK refuses s2", "critical key missing s1"}},
	{"cut off, and running", func(all map[raft.ServerID]answer) {
		tells(all, "s3", "no leader, critical", "not caught up, critical")
		tells(all, "s1", "no usable answer, warning, s3")
	}, []string{"critical cut off s3"}},
	{"it runs, and another does not reach it", func(all map[raft.ServerID]answer) {
		tells(all, "s1", "no usable answer, warning, s3")
	}, []string{"warning unheard s3"}},
	{"it hangs", func(all map[raft.ServerID]answer) {
		all["s3"] = answer{Error: "no answer within a second", Hangs: true}
		tells(all, "s1", "no usable answer, warning, s3", "underheld, warning, s3")
	}, []string{"warning hangs s3"}},
	{"no leader at all", func(all map[raft.ServerID]answer) {
		all["s1"], all["s2"] = answer{Error: "connection refused"}, answer{Error: "connection refused"}
		tells(all, "s3", "no leader, critical", "not caught up, critical")
	}, []string{"critical no leader s3", "warning no usable answer s1, s2"}},
}

// What follows from something else that is wrong on the same server is told with it, and its advice is not: it would not help.
func TestSymptomsAreToldWithTheirCause(t *testing.T) {
	for _, test := range symptomCases {
		all := three()
		test.change(all)
		var got []string
		for _, c := range overviewOf(testSite, testNow, all).Problems {
			got = append(got, fmt.Sprintf("%s %s %s", c.Severity, c.Kind, list(c.Servers)))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// The headline names the server that differs, and not the one that says so.
func TestTheOddOneIsNamed(t *testing.T) {
	for _, kind := range []string{"clock", "policy differs"} {
		isPolicy := kind == "policy differs"
		for _, test := range []struct {
			name string
			says string // pairs: the server that says so, and the one that differs
			want string
		}{
			{"a follower, as both others say", "s1:s2 s3:s2", "s2"},
			{"a follower, as all say", "s1:s2 s2:s1 s2:s3 s3:s2", "s2"},
			{"the leader", "s2:s1 s3:s1 s1:s2 s1:s3", "s1"},
			{"two, and nobody else has said so yet", "s2:s1", "s1, s2"},
			{"all three", "s1:s2 s2:s3 s3:s1", "s1, s2, s3"},
			{"a follower, as the leader says, which compares all policies", "s1:s2", map[bool]string{true: "s2", false: "s1, s2"}[isPolicy]},
		} {
			all := three()
			for _, pair := range strings.Fields(test.says) {
				from, about, _ := strings.Cut(pair, ":")
				tells(all, raft.ServerID(from), kind+", warning, "+about)
			}
			c := overviewOf(testSite, testNow, all).Problems[0]
			if string(c.Kind) != kind || list(c.Servers) != test.want || !strings.HasSuffix(c.Title, "("+test.want+")") {
				t.Errorf("%s: %s of %s, want %s: %q", test.name, c.Kind, list(c.Servers), test.want, c.Title)
			}
		}
	}
	all := three()
	delete(all, "s3")
	tells(all, "s1", "policy differs, warning, s2")
	if c := overviewOf(testSite, testNow, all).Problems[0]; list(c.Servers) != "s1, s2" {
		t.Errorf("of two servers either may be wrong, and it names %s", list(c.Servers))
	}
}

// The command that ends a difference has the value of the servers that agree, where that is known.
func TestPolicyCommandHasTheValueOfTheOthers(t *testing.T) {
	for every, want := range map[string]string{
		"24h0m0s": "controlplane serve -every 24h0m0s /tmp/cp s2", "default": "controlplane serve /tmp/cp s2", "": "controlplane serve -every DURATION /tmp/cp s2",
	} {
		all := three()
		for _, id := range []raft.ServerID{"s1", "s3"} {
			change(all, id, func(a *answer) { a.Every = every })
		}
		change(all, "s2", func(a *answer) { a.Every = "1h0m0s" })
		tells(all, "s1", "policy differs, warning, s2")
		if got := overviewOf(testSite, testNow, all).Problems[0].Commands; !slices.Equal(got, []string{want}) {
			t.Errorf("%q: %q, want %q", every, got, want)
		}
	}
}

// The advice names what differs, and a command that would change something else is not given: to start a server by it would
// turn its backups off.
func TestPolicyAdviceNamesWhatDiffers(t *testing.T) {
	for detail, want := range map[string]struct {
		named   string
		command bool
	}{
		`Rotation.Every is "24h0m0s" on s2, and "1h0m0s" on s1; Rotation.Lead is "1h0m0s" on s2, and "6m0s" on s1`: {"their Rotation.Every and Rotation.Lead", true},
		`Tokens.Issuer is "" on s2, and "https://Tokens.X is" on s1`:                                               {"their Tokens.Issuer", true},
		`s2 accepts tokens with the issuers ["https://b"], and s1 rejects them`:                                    {"their Tokens.AcceptIssuers", true},
		`Backups.Every is "0s" on s2, and "24h0m0s" on s1`:                                                         {"their Backups.Every", false},
		`Backups.Every is "0s" on s2, and "24h0m0s" on s1; Rotation.Every is "1h0m0s" on s2, and "2h0m0s" on s1`:   {"their Backups.Every and Rotation.Every", false},
		`RekeyGrace is "0s" on s2, and "24h0m0s" on s1`:                                                            {"their RekeyGrace", false},
		"something that a newer build says":                                                                        {"their rotation period, their issuer and their backups", true},
	} {
		all := three()
		tells(all, "s1", "policy differs, warning, s2")
		change(all, "s1", func(a *answer) { a.Causes[0].Detail = detail })
		c := overviewOf(testSite, testNow, all).Problems[0]
		if !strings.Contains(c.Advice, "start it with "+want.named+".") || len(c.Commands) > 0 != want.command {
			t.Errorf("%s:\n%s %q, want %v", detail, c.Advice, c.Commands, want)
		}
	}
}

// The servers that have one keystore are named, and not the leader, which only tells of them.
func TestServersWithOneKeystoreAreNamed(t *testing.T) {
	all := three()
	tells(all, "s1", "copied keystore, critical, s2", "copied keystore, critical, s3")
	tells(all, "s2", "copied keystore, critical", "copied keystore, critical, s3")
	v := overviewOf(testSite, testNow, all)
	if want := "Something is wrong now. First: Servers have copies of one keystore directory (s2, s3)."; v.Verdict.Text != want || len(v.Problems) != 1 {
		t.Errorf("%q, want %q: %+v", v.Verdict.Text, want, v.Problems)
	}
}

// A cluster whose members do not all answer, or of which none may fail, is not well.
func TestOnlyAClusterWithRedundancyIsWell(t *testing.T) {
	members := func(ids ...raft.ServerID) func(*answer) {
		return func(a *answer) {
			a.Members, a.Voters, a.Addrs = ids, nil, map[raft.ServerID]string{}
			for _, id := range ids {
				a.Voters, a.Addrs[id] = append(a.Voters, string(id)), "127.0.0.1:84"+string(id[1:])
			}
		}
	}
	down := answer{Error: "connection refused"}
	for _, test := range []struct {
		name    string
		change  func(map[raft.ServerID]answer)
		verdict string
	}{
		{"three vote", func(all map[raft.ServerID]answer) { change(all, "s1", members("s1", "s2", "s3")) }, "All is well: 3 of 3 servers answer, s1 leads."},
		{"two vote", func(all map[raft.ServerID]answer) {
			change(all, "s1", members("s1", "s2"))
			all["s3"] = down
		}, "It works, but would not if a server failed: 2 of 2 servers answer, s1 leads. There are 2 notices."},
		{"one votes", func(all map[raft.ServerID]answer) {
			change(all, "s1", members("s1"))
			all["s2"], all["s3"] = down, down
		}, "It works, but would not if a server failed: 1 of 1 servers answer, s1 leads. There are 2 notices."},
		{"one more than cluster.json has", func(all map[raft.ServerID]answer) { change(all, "s1", members("s1", "s2", "s3", "s4")) },
			"It works, with 1 problem to solve. First: A member was not asked: the URL of its API is unknown (s4)."},
	} {
		all := three()
		test.change(all)
		if v := overviewOf(testSite, testNow, all); v.Verdict.Text != test.verdict {
			t.Errorf("%s: %q, want %q", test.name, v.Verdict.Text, test.verdict)
		}
	}
}

// A member that cluster.json does not have is a column all the same, with what it has reported, and no command serves it here.
func TestMembersAreThoseOfRaft(t *testing.T) {
	all := three()
	change(all, "s1", func(a *answer) {
		a.Members, a.Addrs = []raft.ServerID{"s1", "s2", "s3", "s4"}, map[raft.ServerID]string{"s4": "127.0.0.1:8404"}
		a.Keys[0].Holders = []raft.ServerID{"s1", "s2", "s3", "s4"}
	})
	tells(all, "s1", "no usable answer, warning, s4")
	v := overviewOf(testSite, testNow, all)
	if got := roleOf("s2", all, Status{Leader: "s1", Members: []raft.ServerID{"s1", "s2"}, Voters: []string{"s1"}}); got != "non-voter" {
		t.Errorf("a member without a vote is a %s", got)
	}
	if got := v.Servers[3]; got != (ServerRow{ID: "s4", Role: "not asked"}) {
		t.Errorf("%+v", got)
	}
	if got := []string{v.Keys[0].Held[3], v.Keys[1].Held[3]}; !slices.Equal(got, []string{"held", "unknown"}) {
		t.Errorf("%q", got)
	}
	for _, c := range v.Problems { // no command: the member may be a replacement, and nobody should paste its removal
		if strings.Contains(strings.Join(c.Commands, ";"), "serve ") || c.Kind == problemNotListed && (len(c.Commands) > 0 || !strings.Contains(c.Details[0], "127.0.0.1:8404")) {
			t.Errorf("%s: %q, %q", c.Kind, c.Details, c.Commands)
		}
	}
}

// No time that lies ahead is when something began: another server's clock has said so.
func TestNothingBeganInTheFuture(t *testing.T) {
	all := three()
	change(all, "s2", func(a *answer) {
		a.Causes = []keyring.Problem{{Kind: keyring.ProblemHost, Severity: "warning", Since: testNow.Add(2 * 60 * 60 * 1e9)}}
	})
	if c := overviewOf(testSite, testNow, all).Problems[0]; c.Since != "" {
		t.Errorf("since %s", c.Since)
	}
}
