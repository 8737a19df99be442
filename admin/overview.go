package admin

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// Overview is the state of the cluster as one server sees it, for the page and for keys status. It is
// computed from the statuses of all servers alone. The page decides nothing but the layout.
type Overview struct {
	Cluster string        `json:"cluster"`
	Server  raft.ServerID `json:"server"`  // the server that has asked the others
	Buttons bool          `json:"buttons"` // the page may rotate and remove keys
	Counted bool          `json:"counted"` // KeyRow.Records is known
	Verdict Verdict       `json:"verdict"`

	Active       *KeyRow     `json:"active,omitempty"`       // nil if there is none
	NextRotation string      `json:"nextRotation"`           // for people, with the time in UTC
	LastBackup   string      `json:"lastBackup"`             // likewise
	BackupSigner string      `json:"backupSigner,omitempty"` // of the backups made now
	Certificate  string      `json:"certificate,omitempty"`  // when the first certificate expires, likewise
	Clear        *Moving     `json:"clear,omitempty"`        // records in the clear, which are being encrypted
	KEKs         []KEKRow    `json:"keks"`
	Problems     []Cause     `json:"problems"` // the worst first
	Servers      []ServerRow `json:"servers"`
	Keys         []KeyRow    `json:"keys"` // the newest first
}

// Verdict says whether all is well. Severity is that of the worst problem, or empty.
type Verdict struct {
	Severity keyring.Severity `json:"severity,omitempty"`
	Text     string           `json:"text"`
}

// KEKRow is a KEK, with the servers that use it.
type KEKRow struct {
	ID      string          `json:"id"`
	Servers []raft.ServerID `json:"servers"`
	State   string          `json:"state"` // wraps, old, or why it does not
	Detail  string          `json:"detail,omitempty"`
}

// ServerRow is a server.
type ServerRow struct {
	ID    raft.ServerID `json:"id"`
	Role  string        `json:"role"` // leader, follower, non-voter, not ready, no answer, bad answer, no member or not asked
	Error string        `json:"error,omitempty"`
}

// KeyRow is a key. Held says for each of Overview.Servers whether it has the key: held, missing or unknown.
type KeyRow struct {
	ID        string        `json:"id"`
	State     keyring.State `json:"state"`
	Algorithm string        `json:"algorithm"`
	Since     string        `json:"since"`   // when it was made, or became active: in UTC, for people
	Age       string        `json:"age"`     // since then
	Records   int           `json:"records"` // under the key, counted by the leader; -1 if unknown
	Held      []string      `json:"held"`
	Moving    *Moving       `json:"moving,omitempty"` // for a key whose records are being re-encrypted
}

// Moving is the progress of re-encrypting a key's records under the active key.
type Moving struct {
	Moved int    `json:"moved"`
	Left  int    `json:"left"` // -1 if unknown
	Error string `json:"error,omitempty"`
}

// site is what an overview shows that no status has.
type site struct {
	cluster string
	server  raft.ServerID
	buttons bool
	program Program
	urls    map[raft.ServerID]string // of the handlers; empty if nobody has said where they are
	addrs   map[raft.ServerID]string // in raft
	leader  raft.ServerID            // empty if there is none
	every   string                   // the flag of Program.Start that most servers run with, with a space before it
}

// overviewOf makes the overview of what each server has answered.
func overviewOf(at site, now time.Time, answers map[raft.ServerID]answer) Overview {
	ids := slices.Sorted(maps.Keys(answers))
	best := bestOf(ids, answers)
	shown := slices.Clone(ids)
	for _, id := range best.Members {
		if _, asked := answers[id]; !asked {
			shown = append(shown, id)
		}
	}
	slices.Sort(shown)
	v := Overview{
		Cluster: at.cluster, Server: at.server, Buttons: at.buttons, NextRotation: "only by hand", LastBackup: "none yet",
		KEKs: keksOf(ids, answers), Problems: causesOf(at, now, ids, answers, best), Servers: []ServerRow{}, Keys: []KeyRow{},
	}
	for _, id := range shown {
		v.Servers = append(v.Servers, ServerRow{id, roleOf(id, answers, best), answers[id].Error})
	}
	for _, k := range best.Keys {
		v.Keys = append(v.Keys, keyRowOf(k, now, shown, answers, best.Rekeying))
	}
	if i := slices.IndexFunc(v.Keys, func(k KeyRow) bool { return k.State == keyring.StateActive }); i >= 0 {
		v.Active = &v.Keys[i]
	}
	if t := best.NextRotation; !t.IsZero() {
		v.NextRotation = utc(t) + ", in " + span(t.Sub(now))
		if t.Before(now) {
			v.NextRotation = utc(t) + ": due"
		}
	}
	if b := best.LastBackup; !b.Time.IsZero() {
		v.LastBackup = utc(b.Time) + ", " + span(now.Sub(b.Time)) + " ago"
	}
	if best.BackupSigner != (keyring.BackupSigner{}) {
		v.BackupSigner = best.BackupSigner.String()
	}
	v.Certificate = firstToEnd(ids, answers, now)
	for _, r := range best.Rekeying {
		if r.Key == (keyring.KeyID{}).String() {
			v.Clear = &Moving{r.Moved, r.Left, r.Error}
		}
	}
	v.Counted = slices.ContainsFunc(v.Keys, func(k KeyRow) bool { return k.Records >= 0 })
	v.Verdict = verdictOf(v.Problems, v.Servers)
	return v
}

// bestOf returns the status of the first leader, or of the first other server that has answered: if there is
// one, of one that knows a leader. That the leader's API gives no good answer does not mean that there is
// none.
func bestOf(ids []raft.ServerID, answers map[raft.ServerID]answer) (best Status) {
	for _, id := range ids {
		a := answers[id]
		if a.Error == "" && a.Leader == id {
			return a.Status
		}
		if a.Error == "" && (best.ID == "" || best.Leader == "" && a.Leader != "") {
			best = a.Status
		}
	}
	return best
}

func roleOf(id raft.ServerID, answers map[raft.ServerID]answer, best Status) string {
	a, asked := answers[id]
	switch {
	case !asked:
		return "not asked"
	case a.Error != "" && best.hasLeft(id):
		return "no member"
	case a.Bad:
		return "bad answer"
	case a.Error != "":
		return "no answer"
	case !a.Ready:
		return "not ready"
	case a.ID == best.Leader:
		return "leader"
	case slices.Contains(best.Members, id) && !slices.Contains(best.Voters, string(id)):
		return "non-voter"
	}
	return "follower"
}

func keyRowOf(k KeyStatus, now time.Time, ids []raft.ServerID, answers map[raft.ServerID]answer, rekeying []RekeyStatus) KeyRow {
	v := KeyRow{
		ID: k.ID, State: k.State, Algorithm: k.Algorithm, Since: utc(k.Since), Age: span(now.Sub(k.Since)), Records: k.Records,
	}
	for _, id := range ids {
		how := "held"
		if a, asked := answers[id]; a.Error != "" || !asked {
			how = "unknown"
			if !asked && slices.Contains(k.Holders, id) { // as it has reported
				how = "held"
			}
		} else if slices.Contains(a.Missing, k.ID) || !a.knows(k.ID) {
			how = "missing"
		}
		v.Held = append(v.Held, how)
	}
	for _, r := range rekeying {
		if r.Key == k.ID {
			v.Moving = &Moving{r.Moved, r.Left, r.Error}
		}
	}
	return v
}

// keksOf returns the KEKs of all servers, each once for each state that it is in.
func keksOf(ids []raft.ServerID, answers map[raft.ServerID]answer) []KEKRow {
	all := []KEKRow{}
	for _, id := range ids {
		for _, k := range answers[id].KEKs {
			now := KEKRow{ID: k.ID, State: "wraps", Detail: cmp.Or(k.Away, k.Warning)}
			switch {
			case k.Away != "":
				now.State = string(cmp.Or(k.State, keyring.KEKUnavailable))
			case k.Old:
				now.State = "old"
			}
			i := slices.IndexFunc(all, func(o KEKRow) bool { return o.ID == now.ID && o.State == now.State && o.Detail == now.Detail })
			if i < 0 {
				i, all = len(all), append(all, now)
			}
			all[i].Servers = append(all[i].Servers, id)
		}
	}
	return all
}

// firstToEnd says when the first certificate ends of those that the servers tell of, and whose it is.
func firstToEnd(ids []raft.ServerID, answers map[raft.ServerID]answer, now time.Time) string {
	var first keyring.Certificate
	for _, id := range ids {
		for _, c := range answers[id].Certificates {
			if first.NotAfter.IsZero() || c.NotAfter.Before(first.NotAfter) {
				first = c
			}
		}
	}
	if first.NotAfter.IsZero() {
		return ""
	}
	whose := string(first.Server)
	if first.CA {
		whose += ", its CA's"
	}
	if !first.NotAfter.After(now) {
		return utc(first.NotAfter) + ": expired (" + whose + ")"
	}
	return utc(first.NotAfter) + ", in " + span(first.NotAfter.Sub(now)) + " (" + whose + ")"
}

func verdictOf(causes []Cause, servers []ServerRow) Verdict {
	up, members, lead, so := 0, 0, "", "All is well: "
	for _, s := range servers {
		if s.Role == "no member" {
			continue
		}
		members++
		switch s.Role {
		case "no answer", "bad answer":
			continue
		case "not asked":
			so = "All is well on the servers that were asked: "
			continue
		case "leader":
			lead = ", " + string(s.ID) + " leads"
		}
		up++
	}
	well := fmt.Sprintf("%d of %d servers answer%s.", up, members, lead)
	if len(causes) == 0 {
		return Verdict{"", so + well}
	}
	worst, n := causes[0], pressing(causes)
	switch {
	case n == 0:
		there := " There is "
		if len(causes) > 1 {
			there = " There are "
		}
		if slices.ContainsFunc(causes, func(c Cause) bool { return c.Kind == problemNoSpare }) {
			so = "It works, but would not if a server failed: "
		}
		return Verdict{worst.Severity, so + well + there + count(len(causes), "notice") + "."}
	case worst.Severity == keyring.SeverityCritical:
		return Verdict{worst.Severity, "Something is wrong now. First: " + worst.Title + "."}
	}
	return Verdict{worst.Severity, "It works, with " + count(n, "problem") + " to solve. First: " + worst.Title + "."}
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprint(n, " ", what)
}

// utc is a time for people.
func utc(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.UTC().Format("2006-01-02 15:04 UTC")
}

// span is how long something is, in its largest unit alone: what is shown then seldom changes.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 2*time.Minute:
		return "less than 2 minutes"
	case d < 2*time.Hour:
		return fmt.Sprint(int(d/time.Minute), " minutes")
	case d < 2*day:
		return fmt.Sprint(int(d/time.Hour), " hours")
	case d < 1000*day:
		return fmt.Sprint(int(d/day), " days")
	}
	return "years" // as of a time that nobody has set
}

// print writes the overview for people.
func (v Overview) print(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, asked at %s: %s\n", line(v.Cluster), line(string(v.Server)), line(v.Verdict.Text))
	for _, c := range v.Problems {
		c.print(&b)
	}
	if k := v.Active; k != nil {
		fmt.Fprintf(&b, "\nactive key:     %s, %s, for %s, since %s\n", line(k.ID), line(k.Algorithm), k.Age, k.Since)
	} else {
		fmt.Fprintf(&b, "\nactive key:     none\n")
	}
	fmt.Fprintf(&b, "next rotation:  %s\nlast backup:    %s\n", v.NextRotation, v.LastBackup)
	if v.BackupSigner != "" {
		fmt.Fprintf(&b, "backups are signed by %s\n", v.BackupSigner)
	}
	if v.Certificate != "" {
		fmt.Fprintf(&b, "certificate:    the first expires %s\n", line(v.Certificate))
	}
	if m := v.Clear; m != nil {
		fmt.Fprintf(&b, "in the clear:   %d records encrypted, %s left %s\n", m.Moved, countOf(m.Left), flat(m.Error))
	}
	for _, k := range v.KEKs {
		fmt.Fprintf(&b, "KEK:            %s %s, on %s", line(k.ID), k.State, line(list(k.Servers)))
		if k.Detail != "" {
			fmt.Fprintf(&b, ": %s", line(k.Detail))
		}
		b.WriteByte('\n')
	}
	v.printKeys(&b)
	_, err := out.Write([]byte(b.String()))
	return err
}
