package meta

import "time"

// Command is one change of the ring. Exactly one member is set.
//
// A new member, here or in one of the commands, needs a line of commandSince in version.go: by that an entry is of a
// version that older builds refuse to read, and the leader proposes it only when every server can. A new command also has
// a case in Command.validate and one in draft.apply.
//
// Every command but one is safe to repeat: if it has already had its effect, it is refused or changes nothing.
// The exception is AddJoinToken, which would bring back a token that has ended: it is proposed once, by a caller
// that waits for the outcome.
type Command struct {
	Init      *Init      `json:"init,omitempty"`
	Add       *Add       `json:"add,omitempty"`
	Hold      *Hold      `json:"hold,omitempty"`
	Forget    *Forget    `json:"forget,omitempty"`
	Activate  *Activate  `json:"activate,omitempty"`
	Rekey     *Rekey     `json:"rekey,omitempty"`
	Clean     *Clean     `json:"clean,omitempty"`
	Deprecate *Deprecate `json:"deprecate,omitempty"`
	Remove    *Remove    `json:"remove,omitempty"`
	Adopt     *Adopt     `json:"adopt,omitempty"`
	Backup    *Backup    `json:"backup,omitempty"`

	AddJoinToken  *AddJoinToken  `json:"addJoinToken,omitempty"`
	UseJoinToken  *UseJoinToken  `json:"useJoinToken,omitempty"`
	EndJoinTokens *EndJoinTokens `json:"endJoinTokens,omitempty"`

	Nonvoter *Nonvoter `json:"nonvoter,omitempty"`
}

// Init names the cluster. It comes before all others, once.
type Init struct {
	Cluster ClusterID `json:"cluster"`
}

// NewKey is the metadata that comes with a key from outside.
type NewKey struct {
	ID        KeyID      `json:"id"`
	Algorithm string     `json:"algorithm"`
	Public    []byte     `json:"public"`
	Check     CheckValue `json:"check"`
	Created   time.Time  `json:"created"`
	// Suite names the cipher suite that seals data under the key. Empty is XAES-256-GCM, as package seal has it; this build
	// writes and knows no other. Version 2.
	Suite string `json:"suite,omitempty"`
}

// Add prepublishes a key. It carries everything about the rotation, so that a new leader can finish the rotation from
// the ring alone. What reads its members is in apply.go and check.go, and in package plan, which compares two rotations;
// the keyring's RotateOptions become an Add.
type Add struct {
	Key       NewKey    `json:"key"`
	Publish   time.Time `json:"publish,omitzero"`
	Scheduled bool      `json:"scheduled,omitempty"`
	Full      bool      `json:"full,omitempty"`
	Revoke    []KeyID   `json:"revoke,omitempty"`
	// Compromised goes with Full, and stands for all keys in Revoke. Version 2.
	Compromised bool `json:"compromised,omitempty"`
}

// Hold records which keys a server has gained, and then which it has lost. A new keystore ID drops everything that
// was recorded about the server before. Keys that are no longer in the ring are ignored.
type Hold struct {
	Server   string     `json:"server"`
	Keystore KeystoreID `json:"keystore"`
	Gained   []KeyID    `json:"gained,omitempty"`
	Lost     []KeyID    `json:"lost,omitempty"`
}

// Forget drops the records of servers that have left the raft configuration.
type Forget struct {
	Servers []string `json:"servers"`
}

// Activate makes a prepublished key the active one and retires its predecessor. Voters are those of the raft
// configuration that the leader read after the answers. Confirmed are the voters that have just said that they
// hold the key. The ring refuses the command unless they are a majority, each with a recorded hold in the same
// keystore.
type Activate struct {
	ID        KeyID     `json:"id"`
	Voters    []string  `json:"voters"`
	Confirmed []Server  `json:"confirmed"`
	Time      time.Time `json:"time"`
}

// Rekey starts the move of an inactive key's data to the active key. With Remove, which also works for a key that is
// rekeying already, the leader removes the key when nothing is sealed under it any more.
type Rekey struct {
	ID     KeyID `json:"id"`
	Remove bool  `json:"remove,omitempty"`
}

// Clean records that a scan found nothing sealed under a rekeying key, and when. The ring does not ask for proof.
type Clean struct {
	ID KeyID `json:"id"`
}

// Deprecate makes a rekeying key a deprecated one. Clean is the index of the Clean that was recorded last: its proposer
// has seen that no snapshot was restored between the scan and that command. A snapshot that is restored later is
// either from before it, and Deprecate is refused, or has nothing under the key either.
type Deprecate struct {
	ID    KeyID  `json:"id"`
	Clean uint64 `json:"clean"`
}

// Remove leaves a tombstone in place of a key. From is the state in which the proposer saw the key; in another state
// the command is refused. Without Force only a prepublished or a deprecated key can be removed. With Force an
// inactive or a rekeying key can be removed too, and its data is lost. The active key is never removed. With Now
// there is no time to undo the removal; it also ends that time for a key that is removed already.
type Remove struct {
	ID    KeyID     `json:"id"`
	From  State     `json:"from"`
	Force bool      `json:"force,omitempty"`
	Now   bool      `json:"now,omitempty"`
	Time  time.Time `json:"time"`
}

// Adopt takes a key into the ring, as inactive, whose file was found on a server. With DataOnly the key opens data and
// verifies no token. If such a key is adopted again without DataOnly, its tokens are admitted too. They
// verify for as long as those of a retired key, with Admit from Time on and without it from the first adoption on.
type Adopt struct {
	Key      NewKey    `json:"key"`
	DataOnly bool      `json:"dataOnly,omitempty"`
	Admit    bool      `json:"admit,omitempty"` // version 2
	Time     time.Time `json:"time"`
}

// Backup records a backup that was written completely: its log index, when it was made, and the SHA-256 of its file.
// A backup of an earlier index than the last one changes nothing.
type Backup struct {
	Index  uint64    `json:"index"`
	Time   time.Time `json:"time"`
	Digest Digest    `json:"digest"`
}
