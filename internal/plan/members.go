package plan

// What the ring has of the members of the raft configuration: who gets a vote, and what is to be forgotten.

import (
	"slices"

	"example.com/keyring/internal/meta"
)

// Promotable returns the members that are to get a vote as soon as they hold every key that is needed: those of servers,
// which is the raft configuration, that are neither voters nor recorded as permanent non-voters. The leader asks each
// of them what it holds before it gets the vote.
func Promotable(r *meta.Ring, servers, voters []string) (ids []string) {
	for _, s := range servers {
		if !slices.Contains(voters, s) && !r.IsNonvoter(s) {
			ids = append(ids, s)
		}
	}
	return ids
}

// forget is what the ring has of servers that have left, and of permanent non-voters that are none any more. It is of no Kind
// if there is nothing to forget.
func forget(r *meta.Ring, s Situation) Action {
	if gone := departed(r, s.Servers); len(gone) > 0 {
		return Action{Kind: Forget, Servers: gone}
	}
	if over := formerNonvoters(r, s); len(over) > 0 {
		return Action{Kind: EndNonvoters, Servers: over}
	}
	return Action{}
}

func departed(r *meta.Ring, servers []string) []string {
	var gone []string
	for _, s := range r.Servers {
		if !slices.Contains(servers, s.ID) {
			gone = append(gone, s.ID)
		}
	}
	return gone
}

// formerNonvoters are the recorded non-voters that vote, or are no members. The raft configuration is what counts: a
// crash may have come between a change of it and that of the record.
func formerNonvoters(r *meta.Ring, s Situation) (over []string) {
	for _, id := range r.Nonvoters {
		if !slices.Contains(s.Servers, id) || slices.Contains(s.Voters, id) {
			over = append(over, id)
		}
	}
	return over
}
