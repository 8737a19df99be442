package keyring

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"example.com/keyring/internal/peer"
)

// keepAddress has the raft configuration say where this server is, which may have moved since it ran
// last.
func (n *Node) keepAddress(ctx context.Context) error {
	s, known := n.serverOf(n.cfg.ID)
	if !known || string(s.Address) == n.cfg.Addr {
		return nil
	}
	err := n.tellAddress(ctx)
	if err != nil {
		n.log.Warn("this server has another address than the raft configuration says",
			"is", n.cfg.Addr, "was", s.Address, "error", err)
	}
	return err
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
