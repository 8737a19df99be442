package keyring

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"example.com/keyring/internal/peer"
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
	if n.Leader() != "" {
		return n.AddServer(ctx, n.cfg.ID, n.cfg.Addr)
	}
	// A leader that looks for this server where it was does not make itself known here: the others say
	// who it is.
	body, err := json.Marshal(addRequest{ID: n.cfg.ID, Addr: n.cfg.Addr})
	if err != nil {
		return err
	}
	leader, err := n.net.leaderOfOthers(ctx)
	if err != nil {
		return err
	}
	b, err := n.net.client.Call(ctx, peer.AnyServer, leader, pathAddServer, framed(body, nil))
	if err != nil {
		return err
	}
	_, err = answered(b)
	return err
}

// leaderOfOthers is the address of the leader, as the first of the other servers has it that knows one.
func (w *network) leaderOfOthers(ctx context.Context) (string, error) {
	others := map[string]string{} // address by ID
	for _, s := range w.node.raft.GetConfiguration().Configuration().Servers {
		if s.ID != w.node.cfg.ID {
			others[string(s.ID)] = string(s.Address)
		}
	}
	leader := ""
	askAll(ctx, slices.Sorted(maps.Keys(others)), func(ctx context.Context, id string) (greeting, error) {
		return w.greet(ctx, id, others[id])
	}, func(answers map[string]greeting) bool {
		for _, g := range answers {
			leader = cmp.Or(leader, g.Leader)
		}
		return leader != ""
	})
	if leader == "" {
		return "", fmt.Errorf("%w, by none of the other servers that answer", NotLeaderError{})
	}
	return leader, nil
}
