package admin

import (
	"context"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// Server is the part of a *node.Node that a Handler uses. A Node forwards leader-only calls to the leader,
// except backups, which its Handler redirects there. ForKeyring makes a Server from a *keyring.Keyring. The
// methods are those of a Node, and are safe for concurrent use.
type Server interface {
	Keyring() *keyring.Keyring
	Rotate(context.Context, keyring.RotateOptions) (keyring.Key, error)
	Remove(context.Context, keyring.KeyID, keyring.RemoveOptions) error
	Adopt(context.Context, keyring.KeyID) error
	ConfirmBackup(ctx context.Context, sha256 [32]byte) error
	AddServer(ctx context.Context, id raft.ServerID, addr string) error
	AddNonvoter(ctx context.Context, id raft.ServerID, addr string) error
	PromoteServer(context.Context, raft.ServerID) error
	DemoteServer(context.Context, raft.ServerID) error
	RemoveServer(context.Context, raft.ServerID, keyring.RemoveServerOptions) error
	TransferLeadership(context.Context) error
	TransferLeadershipTo(context.Context, raft.ServerID) error
	JoinToken(id raft.ServerID, ttl time.Duration) (string, error)
	WithdrawJoinToken(ctx context.Context, id string) error
}

// ForKeyring returns the Server of a host with a raft of its own. Leader-only calls work on the leader alone.
// The Handlers of the other servers redirect to it if Config.URLs has its URL, and otherwise answer with
// status 503 and the leader's ID.
//
// o says how a member gets another address. A server that is added has no vote at first. The host's port of
// package port, or its Peers of the module grpc, gives it one. Without these, the host calls
// Keyring.PromoteServers whenever Keyring.Changed reports a change, or an operator runs the command servers
// promote.
func ForKeyring(k *keyring.Keyring, o keyring.AddServerOptions) Server { return local{k, o} }

// local does all on this server.
type local struct {
	k     *keyring.Keyring
	added keyring.AddServerOptions
}

func (l local) Keyring() *keyring.Keyring { return l.k }

// Rotate asks first whether this server leads: then an error tells that nothing has begun.
func (l local) Rotate(ctx context.Context, o keyring.RotateOptions) (keyring.Key, error) {
	if err := l.k.Leading(); err != nil {
		return keyring.Key{}, notBegun{err}
	}
	return l.k.Rotate(ctx, o)
}

func (l local) Remove(ctx context.Context, id keyring.KeyID, o keyring.RemoveOptions) error {
	return l.k.Remove(ctx, id, o)
}

func (l local) Adopt(ctx context.Context, id keyring.KeyID) error { return l.k.Adopt(ctx, id) }

func (l local) ConfirmBackup(ctx context.Context, sha256 [32]byte) error {
	return l.k.ConfirmBackup(ctx, sha256)
}

func (l local) AddServer(ctx context.Context, id raft.ServerID, addr string) error {
	return l.k.AddServer(ctx, id, raft.ServerAddress(addr), l.added)
}

func (l local) AddNonvoter(ctx context.Context, id raft.ServerID, addr string) error {
	return l.k.AddNonvoter(ctx, id, raft.ServerAddress(addr), l.added)
}

func (l local) PromoteServer(ctx context.Context, id raft.ServerID) error {
	return l.k.PromoteServer(ctx, id)
}
func (l local) DemoteServer(ctx context.Context, id raft.ServerID) error {
	return l.k.DemoteServer(ctx, id)
}

func (l local) TransferLeadership(ctx context.Context) error { return l.k.TransferLeadership(ctx) }

func (l local) TransferLeadershipTo(ctx context.Context, id raft.ServerID) error {
	return l.k.TransferLeadershipTo(ctx, id)
}

func (l local) RemoveServer(ctx context.Context, id raft.ServerID, o keyring.RemoveServerOptions) error {
	return l.k.RemoveServer(ctx, id, o)
}

// tokenTime is how long a join token may take to make.
const tokenTime = 10 * time.Second

func (l local) JoinToken(id raft.ServerID, ttl time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), tokenTime)
	defer cancel()
	return l.k.MakeJoinToken(ctx, id, ttl)
}

func (l local) WithdrawJoinToken(ctx context.Context, id string) error {
	return l.k.WithdrawJoinToken(ctx, id)
}
