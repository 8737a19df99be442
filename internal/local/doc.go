// Package local is one server of the cluster, as its own keyring sees it: what it is, what raft has told it, what it
// holds, and what it learns from the others by asking them. [Server] is what every part of a keyring knows. The other
// types each know one thing more, and own it: [CaughtUp], [Confirming], [Clocks], [Watch], [PublicKeys].
package local

import (
	"bytes"
	"errors"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
)

// Errors that callers of the keyring branch on: the root documents them.
var (
	ErrNotMember  = peer.ErrNotMember
	ErrUnknownKey = errors.New("unknown key")
	ErrKeyMissing = errors.New("key material missing on this server")
	ErrNotDurable = errors.New("key not yet durable on a majority")
	ErrNoLeader   = errors.New("this server hears from no leader: if Status of another server has one, check the clock, the certificate and the network of this server; if none has, bring back the servers that are down; only if most of the voters are gone for good, use node.Recover")
)

// Failure is what fails each time that it is tried, until it does not.
type Failure struct {
	Err   error     // what came of the last time
	Since mono.Time // when it failed first
}

func compareIDs(a, b meta.KeyID) int { return bytes.Compare(a[:], b[:]) }
