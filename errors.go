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
	// ErrNotLeader means that only the leader can do this. errors.As with a NotLeaderError returns the
	// leader.
	ErrNotLeader = fsm.ErrNotLeader
	// ErrNoLeader means that this server knows of no leader. Two kinds of errors match it: those that match
	// ErrNotLeader and name no leader, and those of calls that have waited for a leader. Such a call waits
	// until the deadline of its context, or for 30 seconds if there is none. Other servers may still have a
	// leader. If none has, and most of the voters are gone for good, use node.Recover, or RecoverKeys for a
	// host with a raft of its own.
	ErrNoLeader = local.ErrNoLeader
	// ErrNotReady means "not yet": there is no active key, the leader has not applied the barrier of its
	// term, this server has not caught up since its start, or raft has restored a snapshot and no majority of
	// the voters has confirmed since that it holds the active key. WaitReady waits for all of these.
	ErrNotReady = fsm.ErrNotReady
	// ErrNotLoaded means that the FSM lacks what raft applied before its start: raft does not restore its
	// snapshots, and FSM.Load was not called before raft.NewRaft.
	ErrNotLoaded = fsm.ErrNotLoaded
	// ErrUnknownKey means that the keyring does not have the key, or no longer has it.
	ErrUnknownKey = local.ErrUnknownKey
	// ErrKeyMissing means that the keyring has the key, but this server does not have its material yet. It is
	// being fetched: retry, or ask another server.
	ErrKeyMissing = local.ErrKeyMissing
	// ErrDecrypt means that Encrypt did not return these bytes for this AAD. It never says more.
	ErrDecrypt = seal.ErrOpen
	// ErrToken means that Verify rejects the token. The rest of the error reveals no more than the token and
	// the public keys do.
	ErrToken = errors.New("token refused")
	// ErrOverlap means that dst overlaps an input.
	ErrOverlap = seal.ErrOverlap
	// ErrTooLong means that a plaintext is longer than AES-GCM allows for one message, 64 GiB, or that a
	// command is longer than MaxCommand.
	ErrTooLong = seal.ErrTooLong
	// ErrStaleKey is returned by FSM.Admit: the ciphertext was encrypted under a key that is no longer
	// active. Encrypt again and retry.
	ErrStaleKey = fsm.ErrStaleKey
	// ErrNotDurable means that a majority of the voters did not confirm in time that it holds a key. After
	// Rotate the new key stays prepublished, and the leader goes on with it.
	ErrNotDurable = local.ErrNotDurable
	// ErrNoData means that Config.Data is nil, so nothing can prove that no data is encrypted under the key.
	ErrNoData = errors.New("no way to tell what is sealed under the key")
	// ErrNotMember means that the raft configuration has no server with that ID.
	ErrNotMember = local.ErrNotMember
	// ErrUnknownBackup means that this server did not make the backup, or no longer knows its contents: see
	// ConfirmBackup.
	ErrUnknownBackup = lead.ErrUnknownBackup
	// ErrCorrupt means that the keyring did not write this file, snapshot or log entry as it is now.
	ErrCorrupt = nks.ErrCorrupt
	// ErrWrapOnly is returned by Unwrap of a KEK that can only wrap.
	ErrWrapOnly = kek.ErrWrapOnly
	// ErrKEKRefused is matched by the errors of a KEK that answers and refuses: a permission is missing, or a
	// key is disabled or destroyed. A retry alone does not help.
	ErrKEKRefused = kek.ErrRefused
	// ErrKEKThrottled is matched by the errors of a KEK that is asked too often.
	ErrKEKThrottled = kek.ErrThrottled
	// ErrClosed means that Close has been called.
	ErrClosed = fsm.ErrClosed
)

// NotLeaderError matches ErrNotLeader and names the leader.
type NotLeaderError struct {
	Leader raft.ServerID // empty if this server knows of no leader
}

// Error names the leader.
func (e NotLeaderError) Error() string {
	if e.Leader == "" {
		return "not the leader, and no leader is known"
	}
	return fmt.Sprintf("not the leader: that is %s", e.Leader)
}

// Is makes errors.Is true for ErrNotLeader, and for ErrNoLeader if no leader is known.
func (e NotLeaderError) Is(target error) bool {
	return target == ErrNotLeader || target == ErrNoLeader && e.Leader == ""
}
