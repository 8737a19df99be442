package admin

import (
	"net"
	"net/url"
	"slices"
	"strings"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// remedy is what an operator does about a kind of problem: the library's own advice names its calls. In the
// commands $SERVER stands for a server and $KEY for a key that the problem is about; there is one command for
// each of the first few. $PORT is the port of the API of $SERVER, $HOSTPORT its address in raft and $LEADER
// the leader's. $POLICIES, in the advice, are the policies that differ. $EVERY is how often keys rotate on the servers that agree. $CP is the program, and $AT the
// program with the URL of $SERVER. $START, $OLDKEKS and $RECOVER are commands of Program, and $KEYSTORE,
// $RAFT, $KEK, $CERTIFICATE and $CA its files. "COPY: " before a command makes COPY the server. The operator
// fills in other words in capitals.
type remedy struct {
	title, advice string
	commands      []string
}

const (
	look     = "$CP inspect -kek $KEK $KEYSTORE"
	verifies = "openssl verify -CAfile $CA $CERTIFICATE"
	escrowed = "$OLDKEKS"
)

var remedies = map[keyring.ProblemKind]remedy{
	keyring.ProblemNotApplied: {"Raft applies its log to another store than the keyring's",
		"This build is faulty: start the previous one.", []string{"$START"}},
	keyring.ProblemIDTwice: {"Two servers run with one ID",
		"The detail has both addresses. Find out which of the two is the copy, stop it and delete its directory. Never run both. The other one takes its place by itself within a minute.", []string{"$CP keys status"}},
	keyring.ProblemNoLeader: {"No leader: nothing can be stored, signed or rotated",
		"Start the servers that do not run, until most of them do. A server that has lost its directory does not count: it only waits for a leader. Only if most are gone for good, or have lost their directories, stop all and make one of the rest the only member. Data that this one lacks is lost.",
		[]string{"$RECOVER"}},
	keyring.ProblemBehind: {"Not caught up with the others yet",
		"Wait, if it has just started. Otherwise find out why it does not reach the leader. Move and delete none of its files meanwhile.", []string{"$CP keys status"}},
	keyring.ProblemUnconfirmed: {"Too few servers hold the active key after a restore: nothing can be stored or signed",
		"Start the servers that do not run. If most of them can't get that key any longer, rotate.", []string{"$CP keys rotate"}},
	keyring.ProblemKeyMissing: {"Keys are missing: these servers can't decrypt the data under them",
		"Wait a minute, if another server has them. Otherwise put their files back into the keystore directory, from a backup or an old disk, and inspect them.", []string{look}},
	keyring.ProblemPublicKey: {"A public key was altered",
		"Rotate if it is the active key, and find out who did it. Remove the key when no data is encrypted under it.", []string{"$CP keys rotate", "$CP keys remove $KEY"}},
	keyring.ProblemRemoved: {"Removed from the cluster, and still running",
		"The removal has worked, and the others give it nothing. If it was stolen or replaced, never add it again: delete it from the configuration of the other servers. If you have the server, stop it and delete its directory. Only if it was removed by mistake: after that, add it with servers add, and start it.", nil},
	keyring.ProblemKeystoreCopied: {"Servers have copies of one keystore directory",
		"These servers have the same directory; other servers may report it too. The copy is on the server that was cloned or restored last; its key files may name the KEK of the other. If you can't tell, take one that does not lead, if another server holds all keys. Stop it, move its keystore directory away, and start it: it fetches every key. Delete nothing before every server holds all keys.",
		[]string{look, "COPY: mv $KEYSTORE $KEYSTORE.copied", "COPY: $START"}},
	keyring.ProblemWrite: {"Key files can't be written or read",
		"Check the disk: is it full, read-only or failing?", []string{"df -h $KEYSTORE", look}},
	keyring.ProblemKEKAway: {"A KEK does not answer",
		"Bring it back: the files stay as they are. If it is gone for good and there is escrow, replace it by another KEK and start the server once with the escrow identity.",
		[]string{look, escrowed}},
	keyring.ProblemKEKRefuses: {"A KEK refuses to wrap or unwrap",
		"Check its permissions. For escrow with an age plugin, check that the plugin is installed.", []string{look}},
	keyring.ProblemKEKThrottled: {"A KEK is asked too often",
		"Wait: the server already asks it less often.", []string{"$CP keys status"}},
	keyring.ProblemKEKUnconfigured: {"Key files name a KEK that the server was not given",
		"Bring its file back and restart the server. If it is gone for good and there is escrow, start the server once with the escrow identity. Without escrow, if other servers hold the keys, stop the server, move its keystore directory away and start it: it fetches the keys.",
		[]string{look, escrowed, "mv $KEYSTORE $KEYSTORE.old"}},
	keyring.ProblemKEKOther: {"A KEK was replaced by another one, which did not wrap the key files",
		"Bring the file of the KEK back and restart the server. If no KEK wrapped these files, they were altered: restore them from a backup.", []string{look, escrowed}},
	keyring.ProblemNoNewKey: {"The key that is due can't be made",
		"On that server, repair what the detail names: a KEK or the disk. The server retries by itself.", []string{"df -h $KEYSTORE", look}},
	keyring.ProblemPolicy: {"Servers run with different policies",
		"The details have both values. In the first two minutes after a restart, wait: a server that is right already may still be named. If one server is named, the others agree with each other: stop it, and start it with $POLICIES. Keep the rest of its configuration, and all its other flags.",
		[]string{"$EVERY$START"}},
	keyring.ProblemOpening: {"Key files are still being opened",
		"Wait: the server goes on by itself.", []string{"$CP keys status"}},
	keyring.ProblemMoved: {"The keystore directory was moved, removed or unmounted",
		"Put it back, with mv or mount: the server sees that within a minute. If it is gone for good, restart the server: it fetches the keys into the directory that is there.", []string{"ls -ld $KEYSTORE", "$START"}},
	keyring.ProblemKeystore: {"The keystore is not the one that this server had before",
		"If its disk is not mounted, stop the server, mount it and start the server. If it was emptied on purpose, do nothing.", []string{look, "$START"}},
	keyring.ProblemFileOwner: {"Key files belong to another user than the server runs as",
		"Give them to that user. The server reads them within a minute.", []string{"chown USER $KEYSTORE/*", look}},
	keyring.ProblemFileMode: {"The user that the server runs as may not read key files",
		"Let that user read them. The server reads them within a minute.", []string{"chmod 600 $KEYSTORE/*", look}},
	keyring.ProblemNotAFile: {"Something with the name of a key file is no file",
		"Find out who made it, and move it out of the directory.", []string{"ls -l $KEYSTORE", look}},
	keyring.ProblemFirstKey: {"The first key waits for key files that no KEK opens",
		"Repair the KEKs that the files name. Move files that nobody needs any longer out of the directory.", []string{look}},
	keyring.ProblemKeyPending: {"A new key can't become active: too few servers hold it",
		"Start the servers that do not answer. Or remove the new key: no data is encrypted under it.", []string{"$CP keys remove $KEY"}},
	keyring.ProblemRaftDisk: {"The log can't be written: that server stores nothing new",
		"Check the disk: is it full, read-only, frozen or failing? If it hangs on the leader and you can't repair it now, end that server with kill -9: the others elect a leader.",
		[]string{"df -h $RAFT", "findmnt -T $RAFT"}},
	keyring.ProblemStuck: {"A server does not advance",
		"Check its disk and its log. It may be receiving a large snapshot.", []string{"df -h $RAFT"}},
	keyring.ProblemUnderheld: {"Not every server holds the active key",
		"Start the servers that lack it, or see in the table why they lack it.", []string{"$CP keys status"}},
	keyring.ProblemClock: {"Clocks differ: servers may refuse each other's tokens",
		"Correct the wrong clock, and let NTP keep it right. If one server is named, the others agree with each other: that server's clock is wrong.", []string{"timedatectl"}},
	keyring.ProblemCertificate: {"A certificate, or its CA, expires soon or is rejected",
		"If it is still valid, correct that server's clock. Otherwise replace it: the server reads it for each connection, and checks it within a minute.",
		[]string{"openssl x509 -noout -issuer -dates -in $CERTIFICATE", verifies, "timedatectl"}},
	keyring.ProblemJWKS: {"The JWKS has more keys than relying parties may accept",
		"Rotate less often, or remove old keys.", []string{"$CP keys remove ID"}},
	keyring.ProblemHost: {"A part of this program hangs",
		"Read that server's log, and restart it.", []string{"$START"}},
	keyring.ProblemAltered: {"A key file was altered",
		"The server has rewritten the file. Find out who altered it, and what else was changed. Compare the KEKs of the copy with those of the new file, then delete the copy. Rotate fully if it was no accident.", []string{look, "rm $KEYSTORE/*.altered-*", "$CP keys rotate -full"}},
	keyring.ProblemTime: {"A time in the keyring is ahead of a server's clock",
		"If that clock is behind, correct it. If it is right, another server's clock was ahead, and keys rotate all the same.", []string{"timedatectl"}},
	keyring.ProblemRekey: {"Records under an old key can't be re-encrypted",
		"Store the records again that can't be decrypted: the details name them.", nil},
	keyring.ProblemNonvoter: {"No vote yet",
		"Wait, if it has just joined. Otherwise see which keys it lacks, and promote it when it has them.", []string{"$CP keys status", "$CP servers promote $SERVER"}},
	keyring.ProblemNewer: {"There is something that only a newer build can read",
		"Start the newer build on that server.", []string{"$START"}},
	keyring.ProblemWaiting: {"A command waits for servers that have not confirmed that they understand it",
		"Start them, with this build.", []string{"$START"}},
	keyring.ProblemUnreachable: {"No answer",
		"Start it. If it reports that its address is in use, its process runs: check its log, its certificate and the network. If that process hangs, end it with kill -9 and start it again.", []string{"$START"}},
	keyring.ProblemSetAside: {"Bad key files were set aside",
		"Keep them until no server lacks a key and a backup was made after that.", []string{look, "$CP backup -to RECIPIENT FILE"}},
	keyring.ProblemOrphan: {"Key files of keys that the keyring does not know",
		"Adopt them if data is encrypted under them and you know where they come from. Otherwise leave them.", []string{"$CP keys adopt $KEY"}},
	keyring.ProblemNomad: {"Nomad's key files do not open, or contain a removed key",
		"Delete them once the keyring holds their keys.", []string{look}},
	keyring.ProblemBackup: {"Keys are in no backup",
		"Make a backup.", []string{"$CP backup -to RECIPIENT FILE"}},
	keyring.ProblemSchedule: {"A scheduled backup is late, or fails",
		"Repair what the detail names: space, permissions, the network. The leader retries by itself. Until then make backups by hand.", []string{"$CP backup -to RECIPIENT FILE"}},
	keyring.ProblemOldKEK: {"Key files are not wrapped under the present KEKs alone",
		"Rewrap them before you remove the old KEKs.", []string{"$AT keys rewrap"}},
	keyring.ProblemKEKFile: {"The file of a KEK is gone or has another KEK, or others may read or change it",
		"If it is gone or has another KEK, put it back before you restart the server: a start needs it as it was. If there is no copy, make a backup now. If others may read or change it, restrict it to the user that the server runs as. If somebody may have read it, change the KEK. If they may have the key files too, they have the keys: then also rotate with -compromised.",
		[]string{"ls -l $KEK", "$CP backup -to RECIPIENT FILE", "chmod 600 $KEK"}},
	keyring.ProblemInlineKEK: {"Anyone who can read the key files has the keys",
		"Configure another KEK, unless you want exactly that.", nil},
	problemCutOff: {"A server hears from no leader, although there is one",
		"Check its clock, its certificate and its network. Never recover it: that would make two clusters.",
		[]string{"timedatectl", verifies, "nc -vz $LEADER"}},
	problemHangs: {"A server runs but does not answer: it hangs, or its disk does",
		"If it was stopped with kill -STOP, let it go on. Check its disk. If it still hangs, end its process, which loses nothing that was committed, and start it again. While the old process exists, a start fails, because the address is in use.",
		[]string{"fuser -v $PORT/tcp", "fuser -k -KILL $PORT/tcp", "$START"}},
	problemBadAnswer: {"A server's API does not answer with its status",
		"The server and its raft may be up. The detail has the answer. Check whether the servers have the right URL, with the path at which its API is mounted; which proxy is in front of it; and whether its Authorize admits this server. Until then ask that server itself.",
		[]string{"$AT keys status"}},
	problemUnheard: {"A server runs, but another gets no usable answer from it",
		"A restart does not help. Check the network between the two, in both directions, its certificate and its log.",
		[]string{"nc -vz $HOSTPORT", verifies}},
	problemNotListed: {"A member was not asked: the URL of its API is unknown",
		"Give that URL to the server that is asked. Until then ask the member itself. If it should be no member, remove it with servers remove.", nil},
	problemNoSpare: {"The cluster has no redundancy: when a voter fails, nothing can be stored, signed or rotated",
		"Add servers, until 3 or more vote.", nil},
	problemNotReady: {"Not ready",
		"Wait, if it has just started. Otherwise read its log.", []string{"$CP keys status"}},
	problemNotMember: {"Not in the cluster, and not running",
		"It was removed, or never added. If it was stolen or replaced, never add it again: delete it from the servers' configuration. Only if it should be a member, empty its directory, add it and start it.",
		[]string{"$CP servers add $SERVER", "$START"}},
	problemTwoClusters: {"A server follows another leader than the one that is shown",
		"If it does not change, there are two clusters. Find out which of them has the data, stop the servers of the other, delete their directories and add them again.", []string{"$CP servers add $SERVER"}},
}

// shownKeys is of how many keys a command is given, at most.
const shownKeys = 3

// commandsFor fills in the commands. A command about servers is given for each.
func (r remedy) commandsFor(at site, servers []raft.ServerID, keys []string) (out []string) {
	for _, template := range r.commands {
		every := ""
		if rest, differs := strings.CutPrefix(template, "$EVERY"); differs {
			every, template = at.every, rest
		}
		command, of := template, servers
		if rest, copied := strings.CutPrefix(template, "COPY: "); copied {
			command, of = rest, []raft.ServerID{"COPY"}
		}
		command, complete := at.program.expand(command)
		if !complete {
			continue
		}
		starts := strings.Contains(template, "$START") || strings.Contains(template, "$OLDKEKS")
		if !strings.Contains(command, "$SERVER") && !needsServer(command) {
			of = []raft.ServerID{""} // once
		}
		for _, id := range of {
			if starts && len(at.urls) > 0 && id != "" && id != "COPY" && at.urls[id] == "" {
				continue // the host knows no such server
			}
			for _, key := range keysOf(command, keys) {
				if filled, ok := at.fill(command, id, key, every); ok {
					out = append(out, filled)
				}
			}
		}
	}
	return out
}

// needsServer reports whether a command is about one server.
func needsServer(command string) bool {
	return slices.ContainsFunc(ofServer, func(name string) bool { return strings.Contains(command, name) })
}

// ofServer are the variables that differ from server to server.
var ofServer = []string{"$AT", "$PORT", "$HOSTPORT", "$KEYSTORE", "$RAFT", "$KEK", "$CERTIFICATE"}

// keysOf are the keys for which a command is given.
func keysOf(command string, keys []string) []string {
	if !strings.Contains(strings.ReplaceAll(command, "$KEYSTORE", ""), "$KEY") {
		return []string{""} // once
	}
	return keys[:min(len(keys), shownKeys)]
}

// fill puts the values of a server and a key into a command. It fails if one is not known.
func (at site) fill(command string, id raft.ServerID, key, every string) (string, bool) {
	cp := at.program.asking(at.urls[at.server])
	if strings.Contains(command, "$CP inspect") { // which asks no server
		cp = at.program.Name
	}
	values := []string{
		"$EVERY", every, "$CP", cp, "$SERVER", quote(string(id)),
		"$AT", at.program.asking(at.urls[id]), "$PORT", portOf(at.urls[id]), "$HOSTPORT", hostPort(at.addrs[id]), "$LEADER", hostPort(at.addrs[at.leader]),
		"$KEYSTORE", at.program.file("$KEYSTORE", id), "$RAFT", at.program.file("$RAFT", id), "$KEK", at.program.file("$KEK", id),
		"$CERTIFICATE", at.program.file("$CERTIFICATE", id), "$CA", at.program.file("$CA", id), "$KEY", quote(key),
	}
	for i := 2; i < len(values); i += 2 {
		if values[i+1] == "" && strings.Contains(command, values[i]) {
			return "", false
		}
	}
	return strings.NewReplacer(values...).Replace(command), true
}

// portOf is the port of a URL, or empty if it has none.
func portOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Port()
}

// hostPort is an address as nc takes it, or empty if it is none.
func hostPort(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	return quote(host) + " " + quote(port)
}
