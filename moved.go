package keyring

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
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

// tellAddress has the leader write down where this server is. Where there is none it tells all others, so
// that one of them can be elected which does not find this server otherwise.
func (n *Node) tellAddress(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	if leader := n.Leader(); leader != "" {
		var watch sync.WaitGroup
		watch.Go(func() { n.whileLeads(ctx, leader, cancel) })
		err := n.AddServer(ctx, n.cfg.ID, n.cfg.Addr)
		cancel()
		watch.Wait()
		return err
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
	b, err := n.net.CallMemberAt(ctx, leader, pathAddServer, framed(body, nil))
	if err != nil {
		return err
	}
	_, err = answered(b)
	return err
}

// whileLeads ends what waits for a leader that leads no more: it may never answer, and this server may
// lead meanwhile.
func (n *Node) whileLeads(ctx context.Context, leader raft.ServerID, end context.CancelFunc) {
	for {
		changed := n.keys.Changed()
		if n.Leader() != leader {
			end()
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// place is what a server says with its greeting that is not where the others look for it.
type place struct {
	Addr string `json:"addr" bound:"bytes=1024"`
}

var placeType = bounded.For[place](peer.MaxMessage)

// noteMoved remembers where a member says that it is. It can say so for itself alone, and whoever answers
// there has to prove that it is that server.
func (w *network) noteMoved(from raft.ServerID, body []byte) {
	if len(body) == 0 || !w.ready() {
		return
	}
	p, err := placeType.Decode(body)
	if err != nil {
		return
	}
	s, known := w.node.serverOf(from)
	if !known || (addRequest{ID: s.ID, Addr: p.Addr}).check() != nil {
		return
	}
	w.NoteAddress(from, p.Addr)
}

// leaderOfOthers tells all other servers where this one is, and returns the leader, as the first of them
// has it that knows one.
func (w *network) leaderOfOthers(ctx context.Context) (cluster.Candidate, error) {
	body, err := json.Marshal(place{w.node.cfg.Addr})
	if err != nil {
		return cluster.Candidate{}, err
	}
	var others []string // whoever is there now, if one has the address that another had
	for _, s := range w.node.raft.GetConfiguration().Configuration().Servers {
		if s.ID != w.node.cfg.ID {
			others = append(others, w.Addresses(s)...)
		}
	}
	slices.Sort(others)
	var leader cluster.Candidate
	peer.All(ctx, slices.Compact(others), func(ctx context.Context, addr string) (greeting, error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		b, err := w.CallMemberAt(ctx, cluster.Candidate{ID: peer.AnyServer, Addr: addr}, pathHello, body)
		if err != nil {
			w.node.log.Debug("hello", "addr", addr, "error", err)
			return greeting{}, err
		}
		return greetingType.DecodeKnown(b)
	}, func(answers map[string]greeting) bool {
		for _, g := range answers {
			if g.Leader != "" {
				leader = cluster.Candidate{ID: g.LeaderID, Addr: g.Leader}
			}
		}
		return leader.Addr != ""
	})
	if leader.Addr == "" {
		return cluster.Candidate{}, fmt.Errorf("%w, by none of the other servers that answer", NotLeaderError{})
	}
	return leader, nil
}
