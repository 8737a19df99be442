package node

import (
	"context"

	"example.com/keyring"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// host is the keyring as the cluster asks it.
type host struct{ *keyring.Keyring }

// LeaderProof implements cluster.Host.
func (h host) LeaderProof(m join.Meeting, token meta.TokenID) ([]byte, error) {
	return h.Keyring.LeaderProof(connOf(m), token.String())
}

// AcceptJoin implements cluster.Host.
func (h host) AcceptJoin(ctx context.Context, m join.Meeting, token meta.TokenID, proof []byte) error {
	return h.Keyring.AcceptJoin(ctx, connOf(m), token.String(), proof)
}

func connOf(m join.Meeting) keyring.JoinConn {
	return keyring.JoinConn{
		Exporter: m.Exporter, Cluster: m.Cluster, Leader: raft.ServerID(m.Leader), LeaderKey: m.LeaderKey,
		Joiner: raft.ServerID(m.Joiner), JoinerKey: m.JoinerKey, Addr: raft.ServerAddress(m.Addr),
	}
}
