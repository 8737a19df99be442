package keyring

import (
	"cmp"
	"context"
	"errors"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// JoinToken has the leader make a token with which the server of that ID may join this cluster: it
// goes into NodeConfig.JoinToken there, and proves the server to the cluster and the cluster to the
// server. It is a secret. See Keyring.MakeJoinToken for how long it is good.
//
// It may be called on any server. It waits for a leader that is ready and answers, 10 seconds at most.
// While a server of the cluster does not answer, or is of a build without such tokens, it is an error that
// names that server: remove it if it will not come back, or use AddServer.
func (n *Node) JoinToken(id raft.ServerID, ttl time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), memberTimeout)
	defer cancel()
	ttl = cmp.Or(ttl, time.Hour) // leaders of older builds do not know what zero means
	var text string
	err := n.whenLed(ctx, func() (err error) {
		text, err = n.keys.MakeJoinToken(ctx, id, ttl)
		if errors.Is(err, ErrNotLeader) {
			var b []byte
			b, err = n.forwardRequest(ctx, memberTimeout, pathJoinToken, joinTokenRequest{ID: id, TTL: ttl})
			text = string(b)
		}
		return err
	})
	return text, err
}

// JoinTokens is Keyring.JoinTokens, as this server knows them.
func (n *Node) JoinTokens() []JoinTokenInfo { return n.keys.JoinTokens() }

// WithdrawJoinToken ends the join token of that ID, which is JoinTokenInfo's: nobody can join with it any
// more. A server that has joined stays: see RemoveServer. That there is no such token is an error. It may be called
// on any server. As long as ctx lets it, it waits for a leader that is ready and answers.
func (n *Node) WithdrawJoinToken(ctx context.Context, id string) error {
	return n.whenLed(ctx, func() error {
		err := n.keys.WithdrawJoinToken(ctx, id)
		if errors.Is(err, ErrNotLeader) {
			r := withdrawRequest{By: Actor(ctx)}
			if err := r.ID.UnmarshalText([]byte(id)); err != nil {
				return err
			}
			_, err = n.forwardRequest(ctx, memberTimeout, pathWithdraw, r)
		}
		return err
	})
}

// What the leader is asked for, and by whom.
type (
	joinTokenRequest struct {
		ID  raft.ServerID `bound:"bytes=1024"`
		TTL time.Duration
	}
	withdrawRequest struct {
		By string `json:",omitempty" bound:"bytes=255"`
		ID meta.TokenID
	}
)

var (
	joinTokenType = bounded.For[joinTokenRequest](peer.MaxMessage)
	withdrawType  = bounded.For[withdrawRequest](peer.MaxMessage)
)
