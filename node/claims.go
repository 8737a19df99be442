package node

// Two servers with this ID: what this server says if it is the one that is refused, and what the leader says.

import (
	"context"
	"errors"
	"fmt"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
)

// noteClaim notes what the leader has answered when this server has told it where it is.
func (n *Node) noteClaim(answer error) {
	refused := ""
	if errors.Is(answer, port.ErrIDInUse) {
		refused = answer.Error()
	}
	if was := n.refusal(); was == refused {
		return
	}
	if n.refused.Store(&refused); refused != "" {
		n.log.Warn("another server has this server's place in the cluster", "id", n.cfg.ID, "addr", n.cfg.advertised(), "error", answer)
	}
	n.keys.Notify()
}

// refusal is why this server does not have its place in the cluster, if another one of its ID has it.
func (n *Node) refusal() string {
	if refused := n.refused.Load(); refused != nil {
		return *refused
	}
	return ""
}

// noteClaimOf notes, on the leader, what a server was answered that has said where it is. What is asked for another server, or by
// somebody who is named, is no claim.
func (n *Node) noteClaimOf(ctx context.Context, r addRequest, answer error) {
	if c := peer.ConnOf(ctx); c != nil && c.Identity().ID == string(r.ID) && r.By == "" {
		n.cluster.Port().NoteClaim(r.ID, r.Addr, answer)
	}
}

// claimProblems say that another server has this one's ID, and on the leader that two have one.
func (n *Node) claimProblems() (all []keyring.Problem) {
	if refused := n.refusal(); refused != "" {
		all = append(all, keyring.Problem{Kind: keyring.ProblemIDTwice, Detail: fmt.Sprintf(
			"this server, at %s, does not have its place in the cluster: %s", n.cfg.advertised(), refused)})
	}
	if !n.isLeader() || n.cluster.Port() == nil {
		return all
	}
	for _, c := range n.cluster.Port().Claims() {
		p := keyring.Problem{Kind: keyring.ProblemIDTwice, Server: c.ID, Detail: c.String()}
		if c.ID == n.cfg.ID {
			p.Server = ""
		}
		all = append(all, p)
	}
	return all
}
