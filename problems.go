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
	ProblemIDTwice     ProblemKind = "ID used twice"  // two servers claim to be one member; only a Node or a port reports it
	ProblemNoLeader    ProblemKind = "no leader"      // this server has heard from no leader for a while
	ProblemBehind      ProblemKind = "not caught up"  // this server does not yet know all that was committed before its start
	ProblemUnconfirmed ProblemKind = "restored"       // encryption waits until a majority confirms that it holds the active key
	ProblemKeyMissing  ProblemKind = "key missing"    // a key's material is not held on this server
	ProblemKeyPending  ProblemKind = "key pending"    // a prepublished key is due and can't be activated
	ProblemClock       ProblemKind = "clock"          // clocks of two servers differ by more than TokenPolicy.Leeway
	ProblemPolicy      ProblemKind = "policy differs" // two servers have different policies
	ProblemCertificate ProblemKind = "certificate"    // a certificate or CA expires soon, or is rejected: see Config.Certificates
	ProblemJWKS        ProblemKind = "large JWKS"     // it has more keys than relying parties may accept
	ProblemTime        ProblemKind = "time ahead"     // a time in the keyring is ahead of this server's clock
	ProblemKEKAway     ProblemKind = "KEK away"       // a KEK does not answer

	ProblemFileOwner ProblemKind = "wrong owner"   // key files of another user
	ProblemFileMode  ProblemKind = "no permission" // key files that this server may not read
	ProblemNotAFile  ProblemKind = "not a file"    // a symlink, FIFO, socket, device or directory with the name of a key file

	ProblemKEKRefuses      ProblemKind = "KEK refuses"        // a KEK answers, but refuses to wrap or unwrap
	ProblemKEKThrottled    ProblemKind = "KEK throttled"      // a KEK is asked too often
	ProblemKEKUnconfigured ProblemKind = "KEK not configured" // key files name a KEK that is not configured
	ProblemKEKOther        ProblemKind = "another KEK"        // a KEK says that it did not wrap files that name it

	ProblemKeystoreCopied ProblemKind = "copied keystore" // two servers have one keystore ID

	ProblemNoNewKey    ProblemKind = "no new key"       // the leader can't make the key that is due
	ProblemWrite       ProblemKind = "key not written"  // a key could not be made durable here
	ProblemMoved       ProblemKind = "directory moved"  // the keystore's path no longer leads to the directory that was opened
	ProblemKeystore    ProblemKind = "another keystore" // by raft's records this server held keys in another keystore
	ProblemUnderheld   ProblemKind = "underheld"        // a server does not hold the active key
	ProblemStuck       ProblemKind = "server behind"    // another server does not advance in raft's log
	ProblemRaftDisk    ProblemKind = "raft not written" // raft can't write its log here; a Node reports it, other hosts by Config.Problems
	ProblemUnreachable ProblemKind = "no usable answer" // another server is unreachable, or its answer was invalid
	ProblemRekey       ProblemKind = "rekey stuck"      // data under a key can't be re-encrypted
	ProblemRemoved     ProblemKind = "removed"          // this server is no longer in the raft configuration
	ProblemNonvoter    ProblemKind = "no voter"         // a server has no vote yet; the leader reports it
	ProblemNewer       ProblemKind = "newer build"      // only a newer build can read the log, a key or a key file
	ProblemNotApplied  ProblemKind = "not applied"      // raft does not apply its log to Config.FSM
	ProblemFirstKey    ProblemKind = "first key waits"  // for a server that still opens its keystore, or has key files that no KEK opens yet
	ProblemWaiting     ProblemKind = "command waits"    // some servers have not confirmed that they apply the leader's next command
	ProblemPublicKey   ProblemKind = "public key"       // the public key in raft does not fit the key's material
	ProblemAltered     ProblemKind = "file altered"     // somebody other than this server has changed a key file
	ProblemOpening     ProblemKind = "opening"          // key files still have to be opened
	ProblemSetAside    ProblemKind = "file set aside"   // a bad key file; its key is fetched again
	ProblemOrphan      ProblemKind = "orphan file"      // a key file that the keyring does not know
	ProblemNomad       ProblemKind = "Nomad's file"     // one of Nomad's key files does not open, or should be deleted
	ProblemBackup      ProblemKind = "no backup"        // keys are in no backup
	ProblemSchedule    ProblemKind = "scheduled backup" // a backup of Config.Backups is late or fails
	ProblemOldKEK      ProblemKind = "old KEKs"         // key files are not wrapped under exactly Config.KEKs
	ProblemKEKFile     ProblemKind = "KEK file"         // the file of a KEK is gone or has another one, or other users may read or change it
	ProblemHost        ProblemKind = "host hangs"       // a function of the host has not returned
	ProblemInlineKEK   ProblemKind = "inline KEK"       // anyone who can read the key files has the keys
)

// Severity says how urgent a Problem is.
type Severity string

// The severities, the worst first.
const (
	SeverityCritical Severity = "critical" // calls fail or data is at risk now
	SeverityWarning  Severity = "warning"  // this becomes critical if nobody acts
	SeverityNotice   Severity = "notice"   // for information
)

// rank orders the severities. An unknown severity, from a newer build, is a warning.
func (s Severity) rank() int {
	switch s {
	case SeverityCritical:
		return 0
	case SeverityNotice:
		return 2
	}
	return 1
}

// problemKinds are the kinds, with their severity and the advice. Within a severity the worst is first, and a
// consequence comes after its cause: a server that can't write its log knows no leader either.
var problemKinds = []struct {
	kind     ProblemKind
	severity Severity
	advice   string
}{
	{ProblemNotApplied, SeverityCritical, "Give raft Config.FSM itself, or a Mux around it. The Mux must be the outermost FSM: do not wrap it in another one."},
	{ProblemRaftDisk, SeverityCritical, "Check the disk that has raft's log: is it full, read-only, frozen or failing? This server accepts nothing new until the disk works. If this server leads, its writes do not return and you can't repair the disk now, end its process with kill -9. That loses nothing that was committed, and the others elect a leader."},
	{ProblemRemoved, SeverityCritical, "Stop this server and delete its directory. It can join again after AddServer, or with a join token."},
	{ProblemIDTwice, SeverityCritical, "Find out which of the two servers is the copy. Stop the copy and delete its directory. Never run both: they would vote twice. The other server takes its place in the cluster within a minute, by itself."},
	{ProblemNewer, SeverityCritical, "Start the newer build on this server. It reads everything that this build has left as it is."},
	{ProblemCertificate, SeverityWarning, "If the certificate should still be valid, check this server's clock. Otherwise put a new certificate, or a CA that is valid for longer, where Config.TLS reads it. It is read for each connection, and checked here each minute."},
	{ProblemNoLeader, SeverityCritical, "First look at the Status of the other servers. If one of them has a leader, check the clock, the certificate and the network of this server, and recover nothing: that would make two clusters. If this server was removed, the others say so. If none of them has a leader, start the servers that are down until a majority of the voters runs. Only if most of the voters are gone for good, or have lost their disks, call node.Recover, or RecoverKeys if the host has its own raft."},
	{ProblemBehind, SeverityWarning, "Nothing, if this server has just started. Otherwise check that a leader is elected and that this server can reach it. Until this problem is gone, what is said here about its files may be outdated: move and delete none of them."},
	{ProblemUnconfirmed, SeverityCritical, "Start the servers that should hold the active key: they fetch it from any server that has it. If most of them can't get it any more, call Rotate: a new key takes its place."},
	{ProblemPublicKey, SeverityCritical, "Somebody altered a raft snapshot, or gave a false public key when the key was adopted. Find out who. If the key is active, rotate. Remove the key when nothing is encrypted under it."},
	{ProblemKeystoreCopied, SeverityCritical, "Stop the server that has the copy, move its keystore directory out, and start it with an empty one: it fetches every key. The copy is on the server that got the directory later, for example because it was set up from another server or restored. Its key files may name the KEK of the other server. If you can't find out which one has the copy, take any of them but the leader, if another server holds all keys. Delete nothing before every server holds all keys. If one of the servers is gone for good, call RemoveServer."},
	{ProblemWrite, SeverityCritical, "Check the disk: is it full (space, inodes, quota), read-only, frozen or failing?"},
	{ProblemMoved, SeverityCritical, "Put back the directory that was at the path when this server started, with mount or mv. This server notices within a minute. If the directory is gone for good, restart this server: it fetches the keys into the directory that is there now."},
	{ProblemKeystore, SeverityWarning, "If the disk with the old keystore is not mounted, stop this server, mount the disk and start this server. If the directory was emptied or replaced on purpose, do nothing: this server fetches the keys if another server has them."},
	{ProblemFileOwner, SeverityCritical, "Give the files to the user that this server runs as. Or start this server as the user that owns them and the keystore directory. This server checks the files again within a minute. It has renamed none of them."},
	{ProblemFileMode, SeverityCritical, "Let the user that this server runs as read the files, for example with chmod 600. Check that nothing else prevents it, such as SELinux or the mount. This server checks the files again within a minute."},
	{ProblemNotAFile, SeverityCritical, "Replace it with the key file itself, or move it out of the keystore directory. This server checks the directory again within a minute, and then fetches the keys that it lacks if another server has them."},
	{ProblemKEKAway, SeverityWarning, "Check that the KEK answers: is it up, and can this server reach it? If it is gone for good, do what docs/keks.md says about a KMS that is gone for good. Leave the key files where they are."},
	{ProblemKEKRefuses, SeverityWarning, "Let this server encrypt and decrypt with the KEK: check its permissions, and that the KEK's key is enabled. For an age KEK, check that its plugin is installed. If the KEK's key is destroyed, do what docs/keks.md says about a KMS that is gone for good. Leave the key files where they are."},
	{ProblemKEKUnconfigured, SeverityWarning, "Put the KEK that the files name into KEKs or OldKEKs, and restart this server. If it is gone for good, do what docs/keks.md says about a KMS that is gone for good. Leave the key files where they are."},
	{ProblemKEKOther, SeverityWarning, "Put the KEK that wrapped these files into OldKEKs, and restart this server. If there is no such KEK, the files were altered: bring them back from a backup. Leave the files where they are."},
	{ProblemKEKThrottled, SeverityWarning, "Nothing, if it passes: this server sends fewer requests by itself. Otherwise raise the KEK's quota, or find out who else uses it up."},
	{ProblemKeyMissing, SeverityCritical, "Nothing, if another server has the key: this server fetches it. Otherwise bring the key's file back into the keystore directory, from a backup or an old disk."},
	{ProblemFirstKey, SeverityCritical, "Check that the KEKs answer on those servers, or configure the KEKs that the files name. If files will never be opened again, move them out of the keystore directory. It is checked again within a minute."},
	{ProblemNoNewKey, SeverityWarning, "Repair what the detail names on the leader: a KEK or the disk. The leader tries again by itself."},
	{ProblemKeyPending, SeverityWarning, "Start the servers that do not answer: a majority of the voters must hold the key. Or remove the key: nothing is encrypted under it."},
	{ProblemStuck, SeverityWarning, "Check that server's disk, which may be full, and its log. It may also be receiving a large snapshot."},
	{ProblemUnderheld, SeverityWarning, "Start that server, or find out in its Status why it lacks the key. If most of the voters that hold the key are lost, the data under the key is lost too."},
	{ProblemClock, SeverityWarning, "Set the clock that is wrong, and let NTP keep it right. Until then, servers may refuse each other's tokens."},
	{ProblemPolicy, SeverityWarning, "Give all servers the same policies: correct the configuration of the server where they are wrong, and restart it."},
	{ProblemJWKS, SeverityWarning, "Rotate less often, or set a shorter TokenPolicy.MaxTTL: a key leaves the JWKS when its tokens have ended. To take a key out earlier, call Remove: it leaves when its data is re-encrypted. To take it out at once, rotate with RotateOptions.Revoke, which refuses its tokens from then on."},
	{ProblemTime, SeverityWarning, "If this server's clock is behind, set it right. If it is right, the clock of a leader was ahead. Keys rotate all the same. If a key's retirement time lies in the future, its tokens verify until that time plus MaxTTL and Leeway, and Revoke ends that."},
	{ProblemRekey, SeverityWarning, "Overwrite the records that can't be decrypted, or repair what the error of the host's store names. If Config.Data is nil on the leader, give it the host's data and restart it."},
	{ProblemHost, SeverityWarning, "Find out why this function of the host does not return: what it waits for, such as a disk or a socket, has to answer. Until then everything that needs it waits, and Close takes 10 seconds and returns an error."},
	{ProblemNonvoter, SeverityWarning, "Nothing, if it has just joined. Otherwise see which keys are missing, and where. If its keyring does not answer, open it there, with a Transport over which the other servers reach ServePeer. If it should stay without a vote, call AddNonvoter."},
	{ProblemWaiting, SeverityWarning, "Start these servers, with this build."},
	{ProblemUnreachable, SeverityWarning, "Check that server, its certificate and the network. If its process runs and answers nothing, it hangs: end it with kill -9, which loses nothing that was committed, and start it again."},
	{ProblemAltered, SeverityWarning, "Find out who can write to the keystore directory, and what else was changed there. Compare the KEKs of the copy with those of the configuration: an escrow entry may have been taken out. Then delete the copy."},
	{ProblemOpening, SeverityNotice, "Nothing: it continues by itself. If it takes long, measure how long a call of the KEK takes."},
	{ProblemSetAside, SeverityNotice, "There is no hurry. Such a file may be the only copy of a key: keep it until no server lacks a key and a later backup exists."},
	{ProblemOrphan, SeverityNotice, "Adopt the key if data is encrypted under it and you know where the file comes from. Otherwise leave the file where it is."},
	{ProblemNomad, SeverityWarning, "Delete Nomad's files when the keyring holds their keys."},
	{ProblemBackup, SeverityWarning, "Make a backup: call WriteBackup, and ConfirmBackup when the backup is safe."},
	{ProblemSchedule, SeverityWarning, "Repair what the detail names: the store of the backups, its space, its permissions, or whatever else fails. The leader tries again within an hour, by itself. If the repair takes longer, make a backup by hand: call WriteBackup, and ConfirmBackup when the backup is safe."},
	{ProblemOldKEK, SeverityNotice, "Call Rewrap before you take OldKEKs away."},
	{ProblemKEKFile, SeverityWarning, "If the file is gone, can't be read or has another KEK now, do not restart this server before the file is back as it was. If the file is there only while a server starts, on purpose, this is expected. If there is no copy of it, make a backup now, while this server still has the keys, and then do what docs/recovery.md says about one server that lost its KEK. If others may read or change the file, give it to the user that the service runs as, with the mode 0600. If somebody may have read it, change the KEK as docs/keks.md says. Whoever has read it and has the key files too has the keys, and against that only new keys help."},
	{ProblemInlineKEK, SeverityNotice, "Use another KEK, unless this is what you want. Put the other KEK into KEKs and InlineKEK into OldKEKs, restart this server and call Rewrap. Then take InlineKEK out, and restart this server once more."},
}

// rank orders the kinds. A kind of the host's own comes last.
func (k ProblemKind) rank() int {
	for i, p := range problemKinds {
		if p.kind == k {
			return i
		}
	}
	return len(problemKinds)
}

// advice says what to do about problems of the kind. It is empty for a kind of the host's own.
func (k ProblemKind) advice() string {
	if i := k.rank(); i < len(problemKinds) {
		return problemKinds[i].advice
	}
	return ""
}

// severity is the usual severity of the kind. A kind of the host's own is a warning.
func (k ProblemKind) severity() Severity {
	if i := k.rank(); i < len(problemKinds) {
		return problemKinds[i].severity
	}
	return SeverityWarning
}

// Problem is one cause of trouble. Status has at most one for each combination of Kind, Server and KEK.
type Problem struct {
	Kind     ProblemKind   `json:"kind"`
	Severity Severity      `json:"severity"`
	Since    time.Time     `json:"since,omitzero"`   // when this server first saw the cause, in UTC; zero if unknown
	Server   raft.ServerID `json:"server,omitempty"` // empty if the problem is about this server
	KEK      string        `json:"kek,omitempty"`    // the KEK's ID, if the problem is about a KEK
	Keys     []KeyID       `json:"keys,omitempty"`   // the keys concerned; nil if the problem is about no key
	Detail   string        `json:"detail"`
	Advice   string        `json:"advice"` // what to do about it
}

// String returns one line for people. It names one key, and says how many more there are.
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

// oneACause joins what has the same cause: the keys, and the details that differ. The severity is the worst,
// Since the earliest, and the advice that of the first.
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
