package node

import (
	"cmp"
	"context"
	"errors"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// AddServer adds a server to the cluster; addr is the host:port at which the others reach it. Start that
// server with an empty directory, and with a server of the cluster in Join as id@host:port. It gets every
// key, and then a vote. A server that was not added with AddServer needs a JoinToken. A member gets the new
// address, unless it still answers at the old one: then AddServer is an error.
//
// The host is a name or an IP address of one server, so not 0.0.0.0; the port is from 1 to 65535. An ID has
// at most 255 bytes, is case-sensitive, and must not begin or end with spaces.
//
// A permanent non-voter stays one: see AddNonvoter.
//
// AddServer may be called on any server, and repeated after an error. Until ctx ends it waits for a leader
// that is ready and answers.
func (n *Node) AddServer(ctx context.Context, id raft.ServerID, addr string) error {
	return n.add(ctx, addRequest{By: keyring.Actor(ctx), ID: id, Addr: addr})
}

// AddNonvoter is AddServer for a permanent non-voter, such as a read replica. It gets every key and every log
// entry, and no vote before PromoteServer is called for it. See Keyring.AddNonvoter. A voter is an error: see
// DemoteServer. If the server joins with a token, call AddNonvoter first.
func (n *Node) AddNonvoter(ctx context.Context, id raft.ServerID, addr string) error {
	return n.add(ctx, addRequest{By: keyring.Actor(ctx), ID: id, Addr: addr, Nonvoter: true})
}

func (n *Node) add(ctx context.Context, r addRequest) error {
	if err := r.check(); err != nil {
		return err
	}
	here := func() (struct{}, error) { return only(n.addServer(ctx, r)) }
	_, err := onLeader(ctx, n, here, request(pathAddServer, memberTimeout, r), nothing)
	return err
}

// PromoteServer gives a permanent non-voter a vote. It must hold every key: see Keyring.PromoteServer. Other
// servers without a vote get one by themselves. It may be called on any server, and repeated after an error.
// Until ctx ends it waits for a leader that is ready and answers.
func (n *Node) PromoteServer(ctx context.Context, id raft.ServerID) error {
	here := func() (struct{}, error) { return only(n.keys.PromoteServer(ctx, id)) }
	_, err := onLeader(ctx, n, here, request(pathPromote, memberTimeout, voteRequest{keyring.Actor(ctx), id}), nothing)
	return err
}

// DemoteServer makes a voter a permanent non-voter. It fails for the last voter, and if a key would be at
// risk. A leader that is demoted transfers its leadership first: see Keyring.DemoteServer. It may be called
// on any server, and repeated after an error. Until ctx ends it waits for a leader that is ready and answers.
func (n *Node) DemoteServer(ctx context.Context, id raft.ServerID) error {
	here := func() (struct{}, error) { return only(n.keys.DemoteServer(ctx, id)) }
	_, err := onLeader(ctx, n, here, request(pathDemote, memberTimeout, voteRequest{keyring.Actor(ctx), id}), nothing)
	return err
}

// RemoveServer removes a server from the cluster: the others close its connections and give it no keys any
// longer. The server still has its keys: after a theft, then rotate with RotateOptions.Compromised. Unless
// RemoveServerOptions.Force is set, a majority of the remaining voters must confirm now that it holds each
// key; otherwise the error matches keyring.ErrNotDurable. A leader that is removed transfers its leadership
// first. All join tokens end. To come back, the server needs AddServer, or a JoinToken that was made after
// the removal.
//
// If no member has exactly that ID, the error matches keyring.ErrNotMember and names the members. That
// includes a server that an earlier call removed. But if one call asks twice because an answer was lost, it
// returns nil. A server that removes itself also returns nil once it is removed. If it has not heard of that
// itself, a majority of the voters that it knows must say so.
//
// RemoveServer may be called on any server. Until ctx ends it waits for a leader that is ready and answers.
func (n *Node) RemoveServer(ctx context.Context, id raft.ServerID, o keyring.RemoveServerOptions) error {
	here := func() (struct{}, error) { return only(n.keys.RemoveServer(ctx, id, o)) }
	there := request(pathRemoveServer, memberTimeout, removeServerRequest{keyring.Actor(ctx), id, o})
	tries, known := 0, false
	_, err := whenLed(ctx, n, func() (struct{}, error) {
		_, member := n.cluster.Member(id)
		tries, known = tries+1, known || member
		if id == n.cfg.ID && !member && len(n.cluster.Members()) > 0 {
			return struct{}{}, nil // the log has told this server, whatever became of the leader's answer
		}
		_, err := hereOrForwarded(ctx, n, here, there, nothing)
		if refusal := (*peer.Refusal)(nil); id == n.cfg.ID && errors.As(err, &refusal) && refusal.Code == peer.NotMember {
			return struct{}{}, nil
		}
		if err != nil && id == n.cfg.ID && n.isOut(ctx, tries) {
			return struct{}{}, nil // it has not heard of its removal, and knows no leader
		}
		if known && tries > 1 && errors.Is(err, keyring.ErrNotMember) {
			return struct{}{}, nil // the attempt before has removed it, and its answer was lost
		}
		return struct{}{}, err
	})
	return err
}

// Leave removes this server from the cluster, as RemoveServer does. If this server was removed before, it
// returns nil. Afterwards close the Node and delete its directory: until then the directory still contains
// the keys.
func (n *Node) Leave(ctx context.Context) error {
	return n.RemoveServer(ctx, n.cfg.ID, keyring.RemoveServerOptions{})
}

// JoinToken makes a secret token with which the server of that ID may join this cluster. Put it into that
// server's Config.JoinToken. It proves the server to the cluster and the cluster to the server. For its life
// see Keyring.MakeJoinToken.
//
// JoinToken may be called on any server. It waits at most 10 seconds for a leader that is ready and answers.
// If a server of the cluster does not answer, or runs a build without join tokens, the error names that
// server: remove it if it will not come back, or use AddServer.
func (n *Node) JoinToken(id raft.ServerID, ttl time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), memberTimeout)
	defer cancel()
	ttl = cmp.Or(ttl, time.Hour) // leaders of older builds do not know what zero means
	here := func() (string, error) { return n.keys.MakeJoinToken(ctx, id, ttl) }
	return onLeader(ctx, n, here, request(pathJoinToken, memberTimeout, joinTokenRequest{ID: id, TTL: ttl}), text)
}

// JoinTokens is Keyring.JoinTokens on this server.
func (n *Node) JoinTokens() []keyring.JoinTokenInfo { return n.keys.JoinTokens() }

// WithdrawJoinToken ends the join token with that JoinTokenInfo.ID: no server can join with it any longer. A
// server that has joined stays: see RemoveServer. An unknown ID is an error. WithdrawJoinToken may be called
// on any server. Until ctx ends it waits for a leader that is ready and answers.
func (n *Node) WithdrawJoinToken(ctx context.Context, id string) error {
	var token meta.TokenID
	_ = token.UnmarshalText([]byte(id)) // the keyring says what is wrong with it
	here := func() (struct{}, error) { return only(n.keys.WithdrawJoinToken(ctx, id)) }
	_, err := onLeader(ctx, n, here, request(pathWithdraw, memberTimeout, withdrawRequest{keyring.Actor(ctx), token}), nothing)
	return err
}

// addServer is AddServer on the leader.
func (n *Node) addServer(ctx context.Context, r addRequest) error {
	if n.cluster.Port() == nil {
		return errors.New("add server: this server has no port: set Config.Addr")
	}
	add := n.keys.AddServer
	if r.Nonvoter {
		add = n.keys.AddNonvoter
	}
	return add(ctx, r.ID, raft.ServerAddress(r.Addr), keyring.AddServerOptions{
		MayMove: func(ctx context.Context, member raft.Server) error {
			return n.cluster.Port().MayMove(ctx, member, r.Addr)
		},
	})
}
