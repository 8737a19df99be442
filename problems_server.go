package keyring

// Problems of servers: their raft, their clocks, what they wait for, what the leader knows of the others.

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// backupProblems say that a backup is to be made, or that none can be.
func (o overview) backupProblems(st Status) []Problem {
	if o.CaughtUp && o.raft.lastIndex < o.Ring.LastIndex() {
		return []Problem{{Kind: ProblemBackup, Detail: fmt.Sprintf(
			"raft's log is at index %d, but the restored keyring has entries up to index %d: raft got its snapshot with a lower index, and no backup can be made until the log reaches the index of the keyring",
			o.raft.lastIndex, o.Ring.LastIndex()), Advice: "Make a backup when raft's log has reached that index. Next time, give raft.Restore the SnapshotMeta of the snapshot."}}
	}
	n := len(st.NoBackup)
	switch {
	case o.every > 0: // by schedule there is one soon, or scheduleProblems say that it is late
		return nil
	case n == 0:
		return nil
	case st.LastBackup.Index > 0:
		return []Problem{{Kind: ProblemBackup, Detail: fmt.Sprintf("%s newer than the last backup, of %v", keysAre(n), inUTC(st.LastBackup.Time))}}
	}
	used := o.usedSince(st.NoBackup)
	if used.IsZero() || o.now.Sub(used) < firstBackupNotice {
		return nil
	}
	p := Problem{Kind: ProblemBackup, Detail: fmt.Sprintf("there is no backup: %s in none, the first in use since %v", keysAre(n), inUTC(used))}
	if o.now.Sub(used) < firstBackupWarning {
		p.Severity = SeverityNotice
	}
	return []Problem{p}
}

// attemptsPatience is for how long attempts fail before it is a problem. The first retries come within minutes.
const attemptsPatience = 10 * time.Minute

// scheduleProblems say that a backup by schedule is late, and on the leader what fails.
func (o overview) scheduleProblems(st Status) (all []Problem) {
	add := func(format string, args ...any) {
		all = append(all, Problem{Kind: ProblemSchedule, Detail: fmt.Sprintf(format, args...)})
	}
	if o.every <= 0 || !o.CaughtUp {
		return nil
	}
	last, used := o.clocks.RingClock.BackupTime(o.Ring), o.usedSince(st.NoBackup)
	if late := o.clocks.RingClock.BackupLate(o.Ring, used, o.every); !late.IsZero() && o.now.After(late) {
		if last.IsZero() {
			add("there is no backup: %s in none, the first in use since %v, although one is due every %v", keysAre(len(st.NoBackup)), inUTC(used), o.every)
		} else {
			add("the last backup is of %v, although one is due every %v", inUTC(last), o.every)
		}
	}
	if f := o.schedule.Attempts; f != nil && o.at.Sub(f.Since) >= attemptsPatience {
		add("%s has failed to make one for %v: %v", o.id, o.at.Sub(f.Since).Round(time.Minute), f.Err)
	}
	if f := o.schedule.Tidying; f != nil {
		add("the leader could not remove old backups: %v", f.Err)
	}
	return all
}

// A cluster that has never had a backup says so when its first key has been in use for as long: first by the
// way, and then as it does of keys that are newer than a backup.
const (
	firstBackupNotice  = 10 * time.Minute
	firstBackupWarning = 24 * time.Hour
)

// usedSince is when the first of these keys was activated or adopted; zero if none was.
func (o overview) usedSince(ids []KeyID) (since time.Time) {
	for _, id := range ids {
		m := o.Ring.Key(meta.KeyID(id))
		at := m.Activated
		if m.Adopted() {
			at = m.Retired
		}
		if !at.IsZero() && (since.IsZero() || at.Before(since)) {
			since = at
		}
	}
	return since
}

func keysAre(n int) string {
	if n == 1 {
		return "1 key is"
	}
	return fmt.Sprintf("%d keys are", n)
}

// raftProblems are what this server's raft is in need of, and what it knows of a leader.
func (o overview) raftProblems(st Status) (all []Problem) {
	add := func(k ProblemKind, detail string) { all = append(all, Problem{Kind: k, Detail: detail}) }
	if o.raft.incomplete != nil {
		add(ProblemNewer, o.raft.incomplete.Error())
	}
	if o.raft.unfed != nil {
		add(ProblemNotApplied, o.raft.unfed.Error())
	}
	since := "since its start"
	if !st.LastContact.IsZero() {
		since = "since " + inUTC(st.LastContact)
	}
	if o.raft.silence > o.raft.patience && !o.isDisplaced() {
		add(ProblemNoLeader, fmt.Sprintf("this server has heard from no leader %s, for %v", since, o.raft.silence.Round(time.Second)))
	}
	if !o.CaughtUp {
		add(ProblemBehind, o.raft.behind.Error())
	}
	member := slices.ContainsFunc(o.servers, func(s raft.Server) bool { return s.ID == o.id })
	if o.CaughtUp && len(o.servers) > 0 && !member {
		add(ProblemRemoved, "this server has left the cluster, or was removed")
	}
	return all
}

// isDisplaced reports whether another server of this one's ID has its place: that is why it hears from no
// leader, and there is one.
func (o overview) isDisplaced() bool {
	return slices.ContainsFunc(o.host, func(p Problem) bool { return p.Kind == ProblemIDTwice && p.Server == "" })
}

// clockProblems are what is wrong with the time.
func (o overview) clockProblems() (all []Problem) {
	known, ringClock := o.clocks.Known, o.clocks.RingClock
	for _, server := range known.Differ() {
		all = append(all, Problem{Kind: ProblemClock, Server: raft.ServerID(server), Detail: fmt.Sprintf(
			"its clock is %s that of %s, although they may differ by at most %v", aheadOf(known.Ahead[server]), o.id, known.Leeway)})
	}
	if o.leader == o.id && known.Wrong() {
		all = append(all, Problem{Kind: ProblemClock, Detail: fmt.Sprintf(
			"the clock of the leader, %s, differs from those of %q: no key rotates by schedule until it is right", o.id, known.Differ())})
	}
	if ringClock.Ahead(o.Ring.Backup.Time) {
		all = append(all, Problem{Kind: ProblemTime, Detail: fmt.Sprintf(
			"in the keyring the time of the last backup is %v, which is ahead of this server's clock", inUTC(o.Ring.Backup.Time))})
	}
	for _, odd := range ringClock.Implausible(o.Ring) {
		detail := fmt.Sprintf(
			"in the keyring it was %s at %v, which is %v ahead of this server's clock; later steps are planned from when this server first saw it",
			odd.What, inUTC(odd.Time), odd.Time.Sub(o.now).Round(time.Second))
		if m := o.Ring.Key(odd.Key); !m.Retired.IsZero() && !plan.VerifiesUntil(m, o.tokens).IsZero() {
			detail += fmt.Sprintf(", but its tokens verify until %v", inUTC(plan.VerifiesUntil(m, o.tokens)))
		}
		all = append(all, Problem{Kind: ProblemTime, Keys: []KeyID{KeyID(odd.Key)}, Detail: detail})
	}
	return all
}

// policyProblems name each server whose policies differ from this one's, with the values of both: for the
// leader any server, for another one the leader. What a server of an older build does not tell is not
// compared.
func (o overview) policyProblems() (all []Problem) {
	for _, server := range o.servers {
		if server.ID == o.id || o.leader != o.id && o.leader != server.ID {
			continue
		}
		for _, d := range differences(string(o.id), string(server.ID), o.policies, o.clocks.Policies[string(server.ID)]) {
			p := Problem{Kind: ProblemPolicy, Server: server.ID, Detail: d.text}
			if d.harmless {
				p.Severity = SeverityNotice
			}
			all = append(all, p)
		}
	}
	return all
}

func aheadOf(by time.Duration) string {
	if by < 0 {
		return fmt.Sprintf("%v behind", -by.Round(time.Millisecond))
	}
	return fmt.Sprintf("%v ahead of", by.Round(time.Millisecond))
}

// createPatience is for how long the making of a key fails before it is a problem: it is tried again by itself.
const createPatience = time.Minute

// waitProblems are what the leader waits for, as far as the ring and the raft configuration of now still have
// it.
func (o overview) waitProblems(st Status) (all []Problem) {
	if o.waits.Unconfirmed != nil {
		all = append(all, Problem{Kind: ProblemUnconfirmed, Keys: []KeyID{st.Active}, Detail: o.waits.Unconfirmed.Error()})
	}
	if f := o.waits.Create; f != nil && o.at.Sub(f.Since) >= createPatience {
		p := Problem{Kind: ProblemNoNewKey, Detail: f.Err.Error()}
		if e := (*kek.Error)(nil); errors.As(f.Err, &e) {
			p.KEK = e.KEK
		}
		all = append(all, p)
	}
	for _, id := range slices.SortedFunc(maps.Keys(o.waits.Pending), compareIDs) {
		if m := o.Ring.Key(id); m != nil && m.State == meta.StatePrepublished {
			all = append(all, Problem{Kind: ProblemKeyPending, Keys: []KeyID{KeyID(id)}, Detail: o.waits.Pending[id]})
		}
	}
	for _, s := range o.servers {
		each := func(k ProblemKind, waits map[raft.ServerID]string, prefix string) {
			if why, is := waits[s.ID]; is {
				all = append(all, Problem{Kind: k, Server: s.ID, Detail: prefix + why})
			}
		}
		if s.Suffrage != raft.Voter && !slices.Contains(st.Nonvoters, s.ID) {
			each(ProblemNonvoter, o.waits.Nonvoters, "")
		}
		each(ProblemFirstKey, o.waits.FirstKey, "")
		each(ProblemWaiting, o.waits.Command, "it ")
	}
	return all
}

// copiedProblems are one for each of the members that report one keystore ID, and each names all of them. The
// leader says so, and each of these servers. A server that was removed may have left its directory to
// another.
func (o overview) copiedProblems() (all []Problem) {
	with := map[meta.KeystoreID][]raft.ServerID{}
	for _, s := range o.servers {
		if id, reported := o.Ring.Keystore(string(s.ID)); reported {
			with[id] = append(with[id], s.ID)
		}
	}
	for _, s := range o.servers {
		id, _ := o.Ring.Keystore(string(s.ID))
		same := with[id]
		if len(same) < 2 || !o.CaughtUp || o.leader != o.id && !slices.Contains(same, o.id) {
			continue
		}
		p := Problem{Kind: ProblemKeystoreCopied, Server: s.ID, Detail: fmt.Sprintf(
			"%q report the same keystore ID: the keystore directory of one was copied to %s", same, map[bool]string{true: "the other", false: "the others"}[len(same) == 2])}
		if s.ID == o.id {
			p.Server = ""
		}
		all = append(all, p)
	}
	return all
}

// ownProblems are what this server knows of what others sent it.
func (o overview) ownProblems() (all []Problem) {
	for _, s := range slices.Sorted(maps.Keys(o.fetching.Failures)) {
		if f := o.fetching.Failures[s]; o.lasts(f.Since) {
			all = append(all, Problem{Kind: ProblemUnreachable, Server: raft.ServerID(s), Detail: f.Err.Error()})
		}
	}
	for _, id := range o.wrongPublic {
		all = append(all, Problem{Kind: ProblemPublicKey, Keys: []KeyID{KeyID(id)},
			Detail: "the public key in raft does not fit the key's material: the JWKS of this server omits it, and no token verifies with it"})
	}
	return all
}

// leaderProblems are those that only the leader knows: of the other servers, and of the data under old keys.
func (o overview) leaderProblems(st Status) (all []Problem) {
	if o.leader != o.id {
		return nil
	}
	all = slices.Concat(o.waitProblems(st), o.serverProblems(st))
	for _, p := range st.Rekeying {
		switch {
		case p.Err == nil:
		case p.Key == KeyID(plaintexts.ID):
			all = append(all, Problem{Kind: ProblemRekey, Detail: "records in the clear: " + p.Err.Error()})
		default:
			all = append(all, Problem{Kind: ProblemRekey, Keys: []KeyID{p.Key}, Detail: p.Err.Error()})
		}
	}
	if len(st.Rekeying) > 0 && o.noData {
		all = append(all, Problem{Kind: ProblemRekey, Keys: []KeyID{st.Rekeying[0].Key}, Detail: "the leader can't move its data: Config.Data is nil"})
	}
	return all
}

// serverProblems are what is wrong with the other servers, as far as it has lasted for longer than an election
// takes.
func (o overview) serverProblems(st Status) (all []Problem) {
	for _, server := range o.servers {
		if server.ID == o.id { // what is wrong with this one is said elsewhere
			continue
		}
		id := string(server.ID)
		if s := o.watch.Silent[id]; o.lasts(s.Since) {
			all = append(all, Problem{Kind: ProblemUnreachable, Server: server.ID, Since: s.Heard, Detail: fmt.Sprintf(
				"it has not answered raft since %s", inUTC(s.Heard))})
		}
		if p := o.watch.Progress[id]; p.Stuck {
			all = append(all, Problem{Kind: ProblemStuck, Server: server.ID, Since: p.Since, Detail: fmt.Sprintf(
				"it is %d entries of raft's log behind, and has not advanced since %s", p.Behind, inUTC(p.Since))})
		}
		if o.lasts(o.watch.Lacks[id]) && KeyID(o.watch.Active) == st.Active {
			all = append(all, Problem{Kind: ProblemUnderheld, Server: server.ID, Keys: []KeyID{st.Active}, Detail: "it does not hold the active key"})
		}
	}
	return all
}

// withWhyNotReady makes sure that a server that has not been ready for a while says why, as something
// critical: what keeps it from that presses more than it does by its kind.
func (o overview) withWhyNotReady(all []Problem, st Status) []Problem {
	if o.notReady == nil || !o.lasts(o.unready) {
		return all
	}
	said := false
	for i := range all {
		if o.keepsFromReady(all[i], st) {
			all[i].Severity, said = SeverityCritical, true
		}
	}
	if said {
		return all
	}
	p := Problem{Kind: ProblemNoLeader, Severity: SeverityCritical, Detail: "this server is not ready: " + o.notReady.Error()}
	switch {
	case st.Active == (KeyID{}):
		p.Kind, p.Advice = ProblemFirstKey, "The Status of the leader says why there is no key yet."
	case slices.Contains(st.Missing, st.Active):
		p.Kind, p.Keys = ProblemKeyMissing, []KeyID{st.Active}
	}
	return append(all, p)
}

// keepsFromReady reports whether a problem says why this server is not ready. If the active key is not held
// here, only why that is so counts.
func (o overview) keepsFromReady(p Problem, st Status) bool {
	lacks := slices.Contains(st.Missing, st.Active)
	isWhyItLacks := lacks && p.Server == "" && slices.Contains(p.Keys, st.Active)
	switch p.Kind {
	case ProblemNotApplied, ProblemBehind, ProblemUnconfirmed, ProblemRemoved:
		return true
	case ProblemIDTwice:
		return p.Server == ""
	case ProblemNoLeader, ProblemRaftDisk:
		return !lacks
	case ProblemFirstKey, ProblemNoNewKey:
		return st.Active == (KeyID{})
	case ProblemNewer:
		return o.raft.incomplete != nil || isWhyItLacks
	case ProblemMoved:
		return lacks
	case ProblemKEKAway, ProblemKEKRefuses, ProblemKEKThrottled:
		doesNotWrap := slices.ContainsFunc(st.KEKs, func(k KEKStatus) bool { return k.ID == p.KEK && !k.Old && k.Away != "" })
		return doesNotWrap || isWhyItLacks
	case ProblemKEKUnconfigured, ProblemKEKOther, ProblemKeyMissing, ProblemWrite, ProblemFileOwner, ProblemFileMode, ProblemNotAFile, ProblemOpening, ProblemNomad:
		return isWhyItLacks
	}
	return false
}
