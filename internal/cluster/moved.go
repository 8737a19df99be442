package cluster

import (
	"context"
	"encoding/json"
	"slices"

	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
)

// FindLeader tells all other servers where this one is, and returns the leader that the first of them names which knows
// one; false if none does. A leader that looks for this server at an old address does not make itself known here.
func (s *Server) FindLeader(ctx context.Context) (leader port.Candidate, found bool, err error) {
	body, err := json.Marshal(movedHello{s.cfg.Addr})
	if err != nil {
		return leader, false, err
	}
	var others []string // by address: one member may have the address now that another one had
	for _, m := range s.port.Members() {
		if m.ID != s.cfg.ID {
			others = append(others, s.port.Addresses(m)...)
		}
	}
	slices.Sort(others)
	peer.All(ctx, slices.Compact(others), func(ctx context.Context, addr string) (helloAnswer, error) {
		ctx, cancel := context.WithTimeout(ctx, helloTimeout)
		defer cancel()
		b, err := s.port.CallMemberAt(ctx, port.Candidate{ID: peer.AnyServer, Addr: addr}, pathHello, body)
		if err != nil {
			s.cfg.Logger.Debug("hello", "addr", addr, "error", err)
			return helloAnswer{}, err
		}
		return helloAnswerType.DecodeKnown(b)
	}, func(answers map[string]helloAnswer) bool {
		for _, a := range answers {
			if a.Leader != "" {
				leader = port.Candidate{ID: a.LeaderID, Addr: a.Leader}
			}
		}
		return leader.Addr != ""
	})
	return leader, leader.Addr != "", nil
}
