package meta

import "time"

// Command is one change of the ring. Exactly one member is set.
//
// Every command is safe to repeat: one that has already had its effect is refused or
// changes nothing, and never does harm a second time. AddJoinToken is the exception: after the token
// has ended it would be there again, so it is proposed once, by who waits for its outcome.
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
}

// Add prepublishes a key. It carries all that is meant by it, so that a new leader can
// finish the rotation from the ring alone.
type Add struct {
	Key       NewKey    `json:"key"`
	Publish   time.Time `json:"publish,omitzero"`
	Scheduled bool      `json:"scheduled,omitempty"`
	Full      bool      `json:"full,omitempty"`
	Revoke    []KeyID   `json:"revoke,omitempty"`
	// Compromised goes with Full, and stands for all keys in Revoke. Version 2.
	Compromised bool `json:"compromised,omitempty"`
}

// Hold records which keys a server has gained, then which it has lost. A new keystore ID drops all
// that was recorded of the server before. Keys that are no longer in the ring are passed over.
type Hold struct {
	Server   string     `json:"server"`
	Keystore KeystoreID `json:"keystore"`
	Gained   []KeyID    `json:"gained,omitempty"`
	Lost     []KeyID    `json:"lost,omitempty"`
}

// Forget drops what is recorded of servers that have left the raft configuration.
type Forget struct {
	Servers []string `json:"servers"`
}

// Activate makes a prepublished key the active one and retires its predecessor. Voters is
// the raft configuration the leader read after the answers; Confirmed are those of them
// that have just said that they hold the key. The ring refuses it unless they are a
// majority, each with a recorded hold of that very keystore.
type Activate struct {
	ID        KeyID     `json:"id"`
	Voters    []string  `json:"voters"`
	Confirmed []Server  `json:"confirmed"`
	Time      time.Time `json:"time"`
}

// Rekey starts the move of an inactive key's data to the active key. With Remove the key is
// removed when nothing is sealed under it any more, also one that is rekeying already.
type Rekey struct {
	ID     KeyID `json:"id"`
	Remove bool  `json:"remove,omitempty"`
}

// Clean records that a scan found nothing sealed under a rekeying key, and when. The ring takes
// it from whoever says so.
type Clean struct {
	ID KeyID `json:"id"`
}

// Deprecate makes a rekeying key a deprecated one. Clean is the index of the Clean that was
// recorded last: its proposer has seen that no snapshot was restored between the scan and it. A
// snapshot that is restored after that is either from before, and the command is refused, or it
// has nothing under the key either.
type Deprecate struct {
	ID    KeyID  `json:"id"`
	Clean uint64 `json:"clean"`
}

// Remove leaves a tombstone in place of a key. From is the state in which the proposer saw
// it; in any other state the command is refused. Without Force only a prepublished and a
// deprecated key can go, with it also an inactive and a rekeying one, whose data is then
// lost. The active key never goes. With Now there is no time in which it can be undone, also
// that of a key which is removed already.
type Remove struct {
	ID    KeyID     `json:"id"`
	From  State     `json:"from"`
	Force bool      `json:"force,omitempty"`
	Now   bool      `json:"now,omitempty"`
	Time  time.Time `json:"time"`
}

// Adopt takes a key whose file was found into the ring as inactive. With DataOnly it opens
// data and verifies no token; adopting such a key again without it admits its tokens too. With Admit those
// verify for as long from Time on as if the key had been adopted with them then; without it their time counts
// from the first adoption.
type Adopt struct {
	Key      NewKey    `json:"key"`
	DataOnly bool      `json:"dataOnly,omitempty"`
	Admit    bool      `json:"admit,omitempty"` // version 2
	Time     time.Time `json:"time"`
}

// Backup records a backup that has been written whole: of which log index it is, when it was
// made, and the SHA-256 of its file. One that is of an earlier index than the last changes nothing.
type Backup struct {
	Index  uint64    `json:"index"`
	Time   time.Time `json:"time"`
	Digest Digest    `json:"digest"`
}
