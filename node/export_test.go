package node

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// Decoders decode what servers ask the leader and what it answers, by its kind.
var Decoders = map[string]func([]byte) error{
	"rotate":        func(b []byte) error { _, err := rotateType.Decode(b); return err },
	"remove":        func(b []byte) error { _, err := removeType.Decode(b); return err },
	"add server":    func(b []byte) error { _, err := addType.Decode(b); return err },
	"remove server": func(b []byte) error { _, err := removeServerType.Decode(b); return err },
	"join token":    func(b []byte) error { _, err := joinTokenType.Decode(b); return err },
	"vote":          func(b []byte) error { _, err := voteType.Decode(b); return err },
	"withdraw":      func(b []byte) error { _, err := withdrawType.Decode(b); return err },
	"adopt":         func(b []byte) error { _, err := adoptType.Decode(b); return err },
	"confirm":       func(b []byte) error { _, err := confirmType.Decode(b); return err },
	"answer":        func(b []byte) error { _, err := wireErrors.DecodeReply(b); return err },
}

// WireErrors are the errors that keep their identity when they are forwarded.
var WireErrors = wireErrors

// WhileLeads calls end when another server leads, or none.
func WhileLeads(ctx context.Context, n *Node, leader raft.ServerID, end context.CancelFunc) {
	n.cluster.Port().WhileLeads(ctx, leader, end)
}

// AnswerOf decodes the leader's answer to a call. ErrUnreachable is matched by the errors of calls that got none.
var (
	AnswerOf       = answerOf
	ErrUnreachable = errUnreachable
)

// Leads reports whether raft takes the server for the leader.
func Leads(n *Node) bool { return n.isLeader() }

// WrapRaftStable puts something around the store of the term and vote of a Node's raft.
func WrapRaftStable(c *Config, wrap func(raft.StableStore) raft.StableStore) { c.wrapStable = wrap }

// WrapRaftLog puts something around the log of a Node's raft.
func WrapRaftLog(c *Config, wrap func(raft.LogStore) raft.LogStore) { c.wrapLog = wrap }

// SlowRaft has a node's raft hand over, and elect, in its own time: with its own timeouts it elects another leader when the tests
// beside it have the processor for a while.
func SlowRaft(c *Config) { c.pace = 5 * time.Second }

// Unlearn has a node answer a path as a build does that does not know it.
func Unlearn(c *Config, path string) { c.unknown = append(c.unknown, path) }

// AskWhetherRemoved returns the servers that say that a node was removed.
func AskWhetherRemoved(ctx context.Context, n *Node) []raft.ServerID {
	return n.cluster.Port().AskWhetherRemoved(ctx)
}

// ShortenPatience has calls wait less for a leader, if their contexts have no deadlines.
func ShortenPatience(c *Config, to time.Duration) { c.patience = to }

// LeaderPatience is how long they wait.
const LeaderPatience = leaderPatience

// RaftServers are the servers of a node's latest raft configuration.
func RaftServers(n *Node) []raft.Server {
	return n.cluster.Raft().GetConfiguration().Configuration().Servers
}

// MembersOf returns their IDs.
func MembersOf(n *Node) (ids []string) {
	for _, s := range RaftServers(n) {
		ids = append(ids, string(s.ID))
	}
	return ids
}

// CurrentTerm is that of a node's raft.
func CurrentTerm(n *Node) uint64 { return n.cluster.Raft().CurrentTerm() }

// Demote takes a server's vote away, on the leader.
func Demote(n *Node, id raft.ServerID) error { return n.cluster.Raft().DemoteVoter(id, 0, 0).Error() }

// SnapshotRaft has a node's raft write a snapshot.
func SnapshotRaft(n *Node) error { return n.cluster.Raft().Snapshot().Error() }

// RestoreRaft makes a snapshot and restores it, which sends it to every other server.
func RestoreRaft(n *Node) error {
	f := n.cluster.Raft().Snapshot()
	if err := f.Error(); err != nil {
		return err
	}
	meta, r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	return n.cluster.Raft().Restore(meta, r, time.Minute)
}

// LookAtCertificates does what is done each minute.
func (n *Node) LookAtCertificates() { n.cluster.Port().LookAtCertificates(context.Background()) }

// WhenLed calls do, and again while it has no leader.
func WhenLed(ctx context.Context, n *Node, do func() (int, error)) (int, error) {
	return whenLed(ctx, n, do)
}

// UntilMoved is TransferLeadership on a node, by a function that asks the leader.
func UntilMoved(ctx context.Context, n *Node, ask func() error) error {
	return n.untilMoved(ctx, "", func() (struct{}, error) { return only(ask()) })
}
