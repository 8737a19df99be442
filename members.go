package keyring

// Members: added, readmitted, removed, given a vote; CheckMembers and MembershipVersion.

import (
	"context"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/members"
	"github.com/hashicorp/raft"
)

func (k *Keyring) members() members.Members {
	return members.Members{Server: k.server.Server, Leader: k.leader}
}

// AddServerOptions say how to add a server. The zero value asks nobody before a member gets another address.
type AddServerOptions struct {
	// MayMove is asked before a member gets another address, with the member as raft has it. An error refuses.
	// A member that still answers at its old address must not be moved: somebody has started a second server
	// with its certificate.
	MayMove func(ctx context.Context, member raft.Server) error
}

// AddServer adds a server to the raft configuration, without a vote: see PromoteServer. A member gets the new
// address and keeps its vote. An ID of up to 255 bytes is taken as it is: case counts, and spaces around it are
// refused. It may be called again. Leader only.
func (k *Keyring) AddServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, o AddServerOptions) error {
	return k.do(ctx, func(ctx context.Context) error { return k.members().Add(ctx, id, addr, o.MayMove) })
}

// ReadmitServer makes a member that has lost its raft log a member that has no vote and holds no key. As a voter it
// would have forgotten its votes, and its recorded keys are gone. It gets the address, then every key, and a vote by
// PromoteServer. While a majority of the remaining voters does not hold every key, a voter is refused with an error that
// matches ErrNotDurable; and a server that is no member with one that matches ErrNotMember. It may be called again
// after a crash. Leader only.
//
// Call it only for that server itself, which its certificate proves, and only if nothing answers at the member's
// address any more: else somebody has started a second server with its certificate, which would take its place.
func (k *Keyring) ReadmitServer(ctx context.Context, id raft.ServerID, addr raft.ServerAddress) error {
	return k.do(ctx, func(ctx context.Context) error { return k.members().Readmit(ctx, id, addr) })
}

// RemoveServerOptions say how to remove a server. The zero value removes it only if no key is at risk.
type RemoveServerOptions struct {
	// Force removes it also if a key is then held by less than a majority of the voters that
	// remain, or nobody can say. It is for servers that will never come back. It can't help where
	// most of the remaining voters are down: see node.Recover and RecoverKeys.
	Force bool
}

// RemoveServer removes a server from the raft configuration, and forgets which keystore it had. Unless
// RemoveServerOptions.Force is set, a majority of the voters that remain must say, now, that it holds each key; else
// the error matches ErrNotDurable. All join tokens end before. A server that is no member is an error that matches
// ErrNotMember and names the members.
//
// A leader that is to remove itself hands over and returns an error that matches ErrNotLeader: the next leader is to
// be asked. Leader only.
func (k *Keyring) RemoveServer(ctx context.Context, id raft.ServerID, o RemoveServerOptions) error {
	return k.do(ctx, func(ctx context.Context) error { return k.members().Remove(ctx, id, members.RemoveOptions(o)) })
}

// PromoteServer gives a member that has no vote one, once it holds every key that something may be sealed under: it
// must be recorded as a holder of each, and say so now, and a majority of the voters with it must hold each key. Until
// then Status names the server and what it waits for. While it is not recorded as a holder, the error matches
// ErrKeyMissing, and there is no use in asking again before Changed tells of a change. A voter keeps its vote. Leader
// only.
func (k *Keyring) PromoteServer(ctx context.Context, id raft.ServerID) error {
	return k.do(ctx, func(ctx context.Context) error { return k.members().Promote(ctx, id) })
}

// MembershipVersion grows with each raft configuration that the FSM is told of and each snapshot that is restored. A
// host that closes the connections of removed servers compares it: between two looks at raft's configuration a server
// may have come and gone.
func (k *Keyring) MembershipVersion() uint64 {
	return k.server.FSM.Configurations() + k.server.FSM.Restores()
}

// WithForwarder says that a server asks, by its certificate, for what is called with the context: a host that forwards
// calls to the leader sets it there. If that server was removed while its call waited, the call is refused with an
// error that matches ErrNotMember. It changes nothing for calls that change no member and no join token.
func WithForwarder(ctx context.Context, server raft.ServerID) context.Context {
	return local.WithForwarder(ctx, server)
}

// CheckMembers reports whether the raft configuration can be changed to these voters
// without risk to a key: each key that something may be sealed under must be held, asked
// live, by a majority of them. The error names the keys for which it is not so. A host that
// changes its configuration by itself calls it before each change, and makes no two changes
// at a time. Leader only.
func (k *Keyring) CheckMembers(ctx context.Context, voters []raft.ServerID) error {
	return k.do(ctx, func(ctx context.Context) error { return k.members().Check(ctx, voters) })
}
