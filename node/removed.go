package node

import (
	"context"
	"fmt"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// How long a server that knows no leader waits before it asks the others whether it is a member still. The wait grows to the
// second.
const (
	askRemoved     = 2 * time.Second
	askRemovedMost = time.Minute
)

// watchRemoval asks the other servers whether this one is a member still, while it knows no leader. What they say changes
// nothing but what this server says. A leader that makes itself known here proves the contrary. If it is a member, a leader
// that does may have another server of this ID in its place, and is told where this one is. It runs until Close.
func (n *Node) watchRemoval(ctx context.Context) {
	for pause := askRemoved; ; {
		changed := n.keys.Changed()
		if n.Leader() != "" {
			n.noteRemoved(nil)
			pause = askRemoved
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, askRemovedMost)
		if len(n.askWhetherRemoved(ctx)) > 0 {
			continue
		}
		if err := n.tellAddress(ctx); err != nil {
			n.log.Debug("no leader makes itself known here", "error", err)
		}
	}
}

// askWhetherRemoved returns the servers that say that this one was removed. It asks them if this server knows no leader.
func (n *Node) askWhetherRemoved(ctx context.Context) []raft.ServerID {
	if n.Leader() != "" || n.cluster.Port() == nil {
		return nil
	}
	if by := n.removedBy(); len(by) > 0 {
		return by // that some of them do not answer later changes nothing
	}
	by := n.cluster.Port().RemovedBy(ctx)
	if len(by) > 0 && n.Leader() == "" {
		n.noteRemoved(by)
	}
	return by
}

// isOut reports whether the others say that this server was removed. It asks them at the first of the tries of a call, and
// then at each eighth.
func (n *Node) isOut(ctx context.Context, try int) bool {
	return len(n.removedBy()) > 0 || try%8 == 1 && len(n.askWhetherRemoved(ctx)) > 0
}

// removedBy are the servers that have said that this one was removed.
func (n *Node) removedBy() []raft.ServerID {
	if by := n.removed.Load(); by != nil {
		return *by
	}
	return nil
}

func (n *Node) noteRemoved(by []raft.ServerID) {
	if (len(by) > 0) == (len(n.removedBy()) > 0) {
		return
	}
	if len(by) > 0 {
		n.log.Warn("this server was removed from the cluster", "by what these members say", by)
	}
	n.removed.Store(&by)
	n.keys.Notify()
}

// removedDetail says how this server knows that it was removed.
func removedDetail(by []raft.ServerID) string {
	return fmt.Sprintf("the members %q say that this server is not one of them", by)
}

// removedError is the error of a call on a server that was removed.
func removedError(by []raft.ServerID) error {
	return fmt.Errorf("%w: %s", keyring.ErrNotMember, removedDetail(by))
}
