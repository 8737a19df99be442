package node

import (
	"context"

	"example.com/keyring"
	"example.com/keyring/internal/port"
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
