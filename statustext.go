package keyring

// Status as text for people.

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/raft"
)

// String is the status for people, over several lines: how the server is, keys × servers, and what
// is wrong with what to do about it. Times are UTC. It is not for programs: they take the JSON.
func (s Status) String() string {
	var b strings.Builder
	s.writeServer(&b)
	s.writeKeys(&b)
	for _, p := range s.Rekeying {
		fmt.Fprintf(&b, "rekeying %s: %d moved, %d conflicts", p.Key, p.Moved, p.Conflicts)
		if p.Left >= 0 {
			fmt.Fprintf(&b, ", %d left", p.Left)
		}
		if p.Poisoned > 0 {
			fmt.Fprintf(&b, ", %d that do not open: %q", p.Poisoned, p.PoisonedRefs)
		}
		b.WriteByte('\n')
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "%s\n    %s\n", p, p.Advice)
	}
	return b.String()
}

func (s Status) writeServer(b *strings.Builder) {
	how := "follows " + string(s.Leader)
	switch s.Leader {
	case s.ID:
		how = "leads"
	case "":
		how = "knows no leader"
	}
	if !s.Ready {
		how += ", not ready"
	}
	fmt.Fprintf(b, "%s %s\n", s.ID, how)
	for _, k := range s.KEKs {
		switch {
		case k.Away != "":
			fmt.Fprintf(b, "KEK %s is away\n", k.ID)
		case k.Old:
			fmt.Fprintf(b, "KEK %s is an old one\n", k.ID)
		default:
			fmt.Fprintf(b, "KEK %s wraps\n", k.ID)
		}
	}
	fmt.Fprintf(b, "next rotation: %s\n", date(s.NextRotation, "by hand"))
	fmt.Fprintf(b, "last backup: %s\n", date(s.LastBackup.Time, "none"))
	if s.BackupSigner != (BackupSigner{}) {
		fmt.Fprintf(b, "backups are signed by %s\n", s.BackupSigner)
	}
}

func (s Status) writeKeys(b *strings.Builder) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "\nKEY\tSTATE\tSINCE")
	for _, server := range s.Servers {
		fmt.Fprintf(w, "\t%s", server.ID)
		if server.Suffrage != raft.Voter {
			fmt.Fprint(w, " (no voter)")
		}
	}
	fmt.Fprintln(w)
	for _, k := range s.Keys {
		fmt.Fprintf(w, "%s\t%s\t%s", k.ID, k.State, date(k.since(), ""))
		for _, server := range s.Servers {
			fmt.Fprintf(w, "\t%s", s.holds(server.ID, k))
		}
		fmt.Fprintln(w)
	}
	w.Flush() // a Builder does not fail
	b.WriteByte('\n')
}

// holds says whether a server has a key: this one as it is, another as it has last reported.
func (s Status) holds(server raft.ServerID, k Key) string {
	held := slices.Contains(k.Holders, server)
	if server == s.ID {
		held = !slices.Contains(s.Missing, k.ID)
	}
	if held {
		return "held"
	}
	return "missing"
}

// since is when the key came to what it is now, but for its data.
func (k Key) since() time.Time {
	for _, t := range []time.Time{k.Retired, k.Activated} {
		if !t.IsZero() {
			return t
		}
	}
	return k.Created
}

func date(t time.Time, none string) string {
	if t.IsZero() {
		return none
	}
	return t.UTC().Format(time.DateTime)
}
