package node_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// TestNodesForwardWhoVotes: on any server a permanent non-voter is added, which the leader does not promote by itself, and
// votes are given and taken, that of the leader too.
func TestNodesForwardWhoVotes(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	leader := c.Nodes["s1"].Leader()
	f := c.Nodes[keyringtest.Besides(leader)]
	cfg := c.Newcomer("s4")
	cfg.Join = []string{string(leader) + "@" + c.Addrs[leader]}
	if err := f.AddNonvoter(ctx, "s4", cfg.Addr); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	lead := c.Nodes[leader]
	keyringtest.AwaitHolders(lead.Keyring(), lead.Keyring().Keys()[0].ID, 4)
	if err := f.AddServer(ctx, "s9", "127.0.0.1:9"); err != nil { // which never comes
		t.Fatal(err)
	}
	st, err := f.Status(ctx)
	for err == nil && !hasProblem(st, keyring.ProblemNonvoter) { // it looks who may vote
		st, err = f.Status(ctx)
	}
	if err != nil || !slices.Equal(st.Nonvoters, []raft.ServerID{"s4"}) || suffrage(t, lead.Keyring(), "s4") != "Nonvoter" {
		t.Errorf("%q are permanent non-voters, and s4 is %s: %v", st.Nonvoters, suffrage(t, lead.Keyring(), "s4"), err)
	}
	if p := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Server == "s4" }); p >= 0 {
		t.Errorf("of s4 it says %v", st.Problems[p])
	}
	if err := f.PromoteServer(ctx, "s9"); !errors.Is(err, keyring.ErrKeyMissing) || !strings.Contains(err.Error(), "its keyring does not answer") {
		t.Errorf("a server that never came: %v", err)
	}
	if err := f.PromoteServer(ctx, "s4"); err != nil {
		t.Errorf("promote: %v", err)
	}
	if got := suffrage(t, lead.Keyring(), "s4"); got != "Voter" {
		t.Errorf("promoted, it is %s", got)
	}
	if err := f.DemoteServer(ctx, leader); err == nil || !strings.Contains(err.Error(), "s9 has not answered") {
		t.Errorf("demote while a server does not say that it knows of that: %v", err)
	}
	if err := f.RemoveServer(ctx, "s9", keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.DemoteServer(ctx, leader); err != nil {
		t.Errorf("demote the leader: %v", err)
	}
	st, err = f.Status(ctx)
	if err != nil || st.ID == leader || !slices.Equal(st.Nonvoters, []raft.ServerID{leader}) {
		t.Errorf("%s leads, and %q are permanent non-voters: %v", st.ID, st.Nonvoters, err)
	}
}
