package node

import (
	"context"
	"fmt"

	"example.com/keyring"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/raft"
)

// isOut reports whether the others say that this server was removed. It asks them at the first of the tries
// of a call, and then at each eighth.
func (n *Node) isOut(ctx context.Context, try int) bool {
	if len(n.removedBy()) > 0 {
		return true
	}
	p := n.cluster.Port()
	return p != nil && try%8 == 1 && len(p.AskWhetherRemoved(ctx)) > 0
}

// removedBy are the servers that have said that this one was removed.
func (n *Node) removedBy() []raft.ServerID {
	if p := n.cluster.Port(); p != nil {
		return p.Removed()
	}
	return nil
}

// removedError is the error of a call on a server that was removed.
func removedError(by []raft.ServerID) error {
	return fmt.Errorf("%w: %s", keyring.ErrNotMember, port.RemovedDetail(by))
}
