package keyring

import (
	"errors"
	"fmt"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/raft"
)

// Errors that callers branch on, with errors.Is.
var (
	// ErrNotLeader means that only the leader can do this. errors.As with a
	// NotLeaderError tells who that is.
	ErrNotLeader = fsm.ErrNotLeader
	// ErrNoLeader means that this server knows of no leader. It is matched by errors that match ErrNotLeader and name
	// none, and by those of calls that have waited for one: as long as their context allows, or 30 seconds if it has no
	// deadline. Other servers may have a leader. If none has, and most of the voters are gone for good: node.Recover, or
	// RecoverKeys for a host with a raft of its own.
	ErrNoLeader = local.ErrNoLeader
	// ErrNotReady means not yet: no active key, a leader that has not yet applied the barrier of its term, a
	// snapshot was restored and no majority of the voters has confirmed since that it holds the active
	// key, or this server has not caught up since its start. WaitReady waits for all of them.
	ErrNotReady = fsm.ErrNotReady
	// ErrNotLoaded means that the FSM lacks what raft applied before its start: raft does not restore
	// its snapshots, and FSM.Load was not called before raft.NewRaft.
	ErrNotLoaded = fsm.ErrNotLoaded
	// ErrUnknownKey means that the keyring has no such key, or no longer.
	ErrUnknownKey = local.ErrUnknownKey
	// ErrKeyMissing means that the keyring has the key and this server not yet its
	// material. It is being fetched: try again, or ask another server.
	ErrKeyMissing = local.ErrKeyMissing
	// ErrDecrypt means that the bytes are not what Encrypt returned for that AAD. It never
	// says more.
	ErrDecrypt = seal.ErrOpen
	// ErrToken means that Verify does not take the token. What else the error says tells
	// no more than the token and the public keys do.
	ErrToken = errors.New("token refused")
	// ErrOverlap means that dst overlaps an input.
	ErrOverlap = seal.ErrOverlap
	// ErrTooLong means that a plaintext is beyond what AES-GCM takes in one message, 64 GiB, or
	// a command beyond MaxCommand.
	ErrTooLong = seal.ErrTooLong
	// ErrStaleKey is the fence: the ciphertext was sealed under a key that is no longer the
	// active one. Seal again and retry.
	ErrStaleKey = fsm.ErrStaleKey
	// ErrNotDurable means that the context ended before a majority of the voters held the
	// new key. It stays prepublished, and the leader goes on with it.
	ErrNotDurable = local.ErrNotDurable
	// ErrNoData means that there is nothing to ask which data is sealed under a key, and so
	// nothing that proves that none is.
	ErrNoData = errors.New("no way to tell what is sealed under the key")
	// ErrNotMember means that no server of that ID is in the raft configuration.
	ErrNotMember = local.ErrNotMember
	// ErrUnknownBackup means that this server has not made the backup, or no longer knows what is in it: see ConfirmBackup.
	ErrUnknownBackup = lead.ErrUnknownBackup
	// ErrCorrupt means that a file, snapshot or log entry is not what the keyring wrote.
	ErrCorrupt = nks.ErrCorrupt
	// ErrWrapOnly is what the Unwrap of a KEK returns that can only wrap.
	ErrWrapOnly = kek.ErrWrapOnly
	// ErrKEKRefused is what the calls of a KEK match that answers and does not do its work: a permission is missing, a
	// key is disabled or destroyed. Retrying alone does not help.
	ErrKEKRefused = kek.ErrRefused
	// ErrKEKThrottled is what the calls of a KEK match that answers, and is asked too often.
	ErrKEKThrottled = kek.ErrThrottled
	// ErrClosed means that Close has been called.
	ErrClosed = fsm.ErrClosed
)

// NotLeaderError matches ErrNotLeader and tells who leads.
type NotLeaderError struct {
	Leader raft.ServerID // empty if this server knows of none
}

// Error names the leader.
func (e NotLeaderError) Error() string {
	if e.Leader == "" {
		return "not the leader, and no leader is known"
	}
	return fmt.Sprintf("not the leader: that is %s", e.Leader)
}

// Is makes errors.Is(err, ErrNotLeader) true, and errors.Is(err, ErrNoLeader) if none is known.
func (e NotLeaderError) Is(target error) bool {
	return target == ErrNotLeader || target == ErrNoLeader && e.Leader == ""
}
