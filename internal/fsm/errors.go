package fsm

import (
	"errors"
	"fmt"

	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/seal"
)

// Errors that callers of the keyring branch on: the root documents them.
var (
	ErrNotLeader = errors.New("not the leader")
	ErrNotReady  = errors.New("keyring not ready")
	ErrNotLoaded = errors.New("the FSM was not given raft's snapshot: call FSM.Load before raft.NewRaft")
	ErrStaleKey  = errors.New("sealed under a key that is not active")
	ErrClosed    = errors.New("keyring closed")
	ErrCorrupt   = nks.ErrCorrupt
	ErrTooLong   = seal.ErrTooLong
)

// MaxCommand is the most bytes of a command: of the keyring's own, and of those that the FSM of a whole server takes.
const MaxCommand = 4 << 20

// CommandTooLong is how many bytes a command has. It matches ErrTooLong.
type CommandTooLong int

// Error says how many bytes are taken.
func (n CommandTooLong) Error() string {
	return fmt.Sprintf("a command of %d bytes, the maximum is %d", int(n), MaxCommand)
}

// Is makes errors.Is(err, ErrTooLong) true.
func (CommandTooLong) Is(target error) bool { return target == ErrTooLong }
