package docs_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/admin"
	"example.com/keyring/internal/cluster"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"example.com/keyring/port"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

// joinByToken starts a server that a member lets in.
func joinByToken(ctx context.Context, member *node.Node, addresses []string, cfg node.Config) (*node.Node, error) {
	token, err := member.JoinToken("s2", time.Hour) // for that server alone
	if err != nil {
		return nil, err
	}
	cfg.Join, cfg.JoinToken = addresses, token // there: ID "s2", an empty Dir, its own KEKs and certificate
	return node.Start(ctx, cfg)
}

// TestMembersPage: a server joins with a token and gets a vote by itself, loses it, gets it back, leads, and leaves. The calls go
// to the server that does not lead, and each is made twice.
func TestMembersPage(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	c := keyringtest.StartNodes(t, 1, nil)
	c.Ready(ctx)
	s1 := c.Nodes["s1"]
	cfg := c.Newcomer("s2")
	if _, err := s1.JoinToken("s2", keyring.MaxJoinTTL+1); err == nil {
		t.Error("a token that is valid for longer")
	}
	s2, err := joinByToken(ctx, s1, []string{c.Addrs["s1"]}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s2"] = s2
	c.AwaitVote(ctx, s1, "s2")
	twice := func(what string, call func() error) {
		t.Helper()
		for range 2 {
			if err := call(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	var notLeader keyring.NotLeaderError
	if err := s2.Keyring().DemoteServer(ctx, "s2"); !errors.As(err, &notLeader) || notLeader.Leader != "s1" {
		t.Errorf("asked of a Keyring that does not lead: %v", err)
	}
	twice("demote", func() error { return s2.DemoteServer(ctx, "s2") })
	if err := s2.DemoteServer(ctx, "s1"); err == nil {
		t.Error("the last voter is demoted")
	}
	if st, err := s2.Status(ctx); err != nil || fmt.Sprint(st.Nonvoters) != "[s2]" {
		t.Errorf("permanent non-voters are %v, %v", st.Nonvoters, err)
	}
	twice("promote", func() error { return s2.PromoteServer(ctx, "s2") })
	twice("hand over", func() error { return s1.TransferLeadershipTo(ctx, "s2") })
	if s1.Leader() != "s2" {
		c.Await(ctx, s1, "led by s2", func(st keyring.Status) bool { return st.Leader == "s2" })
	}
	if err := s1.RemoveServer(ctx, "s9", keyring.RemoveServerOptions{}); !errors.Is(err, keyring.ErrNotMember) {
		t.Errorf("a server that is no member: %v", err)
	}
	twice("leave", func() error { return s2.Leave(ctx) })
	if err := s1.Keyring().WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// TestMembersNamesCommands: each command that the page names is one of package admin's.
func TestMembersNamesCommands(t *testing.T) {
	text := keyringtest.Pages(t)["docs/members.md"]
	commands := regexp.MustCompile("`(servers [a-z]+)( -[a-z]+)?`").FindAllStringSubmatch(text, -1)
	if len(commands) < 8 {
		t.Errorf("only %d commands", len(commands))
	}
	var usage strings.Builder
	admin.Command(t.Context(), []string{"servers", "-h"}, admin.CommandOptions{Stdout: &usage}) // which is its answer
	for _, m := range commands {
		found := false
		for line := range strings.Lines(usage.String()) {
			found = found || strings.Contains(line, m[1]+" ") && strings.Contains(line, strings.TrimSpace(m[2]))
		}
		if !found {
			t.Errorf("there is no %s%s", m[1], m[2])
		}
	}
}

var figuresOfMembers = []figure{
	{"docs/embedding.md", fmt.Sprintf("a snapshot after %d entries or %d MiB of them", cluster.DefaultSnapshotEntries, cluster.DefaultSnapshotBytes>>20)},
	{"docs/records.md", fmt.Sprintf("A name has up to %d bytes, a record up to %d parts.", records.MaxName, records.MaxParts)},
	{"docs/records.md", fmt.Sprintf("or one of more than %d bytes", records.MaxName)},
	{"docs/records.md", fmt.Sprintf("%d,%03d by default", raft.DefaultConfig().TrailingLogs/1000, raft.DefaultConfig().TrailingLogs%1000)},
	{"docs/members.md", fmt.Sprintf("| 64, of one address %d, for %d seconds each;", peer.DefaultPendingPerAddr, peer.DefaultTimeout/time.Second)},
	{"docs/members.md", fmt.Sprintf("| handshakes under way | %d, of", peer.DefaultPending)},
	{"docs/members.md", fmt.Sprintf("have %d of their own", peer.DefaultPending)},
	{"docs/members.md", fmt.Sprintf("| connections | %d; of one server %d, of these %d for raft; of all non-members together %d",
		peer.DefaultConns, peer.DefaultPerServer, peer.DefaultRaftPerServer, peer.DefaultOutsiders)},
	{"docs/members.md", fmt.Sprintf("| a request or answer between servers | %d MiB", peer.MaxMessage>>20)},
	{"docs/members.md", fmt.Sprintf("| %d MiB (`keyring.MaxCommand`)", keyring.MaxCommand>>20)},
	{"docs/members.md", fmt.Sprintf("for %d hours at most; there are %d at most", keyring.MaxJoinTTL/time.Hour, keyring.MaxJoinTokens)},
	{"docs/transport.md", fmt.Sprintf("at most %d MiB each way", peer.MaxMessage>>20)},
}

// TestFiguresOfMembers are those of the code.
func TestFiguresOfMembers(t *testing.T) {
	checkFigures(t, figuresOfMembers)
	if port.MaxBody >= peer.MaxMessage {
		t.Error("a body of a host's call does not fit a message")
	}
}
