package main

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

// view is what the page and keys status show: the cluster as one server sees it. It follows from the statuses of all
// servers alone, see viewOf. Whoever draws it decides nothing, but how things look.
type view struct {
	Cluster string        `json:"cluster"`
	Server  raft.ServerID `json:"server"` // that has asked the others
	Clicks  bool          `json:"clicks"` // the page may rotate and remove keys
	Verdict verdict       `json:"verdict"`

	Active       *keyView   `json:"active,omitempty"`       // nil if there is none
	NextRotation string     `json:"nextRotation"`           // for people, with the time in UTC
	LastBackup   string     `json:"lastBackup"`             // likewise
	BackupSigner string     `json:"backupSigner,omitempty"` // of the backups of now
	KEKs         []kekView  `json:"keks"`
	Problems     []cause    `json:"problems"` // the worst first
	Servers      []peerView `json:"servers"`
	Keys         []keyView  `json:"keys"` // the newest first
}

// verdict is whether all is well. Severity is that of the worst problem, empty if there is none.
type verdict struct {
	Severity keyring.Severity `json:"severity,omitempty"`
	Text     string           `json:"text"`
}

// kekView is a KEK, with the servers that have it.
type kekView struct {
	ID      string          `json:"id"`
	Servers []raft.ServerID `json:"servers"`
	State   string          `json:"state"` // wraps, old, or why it does not
	Detail  string          `json:"detail,omitempty"`
}

type peerView struct {
	ID    raft.ServerID `json:"id"`
	Role  string        `json:"role"` // leader, follower, not ready, no answer, no member or not asked
	Error string        `json:"error,omitempty"`
}

// keyView is a key. Held says of each of view.Servers whether it has it: held, missing or unknown.
type keyView struct {
	ID        string        `json:"id"`
	State     keyring.State `json:"state"`
	Algorithm string        `json:"algorithm"`
	Since     string        `json:"since"` // when it was made active, or made: UTC, for people
	Age       string        `json:"age"`   // since then
	Secrets   int           `json:"secrets"`
	Held      []string      `json:"held"`
	Moving    *moving       `json:"moving,omitempty"` // of a key whose secrets are being moved
}

type moving struct {
	Moved int    `json:"moved"`
	Left  int    `json:"left"`
	Error string `json:"error,omitempty"`
}

// site is what a view shows that no status has.
type site struct {
	cluster string
	server  raft.ServerID
	clicks  bool
	dir     string                   // of serve, for the commands
	urls    map[raft.ServerID]string // of the APIs
	addrs   map[raft.ServerID]string // in raft
	leader  raft.ServerID            // empty if there is none
	every   string                   // the flag of serve that most servers run with, with a space before it
}

// viewOf makes the view of what each server has answered.
func viewOf(at site, now time.Time, answers map[raft.ServerID]answer) view {
	ids := slices.Sorted(maps.Keys(answers))
	best := bestOf(ids, answers)
	shown := slices.Clone(ids)
	for _, id := range best.Members {
		if _, asked := answers[id]; !asked {
			shown = append(shown, id)
		}
	}
	slices.Sort(shown)
	v := view{
		Cluster: at.cluster, Server: at.server, Clicks: at.clicks, NextRotation: "only by hand", LastBackup: "none yet",
		KEKs: keksOf(ids, answers), Problems: causesOf(at, now, ids, answers, best), Servers: []peerView{}, Keys: []keyView{},
	}
	for _, id := range shown {
		v.Servers = append(v.Servers, peerView{id, roleOf(id, answers, best), answers[id].Error})
	}
	for _, k := range best.Keys {
		v.Keys = append(v.Keys, keyViewOf(k, now, shown, answers, best.Rekeying))
	}
	if i := slices.IndexFunc(v.Keys, func(k keyView) bool { return k.State == keyring.StateActive }); i >= 0 {
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
	v.Verdict = verdictOf(v.Problems, v.Servers)
	return v
}

// bestOf returns the status of the first leader, or of the first other server that has answered.
func bestOf(ids []raft.ServerID, answers map[raft.ServerID]answer) (best status) {
	for _, id := range ids {
		a := answers[id]
		if a.Error == "" && a.Leader == id {
			return a.status
		}
		if a.Error == "" && best.ID == "" {
			best = a.status
		}
	}
	return best
}

func roleOf(id raft.ServerID, answers map[raft.ServerID]answer, best status) string {
	a, asked := answers[id]
	switch {
	case !asked:
		return "not asked"
	case a.Error != "" && best.hasLeft(id):
		return "no member"
	case a.Error != "":
		return "no answer"
	case !a.Ready:
		return "not ready"
	case a.ID == best.Leader:
		return "leader"
	}
	return "follower"
}

func keyViewOf(k keyStatus, now time.Time, ids []raft.ServerID, answers map[raft.ServerID]answer, rekeying []rekeying) keyView {
	v := keyView{
		ID: k.ID, State: k.State, Algorithm: k.Algorithm, Since: utc(k.Since), Age: span(now.Sub(k.Since)), Secrets: k.Secrets,
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
			v.Moving = &moving{r.Moved, r.Left, r.Error}
		}
	}
	return v
}

// keksOf returns the KEKs of all servers, each once for each state that it is in.
func keksOf(ids []raft.ServerID, answers map[raft.ServerID]answer) []kekView {
	all := []kekView{}
	for _, id := range ids {
		for _, k := range answers[id].KEKs {
			now := kekView{ID: k.ID, State: "wraps", Detail: cmp.Or(k.Away, k.Warning)}
			switch {
			case k.Away != "":
				now.State = string(cmp.Or(k.State, keyring.KEKUnavailable))
			case k.Old:
				now.State = "old"
			}
			i := slices.IndexFunc(all, func(o kekView) bool { return o.ID == now.ID && o.State == now.State && o.Detail == now.Detail })
			if i < 0 {
				i, all = len(all), append(all, now)
			}
			all[i].Servers = append(all[i].Servers, id)
		}
	}
	return all
}

func verdictOf(causes []cause, servers []peerView) verdict {
	up, members, lead := 0, 0, ""
	for _, s := range servers {
		if s.Role == "no member" {
			continue
		}
		members++
		if s.Role != "no answer" && s.Role != "not asked" {
			up++
		}
		if s.Role == "leader" {
			lead = ", " + string(s.ID) + " leads"
		}
	}
	well := fmt.Sprintf("%d of %d servers answer%s.", up, members, lead)
	if len(causes) == 0 {
		return verdict{"", "All is well: " + well}
	}
	worst, n := causes[0], pressing(causes)
	switch {
	case n == 0:
		there := " There is "
		if len(causes) > 1 {
			there = " There are "
		}
		so := "All is well: "
		if slices.ContainsFunc(causes, func(c cause) bool { return c.Kind == problemNoSpare }) {
			so = "It works, and would not if a server failed: "
		}
		return verdict{worst.Severity, so + well + there + count(len(causes), "notice") + "."}
	case worst.Severity == keyring.SeverityCritical:
		return verdict{worst.Severity, "Something is wrong now. First: " + worst.Title + "."}
	}
	return verdict{worst.Severity, "It works, with " + count(n, "problem") + " to see to. First: " + worst.Title + "."}
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

// print writes the view for people.
func (v view) print(out io.Writer) error {
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
