package port

import (
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// TestWhoSufficesToSayThatAServerWasRemoved: neither one that lags nor one that was cut off convinces a member.
func TestWhoSufficesToSayThatAServerWasRemoved(t *testing.T) {
	t.Parallel()
	voters := func(ids ...raft.ServerID) (all []raft.Server) {
		for _, id := range ids {
			all = append(all, raft.Server{ID: id, Suffrage: raft.Voter})
		}
		return all
	}
	more := []raft.Server{{ID: "s6", Suffrage: raft.Nonvoter}, {ID: "s7", Suffrage: raft.Nonvoter}, {ID: "s8", Suffrage: raft.Nonvoter}}
	three, five := voters("s1", "s2", "s3"), voters("s1", "s2", "s3", "s4", "s5")
	out := func(index uint64) standing { return standing{index, false} }
	in := func(index uint64) standing { return standing{index, true} }
	type said = map[raft.ServerID]standing
	for name, tt := range map[string]struct {
		servers []raft.Server
		said    said
		want    []raft.ServerID
	}{
		"both others":                 {three, said{"s1": out(50), "s2": out(51)}, []raft.ServerID{"s1", "s2"}},
		"one of two":                  {three, said{"s1": out(50)}, nil},
		"the only other":              {voters("s1", "s3"), said{"s1": out(50)}, []raft.ServerID{"s1"}},
		"three of four":               {five, said{"s1": out(50), "s2": out(50), "s4": out(50)}, []raft.ServerID{"s1", "s2", "s4"}},
		"two of four":                 {five, said{"s1": out(50), "s2": out(50)}, nil},
		"nobody":                      {three, said{}, nil},
		"one that lags":               {voters("s1", "s3"), said{"s1": out(39)}, nil},
		"a configuration as old":      {voters("s1", "s3"), said{"s1": out(40)}, nil},
		"both lag":                    {three, said{"s1": out(39), "s2": out(40)}, nil},
		"of an older build":           {three, said{"s1": out(0), "s2": out(0)}, nil},
		"it was added again":          {five, said{"s1": out(50), "s2": out(50), "s4": out(50), "s5": in(60)}, nil},
		"one has not heard of it yet": {five, said{"s1": out(50), "s2": out(50), "s4": out(50), "s5": in(40)}, []raft.ServerID{"s1", "s2", "s4"}},
		"one that is no voter":        {append(voters("s1", "s3"), raft.Server{ID: "s2", Suffrage: raft.Nonvoter}), said{"s2": out(50)}, nil},
		"three that are no voters":    {append(voters("s1", "s2", "s3"), more...), said{"s6": out(50), "s7": out(50), "s8": out(50)}, nil},
		"they do not matter":          {append(voters("s1", "s2", "s3"), more...), said{"s1": out(50), "s2": out(50)}, []raft.ServerID{"s1", "s2"}},
		"non-members":                 {three, said{"s8": out(50), "s9": out(50)}, nil},
		"its own configuration knows": {voters("s1", "s2"), said{"s1": out(50), "s2": out(50)}, nil},
	} {
		if got := removedBy("s3", 40, tt.servers, tt.said); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
