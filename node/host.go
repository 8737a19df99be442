package node

import (
	"context"

	"example.com/keyring"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/raft"
)

// host is the keyring as the port asks it.
type host struct{ *keyring.Keyring }

// LeaderProof implements port.Host.
func (h host) LeaderProof(c port.JoinConn, token string) ([]byte, error) {
	return h.Keyring.LeaderProof(keyring.JoinConn(c), token)
}

// AcceptJoin implements port.Host.
func (h host) AcceptJoin(ctx context.Context, c port.JoinConn, token string, proof []byte) error {
	return h.Keyring.AcceptJoin(ctx, keyring.JoinConn(c), token, proof)
}

// Move implements port.Host.
func (h host) Move(ctx context.Context, id raft.ServerID, addr raft.ServerAddress, mayMove func(context.Context, raft.Server) error) error {
	return h.Keyring.AddServer(ctx, id, addr, keyring.AddServerOptions{MayMove: mayMove})
}
