package keyring

// Problems: their kinds, what to do about each, and how they and the rest of Status follow from what the parts say.

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
	"github.com/hashicorp/raft"
)

// ProblemKind says what a Problem is.
type ProblemKind string

// The kinds of problems.
const (
	ProblemNoLeader    ProblemKind = "no leader"        // this server has heard from no leader for a while
	ProblemBehind      ProblemKind = "not caught up"    // this server does not know yet what was committed before its start
	ProblemUnconfirmed ProblemKind = "restored"         // nothing is sealed before a majority confirms that it holds the active key
	ProblemKeyMissing  ProblemKind = "key missing"      // a key's material is not held on this server
	ProblemKeyPending  ProblemKind = "key pending"      // a prepublished key is due and can't be activated
	ProblemClock       ProblemKind = "clock"            // clocks of two servers differ by more than TokenPolicy.Leeway
	ProblemTime        ProblemKind = "time ahead"       // a time in the keyring lies ahead of this server's clock
	ProblemKEKAway     ProblemKind = "KEK away"         // a KEK does not answer, or is not configured
	ProblemWrite       ProblemKind = "key not written"  // a key could not be made durable here
	ProblemUnderheld   ProblemKind = "underheld"        // the active key is not held by every server
	ProblemStuck       ProblemKind = "server behind"    // another server gets no further in raft's log
	ProblemRaftDisk    ProblemKind = "raft not written" // raft could not write its log here: a Node says so, other hosts by Config.Problems
	ProblemUnreachable ProblemKind = "no usable answer" // another server is unreachable, or what it sent was of no use
	ProblemRekey       ProblemKind = "rekey stuck"      // data under a key can't be moved
	ProblemRemoved     ProblemKind = "removed"          // this server is no longer in the raft configuration
	ProblemNonvoter    ProblemKind = "no voter"         // a server of the leader's that can't vote yet
	ProblemNewer       ProblemKind = "newer build"      // the log, or a key file, has what only a newer build reads
	ProblemNotApplied  ProblemKind = "not applied"      // raft applies its log to another FSM than Config.FSM
	ProblemFirstKey    ProblemKind = "first key waits"  // for a server that opens its keystore, or has key files that nothing opens yet
	ProblemWaiting     ProblemKind = "command waits"    // servers that have not said that they apply the leader's next command
	ProblemPublicKey   ProblemKind = "public key"       // the public key in raft is not that of the key's material
	ProblemSetAside    ProblemKind = "file set aside"   // a bad key file; its key is fetched again
	ProblemOrphan      ProblemKind = "orphan file"      // a key file that the keyring does not know
	ProblemNomad       ProblemKind = "Nomad's file"     // a key file of Nomad's that does not open, or that should go
	ProblemBackup      ProblemKind = "no backup"        // keys are newer than the last backup
	ProblemOldKEK      ProblemKind = "old KEKs"         // key files are not wrapped under exactly Config.KEKs
	ProblemInlineKEK   ProblemKind = "inline KEK"       // keys protect nothing from those who can read the files
)

// Severity says how much a Problem presses.
type Severity string

// The severities, the worst first.
const (
	SeverityCritical Severity = "critical" // calls fail, or data is at risk, now
	SeverityWarning  Severity = "warning"  // it will come to that if nobody acts
	SeverityNotice   Severity = "notice"   // for information
)

// rank is where the severity is among them. One of a newer build is a warning.
func (s Severity) rank() int {
	switch s {
	case SeverityCritical:
		return 0
	case SeverityNotice:
		return 2
	}
	return 1
}

// problemKinds are the kinds, the worst first, with how much each presses and what to do about it.
var problemKinds = []struct {
	kind     ProblemKind
	severity Severity
	advice   string
}{
	{ProblemNotApplied, SeverityCritical, "Give raft Config.FSM, alone or in a Mux that is outermost, with StoreConfiguration, and leave Log.Extensions as they are."},
	{ProblemNoLeader, SeverityCritical, "Bring back the servers that are down, until a majority of the voters runs, or see to the network. If most of them are gone for good: node.Recover, or RecoverKeys if the host has a raft of its own. If this server was removed, the others say so."},
	{ProblemBehind, SeverityWarning, "Nothing, if it has just started. Else see that a leader is elected and that this server reaches it. Until then what is said here of its files may be outdated: move and delete none."},
	{ProblemUnconfirmed, SeverityCritical, "Start the servers that are to hold the active key; they get it from any that has it. If most of them can't have it any more, call Rotate: a new key takes its place."},
	{ProblemKeyMissing, SeverityCritical, "Nothing, if another server has it. Else bring its file back, from a backup or an old disk, into the keystore directory."},
	{ProblemPublicKey, SeverityCritical, "Somebody has altered a raft snapshot, or lied when the key was adopted. If it is the active key, rotate. Remove it when nothing is sealed under it, and find out who it was."},
	{ProblemRemoved, SeverityCritical, "Close it and delete its directory. It joins again with AddServer or a join token."},
	{ProblemWrite, SeverityCritical, "Look at the disk: is it full, read-only, failing?"},
	{ProblemKEKAway, SeverityWarning, "See that the KEK answers, or configure the one that the files name. If it is gone for good, do as the README says under \"When a KMS is gone for good\"; the files stay where they are."},
	{ProblemFirstKey, SeverityCritical, "See that the KEKs answer there, or configure the ones that the files name. Files that are never to be opened again: move them out of the keystore directory, which is looked at again within a minute."},
	{ProblemKeyPending, SeverityWarning, "Bring the servers back that do not answer: a majority of the voters must hold it. Or remove the key, nothing is sealed under it."},
	{ProblemRaftDisk, SeverityCritical, "Look at the disk that has raft's log: is it full, read-only, failing? Until then this server takes in nothing new."},
	{ProblemStuck, SeverityWarning, "Look at that server's disk, which may be full, and at its log. It may also be taking in a large snapshot."},
	{ProblemUnderheld, SeverityWarning, "Start these servers, or see in their Status why they lack it. If most of the voters that hold it are lost, so is what is sealed under it."},
	{ProblemClock, SeverityWarning, "Set the clocks right, and have NTP keep them so. Meanwhile servers may refuse each other's tokens."},
	{ProblemTime, SeverityWarning, "If this server's clock is behind, set it right. If it is right, a leader's was ahead: keys rotate all the same; a key retired ahead verifies tokens until then, and Revoke ends that."},
	{ProblemRekey, SeverityWarning, "Overwrite the records that do not open, or see to the error of the host's store."},
	{ProblemNonvoter, SeverityWarning, "Nothing, if it has just joined. Else see which keys are missing, and where."},
	{ProblemNewer, SeverityCritical, "Start the newer build on this server: it reads what this one has left as it is."},
	{ProblemWaiting, SeverityWarning, "Start these servers, with this build."},
	{ProblemUnreachable, SeverityWarning, "Look at that server, its certificate and the network."},
	{ProblemSetAside, SeverityNotice, "Nothing in haste. It may be the only copy of a key: keep it until no server misses a key and there is a backup from after that."},
	{ProblemOrphan, SeverityNotice, "Adopt it if data is sealed under it; else leave it where it is."},
	{ProblemNomad, SeverityWarning, "Delete the files of Nomad's when the keyring holds their keys."},
	{ProblemBackup, SeverityWarning, "Call Backup."},
	{ProblemOldKEK, SeverityNotice, "Call Rewrap before OldKEKs are taken away."},
	{ProblemInlineKEK, SeverityNotice, "Use another KEK, unless you want just that."},
}

// rank is where the kind is among them. A kind of the host's own comes last.
func (k ProblemKind) rank() int {
	for i, p := range problemKinds {
		if p.kind == k {
			return i
		}
	}
	return len(problemKinds)
}

// advice is what to do about problems of the kind: nothing for a kind of the host's own.
func (k ProblemKind) advice() string {
	if i := k.rank(); i < len(problemKinds) {
		return problemKinds[i].advice
	}
	return ""
}

// severity is how much problems of the kind press, if nothing more is known. A kind of the host's own is a warning.
func (k ProblemKind) severity() Severity {
	if i := k.rank(); i < len(problemKinds) {
		return problemKinds[i].severity
	}
	return SeverityWarning
}

// Problem is one cause of trouble. Status has at most one for each Kind, Server and KEK.
type Problem struct {
	Kind     ProblemKind   `json:"kind"`
	Severity Severity      `json:"severity"`
	Since    time.Time     `json:"since,omitzero"`   // when this server first saw the cause, UTC; zero if that is not known
	Server   raft.ServerID `json:"server,omitempty"` // empty if it is about this one
	KEK      string        `json:"kek,omitempty"`    // the ID, if it is about a KEK
	Keys     []KeyID       `json:"keys,omitempty"`   // those that the cause concerns; nil if it is about no key
	Detail   string        `json:"detail"`
	Advice   string        `json:"advice"` // what to do about it
}

// String is one line for people. It names one key, and tells how many more there are.
func (p Problem) String() string {
	s := string(p.Kind)
	for _, about := range []string{string(p.Server), p.KEK} {
		if about != "" {
			s += " " + about
		}
	}
	switch n := len(p.Keys); {
	case n == 1:
		s += " " + p.Keys[0].String()
	case n > 1:
		s += fmt.Sprintf(" %s and %d more", p.Keys[0], n-1)
	}
	return s + ": " + p.Detail
}

// cause is what makes a problem the same at two moments.
type cause struct {
	kind   ProblemKind
	server raft.ServerID
	kek    string
}

func (p Problem) cause() cause { return cause{p.Kind, p.Server, p.KEK} }

// maxDetails is how many details of one cause are told.
const maxDetails = 5

// oneACause joins what has the same cause: the keys, and the details that differ. The severity is the worst, and
// Since the earliest.
func oneACause(all []Problem) (joined []Problem) {
	type told struct {
		cause
		detail string
	}
	at, details, seen := map[cause]int{}, map[cause][]string{}, map[told]bool{}
	for _, p := range all {
		c := p.cause()
		if t := (told{c, p.Detail}); !seen[t] {
			seen[t], details[c] = true, append(details[c], p.Detail)
		}
		i, is := at[c]
		if !is {
			p.Keys = slices.Clone(p.Keys) // a host may have given them
			at[c], joined = len(joined), append(joined, p)
			continue
		}
		j := &joined[i]
		j.Keys = append(j.Keys, p.Keys...)
		if p.Severity.rank() < j.Severity.rank() {
			j.Severity = p.Severity
		}
		if j.Since.IsZero() || !p.Since.IsZero() && p.Since.Before(j.Since) {
			j.Since = p.Since
		}
	}
	for i := range joined {
		j := &joined[i]
		j.Detail = detailsText(details[j.cause()])
		slices.SortFunc(j.Keys, compareIDs)
		j.Keys = slices.Compact(j.Keys)
	}
	return joined
}

func detailsText(details []string) string {
	text := strings.Join(details[:min(len(details), maxDetails)], "; ")
	if more := len(details) - maxDetails; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

// sinceOf is when each cause was first seen.
func sinceOf(all []Problem) map[cause]time.Time {
	since := make(map[cause]time.Time, len(all))
	for _, p := range all {
		since[p.cause()] = p.Since
	}
	return since
}

// overview is what the parts of a server say of themselves, one after the other. Status is made of it alone.
type overview struct {
	local.View
	now time.Time
	at  mono.Time

	id, leader raft.ServerID
	servers    []raft.Server // of the latest raft configuration
	ready      bool
	policy     plan.Policy
	tokens     plan.Tokens
	noData     bool // Config.Data is nil

	raft     raftStatus
	keystore keystore.Report
	signer   BackupSigner
	keks     []KEKStatus
	inline   bool // one of them is InlineKEK
	clocks   local.ClocksStatus
	waits    lead.Status
	watch    local.WatchStatus
	rekeying []RekeyProgress
	failures map[string]error // of fetches, by server

	wrongPublic []KeyID // keys whose public key in raft is not that of their material

	host []Problem // by Config.Problems

	since map[cause]time.Time // when this server first saw what the Status before tells of
}

// raftStatus is what this server knows of its raft.
type raftStatus struct {
	incomplete  error         // see fsm.Machine.Complete
	unfed       error         // see fsm.Machine.Fed
	behind      error         // why this server has not caught up; of no meaning when it has
	lastContact time.Time     // zero if there was none since its start
	silence     time.Duration // for which it has heard from no leader
	patience    time.Duration // longer than which no election takes
}

// status makes the Status of it, without Keys.
func (o overview) status() Status {
	s := Status{
		ID: o.id, Leader: o.leader, Servers: o.servers, Ready: o.ready, CaughtUp: o.CaughtUp,
		LastBackup:   LastBackup{o.Ring.Backup.Index, o.Ring.Backup.Time, o.Ring.Backup.Digest},
		NextRotation: plan.NextRotation(o.clocks.RingClock.Correct(o.Ring), o.policy),
		Missing:      o.keystore.Missing, SetAside: o.keystore.SetAside,
		Orphans: plan.Orphans(o.Ring, o.CaughtUp, o.keystore.Files), OnOldKEKs: o.keystore.OnOldKEKs,
		KEKs: o.keks, BackupSigner: o.signer,
	}
	if active := o.Ring.Active(); active != nil {
		s.Active = active.ID
	}
	if !o.raft.lastContact.IsZero() {
		s.LastContact = o.raft.lastContact.UTC().Round(0)
	}
	for _, m := range plan.Needed(o.Ring, local.VotersOf(o.servers)) {
		if o.CaughtUp && m.CreateIndex > o.Ring.Backup.Index {
			s.NoBackup = append(s.NoBackup, m.ID)
		}
	}
	if o.leader == o.id {
		s.Rekeying = o.rekeying
	}
	s.Problems = problemsOf(o, s)
	return s
}

// problemsOf returns what is wrong by an overview, the worst first, with what to do about it.
func problemsOf(o overview, st Status) []Problem {
	all := slices.Concat(
		o.backupProblems(st), o.raftProblems(st), o.clockProblems(), o.keystoreProblems(st), o.kekProblems(st),
		o.waitProblems(st), o.ownProblems(), o.leaderProblems(st), o.host,
	)
	for i := range all {
		p := &all[i]
		if p.Advice == "" {
			p.Advice = p.Kind.advice()
		}
		if p.Severity == "" {
			p.Severity = p.Kind.severity()
		}
	}
	all = oneACause(all)
	for i := range all {
		p := &all[i]
		if p.Since.IsZero() {
			p.Since = o.since[p.cause()]
		}
		if p.Since.IsZero() {
			p.Since = o.now
		}
		p.Since = p.Since.UTC().Round(0)
	}
	slices.SortStableFunc(all, func(a, b Problem) int {
		return cmp.Or(a.Severity.rank()-b.Severity.rank(), a.Kind.rank()-b.Kind.rank())
	})
	return all
}

func (o overview) backupProblems(st Status) (all []Problem) {
	if n := len(st.NoBackup); n > 0 && st.LastBackup.Index > 0 {
		all = append(all, Problem{Kind: ProblemBackup, Detail: fmt.Sprintf(
			"%d keys are newer than the last backup, of %v", n, st.LastBackup.Time.Format(time.DateTime))})
	}
	return all
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
		since = "since " + st.LastContact.Format(time.DateTime)
	}
	if o.raft.silence > o.raft.patience {
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

// clockProblems are what is wrong with the time.
func (o overview) clockProblems() (all []Problem) {
	known, ringClock := o.clocks.Known, o.clocks.RingClock
	for _, server := range known.Differ() {
		all = append(all, Problem{Kind: ProblemClock, Server: raft.ServerID(server), Detail: fmt.Sprintf(
			"its clock is %s that of %s, and they may differ by %v", aheadOf(known.Ahead[server]), o.id, known.Leeway)})
	}
	if o.leader == o.id && known.Wrong() {
		all = append(all, Problem{Kind: ProblemClock, Detail: fmt.Sprintf(
			"the clock of %s, which leads, differs from those of %q: until it is right, nothing is rotated by schedule", o.id, known.Differ())})
	}
	if ringClock.Ahead(o.Ring.Backup.Time) {
		all = append(all, Problem{Kind: ProblemTime, Detail: fmt.Sprintf(
			"by the keyring the last backup was made at %v, which lies ahead of this server's clock", o.Ring.Backup.Time.Format(time.DateTime))})
	}
	for _, odd := range ringClock.Implausible(o.Ring) {
		detail := fmt.Sprintf(
			"by the keyring it was %s at %v, which is %v ahead of this server's clock; what is to follow is planned from when this server first saw it",
			odd.What, odd.Time.Format(time.DateTime), odd.Time.Sub(o.now).Round(time.Second))
		if m := o.Ring.Key(odd.Key); !m.Retired.IsZero() && !plan.VerifiesUntil(m, o.tokens).IsZero() {
			detail += fmt.Sprintf(", but its tokens verify until %v", plan.VerifiesUntil(m, o.tokens).Format(time.DateTime))
		}
		all = append(all, Problem{Kind: ProblemTime, Keys: []KeyID{odd.Key}, Detail: detail})
	}
	return all
}

func aheadOf(by time.Duration) string {
	if by < 0 {
		return fmt.Sprintf("%v behind", -by.Round(time.Millisecond))
	}
	return fmt.Sprintf("%v ahead of", by.Round(time.Millisecond))
}

// keystoreProblems are those of the key files of this server.
func (o overview) keystoreProblems(st Status) (all []Problem) {
	add := func(p Problem) { all = append(all, p) }
	voters := local.VotersOf(o.servers)
	faulty := make(map[KeyID]bool, len(o.keystore.Faults))
	for _, f := range o.keystore.Faults {
		faulty[f.Key] = true
	}
	for _, id := range st.Missing {
		// A fault says why; or the key may be removed, or the leader says that it is pending.
		if !faulty[id] && o.CaughtUp && plan.IsNeeded(o.Ring.Key(id), voters) {
			add(Problem{Kind: ProblemKeyMissing, Keys: []KeyID{id}, Detail: "being fetched from the other servers"})
		}
	}
	for _, f := range o.keystore.Faults {
		add(problemOfFault(f))
	}
	for _, name := range o.keystore.SetAside {
		add(Problem{Kind: ProblemSetAside, Detail: name})
	}
	for _, f := range o.keystore.Nomad {
		if o.CaughtUp && o.Ring.WasRemoved(f.Key) {
			add(Problem{Kind: ProblemNomad, Keys: []KeyID{f.Key}, Detail: fmt.Sprintf(
				"the key was removed, and Nomad's files %q still have it: delete them", f.Names)})
		}
	}
	for _, f := range o.keystore.Aside {
		if len(plan.Orphans(o.Ring, o.CaughtUp, []KeyID{f.Key})) > 0 {
			add(Problem{Kind: ProblemOrphan, Keys: []KeyID{f.Key}, Detail: fmt.Sprintf(
				"files %q that were set aside, of a key that the keyring does not know; they are kept", f.Names)})
		}
	}
	for _, id := range st.Orphans {
		add(Problem{Kind: ProblemOrphan, Keys: []KeyID{id}, Detail: "a key file that the keyring does not know; it is kept"})
	}
	return all
}

// problemOfFault says why this server does not hold a key whose file is here, or should be.
func problemOfFault(f keystore.Fault) Problem {
	p := Problem{Keys: []KeyID{f.Key}, KEK: f.KEK, Detail: f.Err.Error()}
	switch f.Cause {
	case keystore.NomadFile:
		p.Kind = ProblemNomad
	case keystore.Newer:
		p.Kind, p.Detail = ProblemNewer, p.Detail+"; it is left as it is, and the key waits for it"
	case keystore.Locked:
		p.Kind = ProblemKEKAway
	case keystore.BadFile:
		p.Kind = ProblemKeyMissing
	case keystore.Unreadable, keystore.Unwritten:
		p.Kind = ProblemWrite
	}
	return p
}

func (o overview) kekProblems(st Status) (all []Problem) {
	if st.OnOldKEKs > 0 {
		all = append(all, Problem{Kind: ProblemOldKEK, Detail: fmt.Sprintf(
			"%d key files are not wrapped under exactly the KEKs of the configuration", st.OnOldKEKs)})
	}
	for _, k := range st.KEKs {
		if k.Away != "" {
			all = append(all, Problem{Kind: ProblemKEKAway, KEK: k.ID, Detail: k.Away})
		}
	}
	if o.inline {
		all = append(all, Problem{Kind: ProblemInlineKEK, KEK: kek.InlineID, Detail: "anyone who reads the key files has the keys"})
	}
	return all
}

// waitProblems are what the leader and this server wait for.
func (o overview) waitProblems(st Status) (all []Problem) {
	if o.leader == o.id && o.waits.Unconfirmed != nil {
		all = append(all, Problem{Kind: ProblemUnconfirmed, Keys: []KeyID{st.Active}, Detail: o.waits.Unconfirmed.Error()})
	}
	for _, id := range slices.SortedFunc(maps.Keys(o.waits.Pending), compareIDs) {
		all = append(all, Problem{Kind: ProblemKeyPending, Keys: []KeyID{id}, Detail: o.waits.Pending[id]})
	}
	each := func(k ProblemKind, servers map[raft.ServerID]string, prefix string) {
		for _, s := range slices.Sorted(maps.Keys(servers)) {
			all = append(all, Problem{Kind: k, Server: s, Detail: prefix + servers[s]})
		}
	}
	nonvoters := maps.Clone(o.waits.Nonvoters)
	maps.DeleteFunc(nonvoters, func(id raft.ServerID, _ string) bool { // it may have become one, or have gone
		waits := func(s raft.Server) bool { return s.ID == id && s.Suffrage != raft.Voter }
		return o.leader != o.id || !slices.ContainsFunc(o.servers, waits)
	})
	each(ProblemNonvoter, nonvoters, "")
	each(ProblemFirstKey, o.waits.FirstKey, "")
	each(ProblemWaiting, o.waits.Command, "it ")
	return all
}

// ownProblems are what this server knows of what others sent it.
func (o overview) ownProblems() (all []Problem) {
	for _, s := range slices.Sorted(maps.Keys(o.failures)) {
		all = append(all, Problem{Kind: ProblemUnreachable, Server: raft.ServerID(s), Detail: o.failures[s].Error()})
	}
	for _, id := range o.wrongPublic {
		all = append(all, Problem{Kind: ProblemPublicKey, Keys: []KeyID{id},
			Detail: "the public key in raft is not that of the key's material: it is not in the JWKS here, and no token verifies with it"})
	}
	return all
}

// leaderProblems are those that only the leader knows: of the other servers, and of the data under old keys.
func (o overview) leaderProblems(st Status) (all []Problem) {
	if o.leader != o.id {
		return nil
	}
	all = o.serverProblems(st)
	for _, p := range st.Rekeying {
		if p.Err != nil {
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
	old := func(since mono.Time) bool { return since != 0 && o.at.Sub(since) > o.raft.patience/2 }
	var lacking []raft.ServerID
	for _, server := range o.servers {
		id := string(server.ID)
		if s := o.watch.Silent[id]; old(s.Since) {
			all = append(all, Problem{Kind: ProblemUnreachable, Server: server.ID, Since: s.Heard, Detail: fmt.Sprintf(
				"it has not answered raft since %s", s.Heard.Format(time.DateTime))})
		}
		if p := o.watch.Progress[id]; p.Stuck {
			all = append(all, Problem{Kind: ProblemStuck, Server: server.ID, Since: p.Since, Detail: fmt.Sprintf(
				"it is %d entries of raft's log behind, and has got no further since %s", p.Behind, p.Since.Format(time.DateTime))})
		}
		if old(o.watch.Lacks[id]) && o.watch.Active == st.Active {
			lacking = append(lacking, server.ID)
		}
	}
	if len(lacking) > 0 {
		all = append(all, Problem{Kind: ProblemUnderheld, Keys: []KeyID{st.Active}, Detail: fmt.Sprintf(
			"it is the active key, and not held by %q", lacking)})
	}
	return all
}
