package node

// Leadership transfer: TransferLeadership, and Close of a leader.

import (
	"context"
	"errors"
	"slices"
	"time"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// TransferLeadership transfers the leadership to the voter with the longest log, for example before work on
// the leader's machine. When it returns nil, the old leader no longer leads, and the other server is being
// elected, which takes some milliseconds; calls wait for it. It is an error if there is no other voter, or if
// none takes over within a few seconds; then the leader goes on leading.
//
// Close of a leader does the same by itself. TransferLeadership may be called on any server. Until ctx ends
// it waits for a leader that is ready and answers.
func (n *Node) TransferLeadership(ctx context.Context) error {
	return n.transferLeadership(ctx, "")
}

// TransferLeadershipTo is TransferLeadership to the voter with that ID. If that server leads already, it
// returns nil. If no member has that ID, the error matches keyring.ErrNotMember.
func (n *Node) TransferLeadershipTo(ctx context.Context, id raft.ServerID) error {
	if id == "" {
		return errors.New("transfer leadership: the server ID is empty")
	}
	return n.transferLeadership(ctx, id)
}

func (n *Node) transferLeadership(ctx context.Context, id raft.ServerID) error {
	here := func() (struct{}, error) { return only(n.transfer(ctx, id)) }
	there := request(pathTransfer, memberTimeout, transferRequest{keyring.Actor(ctx), id})
	return n.untilMoved(ctx, id, func() (struct{}, error) { return hereOrForwarded(ctx, n, here, there, nothing) })
}

// untilMoved asks leaders to hand over, until one has. If a leader was asked to hand over to any server, its
// answer was lost, and another one leads, that is what was asked for: the next one must not hand over too,
// perhaps back.
func (n *Node) untilMoved(ctx context.Context, id raft.ServerID, ask func() (struct{}, error)) error {
	var asked raft.ServerID
	_, err := whenLed(ctx, n, func() (struct{}, error) {
		leader := n.Leader()
		if id == "" && asked != "" && leader != "" && leader != asked {
			return struct{}{}, nil
		}
		_, err := ask()
		if asked == "" && errors.Is(err, errUnreachable) {
			asked = leader
		}
		return struct{}{}, err
	})
	return err
}

// transfer is TransferLeadership on the leader: to the server of that ID or, if it is empty, to any.
func (n *Node) transfer(ctx context.Context, id raft.ServerID) error {
	if id == "" {
		return n.keys.TransferLeadership(ctx)
	}
	return n.keys.TransferLeadershipTo(ctx, id)
}

// handOverPatience bounds how long Close of a leader takes to hand over, and to hear of the next one.
const handOverPatience = 3 * time.Second

// resign hands over, if this server leads and there is somebody to hand over to, and waits until it has heard
// of the next leader: until then the calls of the others end here.
func (n *Node) resign() {
	if !n.isLeader() {
		return
	}
	isOtherVoter := func(s raft.Server) bool { return s.Suffrage == raft.Voter && s.ID != n.cfg.ID }
	if !slices.ContainsFunc(n.cluster.Members(), isOtherVoter) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(handOverPatience, 3*n.cfg.pace))
	defer cancel()
	if err := n.keys.TransferLeadership(ctx); err != nil {
		n.log.Warn("closing the leader without a leadership transfer", "error", err)
		return
	}
	for {
		changed := n.keys.Changed()
		if leader := n.Leader(); leader != "" && leader != n.cfg.ID {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
