package node

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/port"
	"github.com/hashicorp/raft"
)

// Paths of the calls that are forwarded to the leader.
const (
	pathEncrypt      = "/node/encrypt"
	pathDecrypt      = "/node/decrypt"
	pathSign         = "/node/sign"
	pathSignTyped    = "/node/sign-typed" // the typ is where Encrypt has the AAD
	pathRotate       = "/node/rotate"
	pathRemove       = "/node/remove"
	pathReady        = "/node/ready"
	pathStatus       = "/node/status"
	pathAddServer    = port.PathPlace
	pathRemoveServer = "/node/remove-server"
	pathJoinToken    = "/node/join-token"
	pathWithdraw     = "/node/withdraw-join-token"
	pathTransfer     = "/node/transfer-leadership"
	pathPromote      = "/node/promote-server"
	pathDemote       = "/node/demote-server"

	pathAdopt         = "/node/adopt"
	pathConfirmBackup = "/node/confirm-backup"
)

// wireErrors are the errors that keep their identity when they are forwarded. A code is never given to
// another error; an older build shows the text of the errors that it does not know.
var wireErrors = append(slices.Clone(port.Errors), port.ErrorCodes{
	{Code: 9, Err: keyring.ErrNoData},
	{Code: 12, Err: keyring.ErrUnknownBackup},
	{Code: 13, Err: keyring.ErrCorrupt},
}...)

// What the leader is asked for. By is the actor: see keyring.WithActor.
type (
	rotateRequest struct {
		By                    string `json:",omitempty" bound:"bytes=255"`
		keyring.RotateOptions `bound:"elements=16384"`
	}
	removeRequest struct {
		By string `json:",omitempty" bound:"bytes=255"`
		ID keyring.KeyID
		keyring.RemoveOptions
	}
	addRequest struct {
		By   string        `json:",omitempty" bound:"bytes=255"`
		ID   raft.ServerID `bound:"bytes=1024"`
		Addr string        `bound:"bytes=1024"`

		Nonvoter bool `json:",omitempty"` // see AddNonvoter. A leader of an older build refuses it
	}
	voteRequest struct { // to promote a server, or to demote it
		By string        `json:",omitempty" bound:"bytes=255"`
		ID raft.ServerID `bound:"bytes=1024"`
	}
	removeServerRequest struct {
		By string        `json:",omitempty" bound:"bytes=255"`
		ID raft.ServerID `bound:"bytes=1024"`
		keyring.RemoveServerOptions
	}
	joinTokenRequest struct {
		ID  raft.ServerID `bound:"bytes=1024"`
		TTL time.Duration
	}
	transferRequest struct {
		By string        `json:",omitempty" bound:"bytes=255"`
		ID raft.ServerID `bound:"bytes=1024"` // empty for any
	}
	withdrawRequest struct {
		By string `json:",omitempty" bound:"bytes=255"`
		ID meta.TokenID
	}
	adoptRequest struct {
		By string `json:",omitempty" bound:"bytes=255"`
		ID keyring.KeyID
	}
	confirmRequest struct {
		By     string `json:",omitempty" bound:"bytes=255"`
		SHA256 []byte `bound:"bytes=32"`
	}
)

var (
	rotateType       = bounded.For[rotateRequest](peer.MaxMessage)
	removeType       = bounded.For[removeRequest](peer.MaxMessage)
	addType          = bounded.For[addRequest](peer.MaxMessage)
	removeServerType = bounded.For[removeServerRequest](peer.MaxMessage)
	joinTokenType    = bounded.For[joinTokenRequest](peer.MaxMessage)
	voteType         = bounded.For[voteRequest](peer.MaxMessage)
	transferType     = bounded.For[transferRequest](peer.MaxMessage)
	withdrawType     = bounded.For[withdrawRequest](peer.MaxMessage)
	adoptType        = bounded.For[adoptRequest](peer.MaxMessage)
	confirmType      = bounded.For[confirmRequest](peer.MaxMessage)
)

func (r addRequest) check() error {
	if err := peer.CheckServerID(string(r.ID)); err != nil {
		return fmt.Errorf("add server: %w", err)
	}
	if err := peer.CheckAddress(r.Addr); err != nil {
		return fmt.Errorf("add server %s: %w", r.ID, err)
	}
	return nil
}

// handler does here, on the leader, what another server was asked for. It never forwards again.
type handler func(ctx context.Context, data, aad []byte) ([]byte, error)

// handlers answer the other servers.
func (n *Node) handlers() map[string]port.Handler {
	calls := map[string]port.Handler{port.PathKeyring: n.keys.ServePeer}
	for path, h := range map[string]handler{
		pathEncrypt: func(_ context.Context, data, aad []byte) ([]byte, error) { return n.keys.Encrypt(data, aad) },
		pathDecrypt: func(_ context.Context, data, aad []byte) ([]byte, error) { return n.keys.Decrypt(data, aad) },
		pathSign: func(_ context.Context, data, _ []byte) ([]byte, error) {
			token, err := n.keys.Sign(json.RawMessage(data))
			return []byte(token), err
		},
		pathSignTyped: func(_ context.Context, data, typ []byte) ([]byte, error) {
			token, err := n.keys.SignTyped(string(typ), json.RawMessage(data))
			return []byte(token), err
		},
		pathReady:  func(context.Context, []byte, []byte) ([]byte, error) { return nil, n.leading() },
		pathStatus: func(context.Context, []byte, []byte) ([]byte, error) { return n.keys.EncodeStatus() },
	} {
		calls[path] = n.forwardedTo(h)
	}
	for path, h := range map[string]handler{
		pathRotate:       asked(rotateType, n.serveRotate),
		pathRemove:       asked(removeType, n.serveRemove),
		pathAddServer:    asked(addType, n.serveAddServer),
		pathRemoveServer: asked(removeServerType, n.serveRemoveServer),
		pathJoinToken:    asked(joinTokenType, n.serveJoinToken),
		pathWithdraw:     asked(withdrawType, n.serveWithdraw),
		pathTransfer:     asked(transferType, n.serveTransfer),
		pathPromote:      asked(voteType, n.servePromote),
		pathDemote:       asked(voteType, n.serveDemote),

		pathAdopt:         asked(adoptType, n.serveAdopt),
		pathConfirmBackup: asked(confirmType, n.serveConfirmBackup),
	} {
		calls[path] = n.logged(path, n.forwardedTo(h))
	}
	for _, path := range n.cfg.unknown {
		delete(calls, path)
	}
	return calls
}

// forwardedTo makes the body of a call into a handler's arguments, and its result into an answer.
func (n *Node) forwardedTo(h handler) port.Handler {
	return func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
		data, aad, ok := parseBody(body)
		if !ok {
			return nil, &peer.Refusal{Code: peer.BadRequest}
		}
		out, err := h(keyring.WithForwarder(ctx, from), data, aad)
		if refusal := (*peer.Refusal)(nil); errors.As(err, &refusal) {
			return nil, refusal
		}
		return wireErrors.EncodeReply(out, err), nil
	}
}

// logged logs which server has asked. Who has asked that server is what it says.
func (n *Node) logged(path string, h port.Handler) port.Handler {
	return func(ctx context.Context, from raft.ServerID, body []byte) ([]byte, error) {
		n.log.Info("received a forwarded call", "path", path, "server", from)
		return h(ctx, from, body)
	}
}

// asked has do answer a request in JSON. A newer server may ask for more than this one can do: that
// is refused.
func asked[R any](t bounded.Type[R], do func(context.Context, R) ([]byte, error)) handler {
	return func(ctx context.Context, data, _ []byte) ([]byte, error) {
		r, err := t.Decode(data)
		if err != nil {
			return nil, &peer.Refusal{Code: peer.Unsupported}
		}
		return do(ctx, r)
	}
}

// serveRotate refuses what it has not begun: then the server that asked may ask the next leader.
func (n *Node) serveRotate(ctx context.Context, r rotateRequest) ([]byte, error) {
	if n.leading() != nil {
		return nil, &peer.Refusal{Code: peer.NotLeader}
	}
	k, err := n.keys.Rotate(keyring.WithActor(ctx, r.By), r.RotateOptions)
	return []byte(k.ID.String()), err
}

// serveRemove does not wait until the data has moved, for that may take hours: it answers with a
// byte if it is to move, and the server that asked waits by itself.
func (n *Node) serveRemove(ctx context.Context, r removeRequest) ([]byte, error) {
	moving, err := n.keys.StartRemoval(keyring.WithActor(ctx, r.By), r.ID, r.RemoveOptions)
	if !moving {
		return nil, err
	}
	return []byte{1}, nil
}

func (n *Node) serveAddServer(ctx context.Context, r addRequest) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	err := n.addServer(keyring.WithActor(ctx, r.By), r)
	n.noteClaimOf(ctx, r, err)
	return nil, err
}

func (n *Node) serveRemoveServer(ctx context.Context, r removeServerRequest) ([]byte, error) {
	return nil, n.keys.RemoveServer(keyring.WithActor(ctx, r.By), r.ID, r.RemoveServerOptions)
}

func (n *Node) servePromote(ctx context.Context, r voteRequest) ([]byte, error) {
	return nil, n.keys.PromoteServer(keyring.WithActor(ctx, r.By), r.ID)
}

func (n *Node) serveDemote(ctx context.Context, r voteRequest) ([]byte, error) {
	return nil, n.keys.DemoteServer(keyring.WithActor(ctx, r.By), r.ID)
}

func (n *Node) serveJoinToken(ctx context.Context, r joinTokenRequest) ([]byte, error) {
	text, err := n.keys.MakeJoinToken(ctx, r.ID, r.TTL)
	return []byte(text), err
}

func (n *Node) serveWithdraw(ctx context.Context, r withdrawRequest) ([]byte, error) {
	return nil, n.keys.WithdrawJoinToken(keyring.WithActor(ctx, r.By), r.ID.String())
}

func (n *Node) serveAdopt(ctx context.Context, r adoptRequest) ([]byte, error) {
	return nil, n.keys.Adopt(keyring.WithActor(ctx, r.By), r.ID)
}

func (n *Node) serveConfirmBackup(ctx context.Context, r confirmRequest) ([]byte, error) {
	if len(r.SHA256) != sha256.Size {
		return nil, &peer.Refusal{Code: peer.BadRequest}
	}
	return nil, n.keys.ConfirmBackup(keyring.WithActor(ctx, r.By), [sha256.Size]byte(r.SHA256))
}

func (n *Node) serveTransfer(ctx context.Context, r transferRequest) ([]byte, error) {
	return nil, n.transfer(keyring.WithActor(ctx, r.By), r.ID)
}
