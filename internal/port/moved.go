package port

import (
	"context"
	"encoding/json"
	"slices"

	"example.com/keyring/internal/peer"
)

// FindLeader tells all other servers where this one is, and returns the leader that the first of them names which knows
// one; false if none does. A leader that looks for this server at an old address does not make itself known here.
func (p *Port) FindLeader(ctx context.Context) (leader Candidate, found bool, err error) {
	body, err := json.Marshal(movedHello{p.cfg.Addr})
	if err != nil {
		return leader, false, err
	}
	var others []string // by address: one member may have the address now that another one had
	for _, m := range p.Members() {
		if m.ID != p.cfg.ID {
			others = append(others, p.Addresses(m)...)
		}
	}
	slices.Sort(others)
	peer.All(ctx, slices.Compact(others), func(ctx context.Context, addr string) (HelloAnswer, error) {
		ctx, cancel := context.WithTimeout(ctx, helloTimeout)
		defer cancel()
		b, err := p.CallMemberAt(ctx, Candidate{peer.AnyServer, addr}, pathHello, body)
		if err != nil {
			p.cfg.Logger.Debug("got no answer to a hello", "addr", addr, "error", err)
			return HelloAnswer{}, err
		}
		return helloType.DecodeKnown(b)
	}, func(answers map[string]HelloAnswer) bool {
		for _, a := range answers {
			if a.Leader != "" {
				leader = Candidate{a.LeaderID, a.Leader}
			}
		}
		return leader.Addr != ""
	})
	return leader, leader.Addr != "", nil
}
