package admin

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// Cause is one cause of trouble, on one or more servers, and what to do about it.
type Cause struct {
	Severity keyring.Severity    `json:"severity"`
	Kind     keyring.ProblemKind `json:"kind"`
	Title    string              `json:"title"`
	Since    string              `json:"since,omitempty"` // when a server first saw it: in UTC, for people
	Servers  []raft.ServerID     `json:"servers"`         // the servers that the cause is about
	Keys     []string            `json:"keys,omitempty"`
	Details  []string            `json:"details"`
	Advice   string              `json:"advice"`
	Commands []string            `json:"commands,omitempty"` // commands that help

	since time.Time
}

// Kinds of the overview's own: no server says them of itself.
const (
	problemTwoClusters keyring.ProblemKind = "two clusters"
	problemNotReady    keyring.ProblemKind = "not ready"
	problemCutOff      keyring.ProblemKind = "cut off"
	problemNotMember   keyring.ProblemKind = "not a member"
	problemNotListed   keyring.ProblemKind = "not listed"
	problemHangs       keyring.ProblemKind = "hangs"
	problemBadAnswer   keyring.ProblemKind = "bad answer"
	problemUnheard     keyring.ProblemKind = "unheard"
	problemNoSpare     keyring.ProblemKind = "no redundancy"
)

const shownDetails = 4 // of a cause; how many more there are is said

// causesOf makes one cause of all problems of a kind, the worst first, without what follows from others.
func causesOf(at site, now time.Time, ids []raft.ServerID, answers map[raft.ServerID]answer, best Status) []Cause {
	all := []Cause{}
	told := allSaid(at, ids, answers, best)
	for _, s := range fold(told, answers) {
		i := slices.IndexFunc(all, func(c Cause) bool { return c.Kind == s.Kind })
		if i < 0 {
			i, all = len(all), append(all, Cause{Kind: s.Kind, Severity: s.Severity, Advice: s.Advice, Details: []string{}})
		}
		all[i].take(s, now)
	}
	for i := range all {
		c := &all[i]
		switch c.Kind {
		case keyring.ProblemClock: // any of two clocks may be the wrong one
			c.about(differing(told, c.Kind, answered(answers), ""))
		case keyring.ProblemPolicy:
			c.about(differing(told, c.Kind, answered(answers), best.Leader))
		}
		to := at.askingAMember(best)
		to.every = everyOf(ids, answers, c.Servers)
		c.finish(to)
		if c.Kind == keyring.ProblemPolicy {
			c.ofPolicies(told)
		}
	}
	slices.SortStableFunc(all, func(a, b Cause) int {
		return cmp.Or(
			cmp.Compare(rank(a.Severity), rank(b.Severity)), cmp.Compare(a.waits(), b.waits()))
	})
	return all
}

// allSaid is what all servers tell of, and what the overview adds to that.
func allSaid(at site, ids []raft.ServerID, answers map[raft.ServerID]answer, best Status) (all []said) {
	add := func(from raft.ServerID, p keyring.Problem) { all = append(all, said{from, p}) }
	for _, id := range ids {
		if best.hasLeft(id) && answers[id].Error != "" {
			add(id, keyring.Problem{Kind: problemNotMember, Severity: keyring.SeverityNotice, Detail: "this server was given its URL, but it is no member"})
			continue
		}
		for _, p := range problemsOf(answers[id], best) {
			if a, asked := answers[p.Server]; p.Kind == keyring.ProblemUnreachable && asked && a.Error == "" && p.Server != id {
				p.Kind, p.Detail = problemUnheard, fmt.Sprintf("by %s, to which it is at %s: %s", id, cmp.Or(best.Addrs[p.Server], "an unknown address"), p.Detail)
			}
			add(id, p)
		}
	}
	for _, id := range best.Members {
		if _, asked := answers[id]; !asked && len(at.urls) > 0 {
			add(id, keyring.Problem{Kind: problemNotListed, Severity: keyring.SeverityWarning, Detail: fmt.Sprintf(
				"it is a member, at %s, but %s has no URL for its API and could not ask it for its problems", cmp.Or(best.Addrs[id], "an unknown address"), at.server)})
		}
	}
	if n := len(best.Voters); best.leads() && (n == 1 || n == 2) {
		add("", keyring.Problem{Kind: problemNoSpare, Severity: keyring.SeverityNotice, Detail: fmt.Sprintf("only %s: %s",
			map[int]string{1: "1 server votes", 2: "2 servers vote"}[n], strings.Join(best.Voters, ", "))})
	}
	if best.Leader == "" && !slices.ContainsFunc(all, func(s said) bool { return s.Kind == keyring.ProblemNoLeader }) {
		add(best.ID, keyring.Problem{Kind: keyring.ProblemNoLeader, Severity: keyring.SeverityCritical, Detail: "no server that answers knows a leader"})
	}
	return all
}

// askingAMember is the site whose commands ask a member: a server that was removed knows no leader.
func (at site) askingAMember(best Status) site {
	at.addrs, at.leader = best.Addrs, best.Leader
	if len(best.Members) == 0 || slices.Contains(best.Members, at.server) {
		return at
	}
	members := append([]raft.ServerID{best.ID}, best.Members...)
	if i := slices.IndexFunc(members, func(id raft.ServerID) bool { return slices.Contains(best.Members, id) && at.urls[id] != "" }); i >= 0 {
		at.server = members[i]
	}
	return at
}

// problemsOf are those that a server has told of, and those that it is one of itself.
func problemsOf(a answer, best Status) (all []keyring.Problem) {
	if a.Error != "" {
		kind := keyring.ProblemUnreachable
		switch {
		case a.Hangs:
			kind = problemHangs
		case a.Bad:
			kind = problemBadAnswer
		}
		return []keyring.Problem{{Kind: kind, Severity: keyring.SeverityWarning, Detail: a.Error}}
	}
	all = slices.Clone(a.Causes)
	for i := range all {
		if all[i].Kind == keyring.ProblemNoLeader && best.Leader != "" { // to recover that server would make two clusters
			all[i].Kind = problemCutOff
			all[i].Detail += fmt.Sprintf("; the leader is %s, at %s", best.Leader, cmp.Or(best.Addrs[best.Leader], "an unknown address"))
		}
	}
	saysWhy := slices.ContainsFunc(all, func(p keyring.Problem) bool { return p.Severity != keyring.SeverityNotice })
	if !a.Ready && !saysWhy && len(a.Problems) == len(a.Causes) {
		all = append(all, keyring.Problem{Kind: problemNotReady, Severity: keyring.SeverityWarning, Detail: "it is not ready"})
	}
	if len(a.Causes) == 0 { // an older build has texts alone
		for _, text := range a.Problems {
			kind, detail, _ := strings.Cut(text, ": ")
			all = append(all, keyring.Problem{Kind: keyring.ProblemKind(kind), Severity: keyring.SeverityWarning, Detail: detail})
		}
	}
	// To have no leader is no sign of another cluster, and while the leader changes only the next look tells.
	if best.Leader != "" && a.Leader != "" && a.Leader != best.Leader {
		all = append(all, keyring.Problem{Kind: problemTwoClusters, Severity: keyring.SeverityWarning, Detail: fmt.Sprintf(
			"its leader is %s, not %s", a.Leader, best.Leader)})
	}
	return all
}

// take adds a problem to the cause, by the server that tells of it.
func (c *Cause) take(p said, now time.Time) {
	about := p.about()
	if !slices.Contains(c.Servers, about) && about != "" {
		c.Servers = append(c.Servers, about)
	}
	for _, id := range p.Keys {
		if key := id.String(); !slices.Contains(c.Keys, key) {
			c.Keys = append(c.Keys, key)
		}
	}
	detail := p.Detail
	if p.KEK != "" && !strings.Contains(detail, p.KEK) {
		detail = p.KEK + ": " + detail
	}
	if about != "" {
		detail = string(about) + ": " + detail
	}
	if !slices.Contains(c.Details, detail) {
		c.Details = append(c.Details, detail)
	}
	if rank(p.Severity) < rank(c.Severity) {
		c.Severity = p.Severity
	}
	if !p.Since.IsZero() && !p.Since.After(now) && (c.since.IsZero() || p.Since.Before(c.since)) {
		c.since = p.Since
	}
}

// about names the servers that the cause is about, if it is known which.
func (c *Cause) about(servers []raft.ServerID) {
	if len(servers) > 0 {
		c.Servers = servers
	}
}

// finish adds what to do.
func (c *Cause) finish(at site) {
	slices.Sort(c.Servers)
	if more := len(c.Details) - shownDetails; more > 1 {
		c.Details = append(c.Details[:shownDetails], fmt.Sprintf("and %d more", more))
	}
	if !c.since.IsZero() {
		c.Since = utc(c.since)
	}
	c.Title = string(c.Kind)
	if r, known := remedies[c.Kind]; known {
		c.Title, c.Advice = r.title, r.advice
		c.Commands = r.commandsFor(at, c.Servers, c.Keys)
	}
	if len(c.Servers) > 0 {
		c.Title += " (" + list(c.Servers) + ")"
	}
}

// policyNamed finds the name of each policy in the details of ProblemPolicy.
var policyNamed = regexp.MustCompile(`(?:^|; )([A-Z][A-Za-z]*(?:\.[A-Z][A-Za-z]*)?) is "`)

// ofPolicies names the policies that differ in the advice. The command of Program.Start knows the rotation
// period, and reads the issuers from where they are: for another policy it may be wrong, so none is given.
func (c *Cause) ofPolicies(told []said) {
	var names []string
	for _, s := range told {
		if s.Kind != keyring.ProblemPolicy {
			continue
		}
		for _, found := range policyNamed.FindAllStringSubmatch(s.Detail, -1) {
			names = append(names, found[1])
		}
		if strings.Contains(s.Detail, " accepts tokens with the issuers ") {
			names = append(names, "Tokens.AcceptIssuers")
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	for _, name := range names {
		if !strings.HasPrefix(name, "Rotation.") && !strings.HasPrefix(name, "Tokens.") {
			c.Commands = nil
		}
	}
	policies := "their rotation period, their issuer and their backups" // an older or a newer build says it in other words
	if len(names) > 0 {
		policies = "their " + strings.Join(names, " and ")
	}
	c.Advice = strings.ReplaceAll(c.Advice, "$POLICIES", policies)
}

// waits is more for what can wait for the other causes that press as much: for what may follow from one, and
// most for what every rotation brings.
func (c Cause) waits() int {
	if c.Kind == keyring.ProblemBackup {
		return 2
	}
	if _, follows := symptoms[c.Kind]; follows { // from something that was not told yet, or on another server
		return 1
	}
	return 0
}

// pressing is how many causes are no notices.
func pressing(causes []Cause) (n int) {
	for _, c := range causes {
		if c.Severity != keyring.SeverityNotice {
			n++
		}
	}
	return n
}

func rank(s keyring.Severity) int {
	switch s {
	case keyring.SeverityCritical:
		return 0
	case keyring.SeverityNotice:
		return 2
	}
	return 1
}

func list(servers []raft.ServerID) string {
	var b strings.Builder
	for i, id := range servers {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(id))
	}
	return b.String()
}

// print writes the cause for people.
func (c Cause) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s: %s", line(string(c.Severity)), line(c.Title))
	if c.Since != "" {
		fmt.Fprintf(out, " (since %s)", c.Since)
	}
	fmt.Fprintln(out)
	for _, d := range c.Details {
		fmt.Fprintf(out, "    %s\n", flat(d))
	}
	if len(c.Keys) > 0 {
		shown := c.Keys
		if more := len(c.Keys) - shownDetails; more > 0 {
			shown = append(slices.Clone(c.Keys[:shownDetails]), fmt.Sprintf("and %d more", more))
		}
		fmt.Fprintf(out, "    of %s: %s\n", count(len(c.Keys), "key"), line(strings.Join(shown, ", ")))
	}
	fmt.Fprintf(out, "    %s\n", line(c.Advice))
	for _, command := range c.Commands {
		fmt.Fprintf(out, "        %s\n", line(command))
	}
}

// printKeys writes keys and servers as a table.
func (v Overview) printKeys(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nKEY\tSTATE\tALGORITHM\tSINCE\tRECORDS")
	for _, s := range v.Servers {
		mark := ""
		if s.Role == "leader" {
			mark = "*"
		}
		fmt.Fprintf(w, "\t%s%s", line(string(s.ID)), mark)
	}
	fmt.Fprintln(w)
	for _, k := range v.Keys {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s", line(k.ID), line(string(k.State)), line(k.Algorithm), k.Since, countOf(k.Records))
		for _, how := range k.Held {
			fmt.Fprintf(w, "\t%s", how)
		}
		fmt.Fprintln(w)
	}
	w.Flush() // a Builder does not fail
	fmt.Fprintln(out, "* leads; unknown: the server does not answer")
	for _, k := range v.Keys {
		if m := k.Moving; m != nil {
			fmt.Fprintf(out, "rekeying %s: %d moved, %s left %s\n", line(k.ID), m.Moved, countOf(m.Left), flat(m.Error))
		}
	}
}

// countOf is a number of records, for people.
func countOf(n int) string {
	if n < 0 {
		return "?"
	}
	return strconv.Itoa(n)
}
