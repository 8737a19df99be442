package node

import (
	"context"

	"github.com/hashicorp/raft"
)

// Decoders decode what servers ask the leader and what it answers, by its kind.
var Decoders = map[string]func([]byte) error{
	"rotate":        func(b []byte) error { _, err := rotateType.Decode(b); return err },
	"remove":        func(b []byte) error { _, err := removeType.Decode(b); return err },
	"add server":    func(b []byte) error { _, err := addType.Decode(b); return err },
	"remove server": func(b []byte) error { _, err := removeServerType.Decode(b); return err },
	"join token":    func(b []byte) error { _, err := joinTokenType.Decode(b); return err },
	"withdraw":      func(b []byte) error { _, err := withdrawType.Decode(b); return err },
	"answer":        func(b []byte) error { _, err := wireErrors.DecodeReply(b); return err },
}

// WireErrors are the errors that keep their identity when they are forwarded.
var WireErrors = wireErrors

// WhileLeads calls end when another server leads, or none.
func WhileLeads(ctx context.Context, n *Node, leader raft.ServerID, end context.CancelFunc) {
	n.whileLeads(ctx, leader, end)
}

// WrapRaftLog puts something around the log of a Node's raft.
func WrapRaftLog(c *Config, wrap func(raft.LogStore) raft.LogStore) { c.wrapLog = wrap }
