package admin

// Which of the problems that servers tell of are causes, which only follow from others, and which servers
// they are about.

import (
	"cmp"
	"slices"
	"strings"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// said is a problem, and the server that tells of it.
type said struct {
	from raft.ServerID
	keyring.Problem
}

// about is the server that has the problem.
func (s said) about() raft.ServerID { return cmp.Or(s.Server, s.from) }

var (
	// noContact are causes of which each keeps a server from its leader and from the others.
	noContact = []keyring.ProblemKind{keyring.ProblemNotApplied, keyring.ProblemRemoved, keyring.ProblemRaftDisk, keyring.ProblemNewer,
		keyring.ProblemCertificate, keyring.ProblemHost, keyring.ProblemClock}
	// noFile are causes of which each keeps a server from writing the files of keys that it lacks.
	noFile = []keyring.ProblemKind{keyring.ProblemRemoved, keyring.ProblemMoved, keyring.ProblemWrite, keyring.ProblemKEKAway,
		keyring.ProblemKEKRefuses, keyring.ProblemKEKThrottled}
	noLeader = []keyring.ProblemKind{problemCutOff, keyring.ProblemNoLeader}
	noAnswer = []keyring.ProblemKind{problemHangs, keyring.ProblemUnreachable}
)

// symptoms are the kinds that may follow from others of the same server: from the first that it has.
var symptoms = map[keyring.ProblemKind]struct {
	from []keyring.ProblemKind
	says string // in the detail of the cause
}{
	problemCutOff:              {noContact, "so it hears from no leader"},
	problemUnheard:             {slices.Concat(noContact, noLeader), "so another server gets no usable answer from it"},
	keyring.ProblemBehind:      {slices.Concat(noContact, noLeader), "so it is not caught up"},
	problemNotReady:            {slices.Concat(noContact, noLeader), "so it is not ready"},
	keyring.ProblemUnreachable: {[]keyring.ProblemKind{problemHangs}, "so no server gets an answer from it"},
	keyring.ProblemStuck:       {slices.Concat(noAnswer, []keyring.ProblemKind{keyring.ProblemRaftDisk}), "so it does not advance"},
	keyring.ProblemKeyMissing:  {noFile, "so it can't store the keys that it lacks"},
	keyring.ProblemUnderheld:   {slices.Concat(noAnswer, noFile, []keyring.ProblemKind{keyring.ProblemKeyMissing}), "so it does not hold the active key"},
}

// fold takes out what follows from another problem of the same server, which then says so and presses as much.
func fold(all []said, answers map[raft.ServerID]answer) []said {
	all = slices.Clone(all)
	wrong := differing(all, keyring.ProblemClock, answered(answers), "")
	follows := make([]bool, len(all))
	for i, s := range all {
		for _, kind := range symptoms[s.Kind].from {
			at := slices.IndexFunc(all, func(c said) bool { return c.Kind == kind && c.explains(s, answers, wrong) })
			if at < 0 {
				continue
			}
			c := &all[at]
			follows[i] = true
			if says := symptoms[s.Kind].says; !strings.Contains(c.Detail, says) && c.about() == s.about() {
				c.Detail += "; " + says
			}
			if rank(s.Severity) < rank(c.Severity) {
				c.Severity = s.Severity
			}
			break
		}
	}
	kept := all[:0]
	for i, s := range all {
		if !follows[i] {
			kept = append(kept, s)
		}
	}
	return kept
}

// explains reports whether a problem is why a server has a symptom of it. A clock is, if it is the one that
// is wrong. What keeps one key file shut is no reason why other keys are missing: a KEK is, if files are
// written with it.
func (s said) explains(of said, answers map[raft.ServerID]answer, wrong []raft.ServerID) bool {
	switch s.Kind {
	case keyring.ProblemClock:
		return slices.Equal(wrong, []raft.ServerID{of.about()})
	case keyring.ProblemCertificate, keyring.ProblemHost, keyring.ProblemNewer, keyring.ProblemWrite:
		return s.about() == of.about() && s.Severity == keyring.SeverityCritical
	case keyring.ProblemKEKAway, keyring.ProblemKEKRefuses, keyring.ProblemKEKThrottled:
		return s.about() == of.about() && slices.ContainsFunc(answers[s.about()].KEKs, func(k keyring.KEKStatus) bool {
			return k.ID == s.KEK && !k.Old && k.Away != ""
		})
	}
	return s.about() == of.about()
}

// answered is how many servers have.
func answered(answers map[raft.ServerID]answer) (n int) {
	for _, a := range answers {
		if a.Error == "" {
			n++
		}
	}
	return n
}

// differing are the servers that differ from the others, by a kind of problem with which two servers say that
// they differ: those that differ from most of n. If none does, that is not known: these are all of which
// somebody says so, but for the leader, if it has compared all with itself and agrees with most.
func differing(all []said, kind keyring.ProblemKind, n int, leader raft.ServerID) []raft.ServerID {
	others := map[raft.ServerID][]raft.ServerID{}
	note := func(id, from raft.ServerID) {
		if !slices.Contains(others[id], from) {
			others[id] = append(others[id], from)
		}
	}
	leaderSays := false
	for _, s := range all {
		if s.Kind == kind && s.Server != "" && s.Server != s.from {
			note(s.Server, s.from)
			note(s.from, s.Server)
			leaderSays = leaderSays || s.from == leader
		}
	}
	var odd, named []raft.ServerID
	for id, from := range others {
		if 2*len(from) > n {
			odd = append(odd, id)
		}
		if id != leader || !leaderSays || 2*len(from) >= n {
			named = append(named, id)
		}
	}
	if len(odd) > 0 {
		named = odd
	}
	slices.Sort(named)
	return named
}

// everyOf is the flag of Program.Start that the servers run with which are not among those that differ. If it
// is not known, the operator fills it in.
func everyOf(ids []raft.ServerID, answers map[raft.ServerID]answer, differ []raft.ServerID) string {
	for _, id := range ids {
		switch a := answers[id]; {
		case a.Error != "" || a.Every == "" || slices.Contains(differ, id):
		case a.Every == "default":
			return ""
		default:
			return " -every " + quote(a.Every)
		}
	}
	return " -every DURATION"
}
