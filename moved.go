package keyring

import (
	"context"
	"math/rand/v2"
	"time"

	"example.com/keyring/internal/plan"
)

// keepAddress has the raft configuration say where this server is, which may have moved since it ran
// last. It runs until Close.
func (n *Node) keepAddress(ctx context.Context) {
	for tries := 0; ; {
		changed := n.keys.fsm.changed.wait()
		var retry <-chan time.Time
		if s, known := n.serverOf(n.cfg.ID); !known || string(s.Address) == n.cfg.Addr {
			tries = 0
		} else if err := n.tellAddress(ctx); err != nil {
			n.log.Warn("this server has another address than the raft configuration says",
				"is", n.cfg.Addr, "was", s.Address, "error", err)
			changed, retry = nil, time.After(plan.Backoff(tries, rand.Float64()))
			tries++
		}
		select {
		case <-changed:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) tellAddress(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	return n.AddServer(ctx, n.cfg.ID, n.cfg.Addr)
}
