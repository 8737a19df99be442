package keyring

// Problem, its kinds, and what to do about each.

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// ProblemKind says what a Problem is.
type ProblemKind string

// The kinds of problems.
const (
	ProblemIDTwice     ProblemKind = "ID used twice"  // two servers say that they are one member: a Node or a port says so
	ProblemNoLeader    ProblemKind = "no leader"      // this server has heard from no leader for a while
	ProblemBehind      ProblemKind = "not caught up"  // this server does not know yet what was committed before its start
	ProblemUnconfirmed ProblemKind = "restored"       // nothing is sealed before a majority confirms that it holds the active key
	ProblemKeyMissing  ProblemKind = "key missing"    // a key's material is not held on this server
	ProblemKeyPending  ProblemKind = "key pending"    // a prepublished key is due and can't be activated
	ProblemClock       ProblemKind = "clock"          // clocks of two servers differ by more than TokenPolicy.Leeway
	ProblemPolicy      ProblemKind = "policy differs" // two servers have policies that have to be the same, and are not
	ProblemCertificate ProblemKind = "certificate"    // this server's certificate or its CA's ends soon, or is refused: see Config.Certificates
	ProblemJWKS        ProblemKind = "large JWKS"     // it has more keys than relying parties can be expected to take
	ProblemTime        ProblemKind = "time ahead"     // a time in the keyring lies ahead of this server's clock
	ProblemKEKAway     ProblemKind = "KEK away"       // a KEK does not answer

	ProblemFileOwner ProblemKind = "wrong owner"   // key files of another user
	ProblemFileMode  ProblemKind = "no permission" // key files that this server may not read
	ProblemNotAFile  ProblemKind = "not a file"    // a symlink, FIFO, socket, device or directory with the name of a key file

	ProblemKEKRefuses      ProblemKind = "KEK refuses"        // a KEK answers, and does not do its work
	ProblemKEKThrottled    ProblemKind = "KEK throttled"      // a KEK answers, and is asked too often
	ProblemKEKUnconfigured ProblemKind = "KEK not configured" // key files name it, and the configuration does not
	ProblemKEKOther        ProblemKind = "another KEK"        // a KEK says that it has not wrapped what files have for its ID

	ProblemKeystoreCopied ProblemKind = "copied keystore" // two servers have one keystore ID

	ProblemNoNewKey    ProblemKind = "no new key"       // the leader can't make the key that is due
	ProblemWrite       ProblemKind = "key not written"  // a key could not be made durable here
	ProblemMoved       ProblemKind = "directory moved"  // the path of the keystore does not lead to the directory that was opened
	ProblemKeystore    ProblemKind = "another keystore" // raft knows of keys that this server has held in another keystore
	ProblemUnderheld   ProblemKind = "underheld"        // the active key is not held by every server
	ProblemStuck       ProblemKind = "server behind"    // another server gets no further in raft's log
	ProblemRaftDisk    ProblemKind = "raft not written" // raft could not write its log here, or waits for a write: a Node says so, other hosts by Config.Problems
	ProblemUnreachable ProblemKind = "no usable answer" // another server is unreachable, or what it sent was of no use
	ProblemRekey       ProblemKind = "rekey stuck"      // data under a key can't be moved
	ProblemRemoved     ProblemKind = "removed"          // this server is no longer in the raft configuration
	ProblemNonvoter    ProblemKind = "no voter"         // a server of the leader's that can't vote yet
	ProblemNewer       ProblemKind = "newer build"      // the log, a key or a key file has what only a newer build knows
	ProblemNotApplied  ProblemKind = "not applied"      // raft applies its log to another FSM than Config.FSM
	ProblemFirstKey    ProblemKind = "first key waits"  // for a server that opens its keystore, or has key files that nothing opens yet
	ProblemWaiting     ProblemKind = "command waits"    // servers that have not said that they apply the leader's next command
	ProblemPublicKey   ProblemKind = "public key"       // the public key in raft is not that of the key's material
	ProblemAltered     ProblemKind = "file altered"     // somebody else than this server has changed a key file
	ProblemOpening     ProblemKind = "opening"          // key files are still to be opened
	ProblemSetAside    ProblemKind = "file set aside"   // a bad key file; its key is fetched again
	ProblemOrphan      ProblemKind = "orphan file"      // a key file that the keyring does not know
	ProblemNomad       ProblemKind = "Nomad's file"     // a key file of Nomad's that does not open, or that should go
	ProblemBackup      ProblemKind = "no backup"        // keys are in no backup
	ProblemSchedule    ProblemKind = "scheduled backup" // a backup by Config.Backups is late, or fails
	ProblemOldKEK      ProblemKind = "old KEKs"         // key files are not wrapped under exactly Config.KEKs
	ProblemKEKFile     ProblemKind = "KEK file"         // others may read or change the file that has a KEK
	ProblemHost        ProblemKind = "host hangs"       // a function of the host's has not returned
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

// problemKinds are the kinds, with how much each presses and what to do about it. Of those that press as much, the worst is
// first; what follows from another one comes after it: to a server whose log can't be written no leader is known either.
var problemKinds = []struct {
	kind     ProblemKind
	severity Severity
	advice   string
}{
	{ProblemNotApplied, SeverityCritical, "Give raft Config.FSM, alone or in a Mux that is outermost, with StoreConfiguration, and leave Log.Extensions as they are."},
	{ProblemRaftDisk, SeverityCritical, "Look at the disk that has raft's log: is it full, read-only, frozen, failing? Until then this server takes in nothing new. If it leads, its writes do not return and the disk can't be mended now: end its process with kill -9, which loses nothing that was committed, and the others elect a leader."},
	{ProblemRemoved, SeverityCritical, "Close it and delete its directory. It joins again with AddServer or a join token."},
	{ProblemIDTwice, SeverityCritical, "Find out which of the two servers is the copy, and which is to stay. Stop the copy, delete its directory, and never run both: they would vote twice. The one that is left takes its place in the cluster by itself, within a minute."},
	{ProblemNewer, SeverityCritical, "Start the newer build on this server: it reads what this one has left as it is."},
	{ProblemCertificate, SeverityWarning, "If the certificate is in its time, see to this server's clock. Else put a new certificate, or a CA that goes on, where Config.TLS reads it: it is read for each connection, and looked at here each minute."},
	{ProblemNoLeader, SeverityCritical, "Look at Status of the other servers first. If one has a leader: see to the clock, the certificate and the network of this server, and recover nothing, which would make two clusters. If this server was removed, they say so. If none has a leader: bring back the servers that are down, until a majority of the voters runs. Only if most of the voters are gone for good, or have lost their disks: node.Recover, or RecoverKeys if the host has a raft of its own."},
	{ProblemBehind, SeverityWarning, "Nothing, if it has just started. Else see that a leader is elected and that this server reaches it. Until then what is said here of its files may be outdated: move and delete none."},
	{ProblemUnconfirmed, SeverityCritical, "Start the servers that are to hold the active key; they get it from any that has it. If most of them can't have it any more, call Rotate: a new key takes its place."},
	{ProblemPublicKey, SeverityCritical, "Somebody has altered a raft snapshot, or lied when the key was adopted. If it is the active key, rotate. Remove it when nothing is sealed under it, and find out who it was."},
	{ProblemKeystoreCopied, SeverityCritical, "Stop the server that has the copy, move its keystore directory out, and start it with an empty one: it fetches every key. The copy is where the directory came later, as on a server that was set up from another or restored; its key files may name the KEK of the other. If that is not known: any of them but the leader, if another server holds all keys. Delete nothing before every server holds all keys. If one of the servers is gone for good: RemoveServer."},
	{ProblemWrite, SeverityCritical, "Look at the disk: is it full (space, inodes, quota), read-only, frozen, failing?"},
	{ProblemMoved, SeverityCritical, "Put back what was at the path when this server started, with a mount or mv: it is seen within a minute. If it is gone for good, restart this server: it fetches the keys into what is there."},
	{ProblemKeystore, SeverityWarning, "If the disk with the old keystore is not mounted: stop this server, mount it, start this server. If the directory was emptied or replaced on purpose: nothing, the keys are fetched if another server has them."},
	{ProblemFileOwner, SeverityCritical, "Give the files to the user that this server runs as, or start it as the user that owns them and the keystore directory. They are looked at again within a minute. Nothing has been renamed."},
	{ProblemFileMode, SeverityCritical, "Give the user that this server runs as the permission to read the files, as with chmod 600, and see that nothing else refuses it, such as SELinux or the mount. They are looked at again within a minute."},
	{ProblemNotAFile, SeverityCritical, "Put the key files themselves in their places, or move what lies there out of the keystore directory, which is looked at again within a minute: the keys are fetched then, if another server has them."},
	{ProblemKEKAway, SeverityWarning, "See that the KEK answers: is it up, does this server reach it? If it is gone for good, do as the README says under \"When a KMS is gone for good\"; the files stay where they are."},
	{ProblemKEKRefuses, SeverityWarning, "Let this server encrypt and decrypt with it: see to its permissions, and that its key is enabled. For an age KEK, see that its plugin is installed. If the key is destroyed, do as the README says under \"When a KMS is gone for good\"; the files stay where they are."},
	{ProblemKEKUnconfigured, SeverityWarning, "Configure the KEK that the files name, in KEKs or OldKEKs, and start this server again. If it is gone for good, do as the README says under \"When a KMS is gone for good\"; the files stay where they are."},
	{ProblemKEKOther, SeverityWarning, "Configure the KEK that has wrapped these files, in OldKEKs, and start this server again. If no KEK has, the files were altered: bring them back from a backup. They stay where they are."},
	{ProblemKEKThrottled, SeverityWarning, "Nothing, if it passes: it is asked less often by itself. Else raise its quota, or see who else uses it up."},
	{ProblemKeyMissing, SeverityCritical, "Nothing, if another server has it. Else bring its file back, from a backup or an old disk, into the keystore directory."},
	{ProblemFirstKey, SeverityCritical, "See that the KEKs answer there, or configure the ones that the files name. Files that are never to be opened again: move them out of the keystore directory, which is looked at again within a minute."},
	{ProblemNoNewKey, SeverityWarning, "See to what the detail names on the leader, a KEK or the disk. The leader tries again by itself."},
	{ProblemKeyPending, SeverityWarning, "Bring the servers back that do not answer: a majority of the voters must hold it. Or remove the key, nothing is sealed under it."},
	{ProblemStuck, SeverityWarning, "Look at that server's disk, which may be full, and at its log. It may also be taking in a large snapshot."},
	{ProblemUnderheld, SeverityWarning, "Start that server, or see in its Status why it lacks it. If most of the voters that hold it are lost, so is what is sealed under it."},
	{ProblemClock, SeverityWarning, "Set the clocks right, and have NTP keep them so. Meanwhile servers may refuse each other's tokens."},
	{ProblemPolicy, SeverityWarning, "Give all servers the same policies: set the right ones in the configuration of the server where they are wrong, and restart it."},
	{ProblemJWKS, SeverityWarning, "Rotate less often, or set a shorter TokenPolicy.MaxTTL: a key leaves the JWKS when its tokens have ended. Remove takes a key out at once when its data has moved, and RotateOptions.Revoke refuses its tokens."},
	{ProblemTime, SeverityWarning, "If this server's clock is behind, set it right. If it is right, a leader's was ahead: keys rotate all the same; a key retired ahead verifies tokens until then, and Revoke ends that."},
	{ProblemRekey, SeverityWarning, "Overwrite the records that do not open, or see to the error of the host's store. If Config.Data is nil on the leader: give it the host's data, and start it again."},
	{ProblemHost, SeverityWarning, "See why this function of the host's does not return: what it waits for, a disk or a socket say, has to answer. Until then what needs it waits, and Close takes 10 seconds and is an error."},
	{ProblemNonvoter, SeverityWarning, "Nothing, if it has just joined. Else see which keys are missing, and where. If its keyring does not answer: open it there, with a Transport over which the other servers reach ServePeer. If it is to stay without a vote: AddNonvoter."},
	{ProblemWaiting, SeverityWarning, "Start these servers, with this build."},
	{ProblemUnreachable, SeverityWarning, "Look at that server, its certificate and the network. If its process runs and answers nothing, it hangs: end it with kill -9, which loses nothing that was committed, and start it again."},
	{ProblemAltered, SeverityWarning, "Find out who can write to the keystore directory, and what else was changed there. Compare the KEKs of the copy with those of the configuration: an entry of escrow may have been taken out. Then delete the copy."},
	{ProblemOpening, SeverityNotice, "Nothing: it goes on by itself. If it takes long, see how long a call of the KEK takes."},
	{ProblemSetAside, SeverityNotice, "Nothing in haste. It may be the only copy of a key: keep it until no server misses a key and there is a backup from after that."},
	{ProblemOrphan, SeverityNotice, "Adopt it if data is sealed under it and you know where the file comes from; else leave it where it is."},
	{ProblemNomad, SeverityWarning, "Delete the files of Nomad's when the keyring holds their keys."},
	{ProblemBackup, SeverityWarning, "Make a backup: WriteBackup, and ConfirmBackup when it is safe."},
	{ProblemSchedule, SeverityWarning, "See to what the detail names: the store of the backups, its space, its permissions, or what else fails. The leader tries again by itself, within an hour. If it takes longer, make a backup by hand: WriteBackup, and ConfirmBackup when it is safe."},
	{ProblemOldKEK, SeverityNotice, "Call Rewrap before OldKEKs are taken away."},
	{ProblemKEKFile, SeverityWarning, "Give the file to the user that the service runs as, with the mode 0600. If somebody may have read it: change the KEK, as the README says under \"Changing KEKs\"; who has the key files too has the keys, and against that only new keys help."},
	{ProblemInlineKEK, SeverityNotice, "Use another KEK, unless you want just that: with InlineKEK in OldKEKs, start this server again and call Rewrap; then take InlineKEK out, and start it once more."},
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

// oneACause joins what has the same cause: the keys, and the details that differ. The severity is the worst, Since the
// earliest, and the advice that of the first.
func oneACause(all iter.Seq[Problem]) (joined []Problem) {
	type told struct {
		cause
		detail string
	}
	at, details, seen := map[cause]int{}, map[cause][]string{}, map[told]bool{}
	for p := range all {
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

// counted is so many of something, in words that fit one too.
func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprint(n, " ", what)
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
