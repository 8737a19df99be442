package node

// Two servers with this ID: the other one may have this one's place.

import (
	"context"

	"example.com/keyring/internal/peer"
)

// refusal is why this server does not have its place in the cluster, if another one of its ID has it.
func (n *Node) refusal() string {
	if p := n.cluster.Port(); p != nil {
		return p.Displaced()
	}
	return ""
}

// noteClaimOf notes, on the leader, what a server was answered that has said where it is. What is asked for
// another server, or by somebody who is named, is no claim.
func (n *Node) noteClaimOf(ctx context.Context, r addRequest, answer error) {
	if c := peer.ConnOf(ctx); c != nil && c.Identity().ID == string(r.ID) && r.By == "" {
		n.cluster.Port().NoteClaim(r.ID, r.Addr, answer)
	}
}
