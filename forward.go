package keyring

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/bounded"
	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// MaxForward is the most that a plaintext or ciphertext and its AAD may have together, in
// bytes, for a follower to forward them to the leader.
const MaxForward = peer.MaxMessage - 1024

// Encrypt is Keyring.Encrypt, on the leader: done here if this server is it, else forwarded
// to it, once. As long as ctx lets it, it waits for a leader that is ready and answers.
func (n *Node) Encrypt(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	var out []byte
	err := n.whenLed(ctx, func() (err error) {
		if out, err = n.keys.Encrypt(plaintext, aad); errors.Is(err, ErrNotLeader) {
			out, err = n.forward(ctx, callTimeout, pathEncrypt, plaintext, aad)
		}
		return err
	})
	return out, err
}

// Decrypt is Keyring.Decrypt, here if this server holds the key, else on the leader.
func (n *Node) Decrypt(ctx context.Context, ciphertext, aad []byte) ([]byte, error) {
	out, err := n.keys.Decrypt(ciphertext, aad)
	elsewhere := errors.Is(err, ErrKeyMissing) || errors.Is(err, ErrUnknownKey) || errors.Is(err, ErrNotReady)
	if !elsewhere || n.raft.State() == raft.Leader {
		return out, err
	}
	if leader := n.Leader(); errors.Is(err, ErrNotReady) && (leader == "" || n.net == nil) {
		return nil, err
	}
	return n.forward(ctx, callTimeout, pathDecrypt, ciphertext, aad)
}

// Sign is Keyring.Sign, on the leader: done here if this server is it, else forwarded to it,
// once. As long as ctx lets it, it waits for a leader that is ready and answers.
func (n *Node) Sign(ctx context.Context, claims ...any) (string, error) {
	object, err := jwt.Merge(claims...)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	var token string
	err = n.whenLed(ctx, func() (err error) {
		if token, err = n.keys.Sign(json.RawMessage(object)); errors.Is(err, ErrNotLeader) {
			var b []byte
			b, err = n.forward(ctx, callTimeout, pathSign, object, nil)
			token = string(b)
		}
		return err
	})
	return token, err
}

// Rotate is Keyring.Rotate, on the leader: done here if this server is it, else forwarded to
// it, once. As long as ctx lets it, it waits for a leader that is ready and answers, before
// it asks it to. A call after an error waits for the key that the one before has made, if that is still
// prepublished: see Keyring.Rotate.
func (n *Node) Rotate(ctx context.Context, o RotateOptions) (Key, error) {
	var here bool
	err := n.whenLed(ctx, func() (err error) {
		err = n.mayRotate()
		if here = !errors.Is(err, ErrNotLeader); !here {
			_, err = n.forward(ctx, callTimeout, pathReady, nil, nil)
		}
		return err
	})
	if err != nil {
		return Key{}, err
	}
	if here {
		return n.keys.Rotate(ctx, o)
	}
	b, err := n.forwardRequest(ctx, rotateTimeout, pathRotate, rotateRequest{Actor(ctx), o})
	if err != nil && ctx.Err() != nil {
		return Key{}, fmt.Errorf("%w: %w", ErrNotDurable, err)
	}
	if err != nil {
		return Key{}, err
	}
	id, err := ParseKeyID(string(b))
	if err != nil {
		return Key{}, fmt.Errorf("rotate: the leader's answer: %w", err)
	}
	return n.keys.WaitRotated(ctx, id)
}

// mayRotate reports whether this server is a leader that can rotate: Rotate is asked once.
func (n *Node) mayRotate() error {
	if err := n.keys.Leading(); err != nil {
		return err
	}
	_, err := n.keys.ActiveKey()
	return err
}

// Remove is Keyring.Remove, on the leader: done here if this server is it, else forwarded to it. As
// long as ctx lets it, it waits for a leader that is ready, and asks the next one when the leader
// changes: removing a key twice does no more than removing it once. When it returns, the key is
// removed on this server too.
func (n *Node) Remove(ctx context.Context, id KeyID, o RemoveOptions) error {
	begin := func() (moving bool, err error) {
		err = n.whenLed(ctx, func() error {
			err := n.keys.Remove(ctx, id, o)
			if errors.Is(err, ErrNotLeader) {
				var b []byte
				b, err = n.forwardRequest(ctx, callTimeout, pathRemove, removeRequest{Actor(ctx), id, o})
				moving = len(b) > 0
			}
			return err
		})
		return moving, err
	}
	return untilRemoved(o, begin, func() error { return n.keys.WaitRemoved(ctx, id) })
}

// What the leader is asked for, and by whom.
type (
	rotateRequest struct {
		By            string `json:",omitempty" bound:"bytes=255"`
		RotateOptions `bound:"elements=16384"`
	}
	removeRequest struct {
		By string `json:",omitempty" bound:"bytes=255"`
		ID KeyID
		RemoveOptions
	}
)

var (
	rotateType = bounded.For[rotateRequest](peer.MaxMessage)
	removeType = bounded.For[removeRequest](peer.MaxMessage)
)

// rotateTimeout is how long a forwarded rotation may take if its context allows more.
const rotateTimeout = 10 * time.Minute

// errUnreachable is matched by the errors of calls that got no answer from the leader.
var errUnreachable = errors.New("no answer from the leader")

// whenLed calls do, and again for as long as the cluster has no leader, or one that is not
// ready or does not answer.
func (n *Node) whenLed(ctx context.Context, do func() error) error {
	for {
		changed := n.keys.Changed()
		err := do()
		unled := errors.Is(err, ErrNotLeader) || errors.Is(err, ErrNotReady) || errors.Is(err, errUnreachable)
		if !unled || ctx.Err() != nil {
			return err
		}
		select {
		case <-changed:
		case <-time.After(joinRetry): // the leader may be ready without a change here
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return err // asked again, nobody would answer
		}
	}
}

// forwardRequest sends a call to the leader whose argument is JSON.
func (n *Node) forwardRequest(ctx context.Context, timeout time.Duration, path string, request any) ([]byte, error) {
	b, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return n.forward(ctx, timeout, path, b, nil)
}

// forward sends a call to the leader.
func (n *Node) forward(ctx context.Context, timeout time.Duration, path string, data, aad []byte) ([]byte, error) {
	if len(data)+len(aad) > MaxForward {
		return nil, fmt.Errorf("%w to forward to the leader: %d bytes, at most %d", ErrTooLong, len(data)+len(aad), MaxForward)
	}
	leader := n.Leader()
	if leader == "" || n.net == nil || leader == n.cfg.ID {
		return nil, NotLeaderError{Leader: leader}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	b, err := n.net.CallMember(ctx, leader, path, framed(data, aad))
	if err != nil {
		return nil, notAnswered(ctx, err)
	}
	return answered(b)
}

// framed is the body of a forwarded call.
func framed(data, aad []byte) []byte {
	body := binary.AppendUvarint(nil, uint64(len(aad)))
	return append(append(body, aad...), data...)
}

// notAnswered tells a leader that was not reached, or may yet be one, from one that refuses
// for good.
func notAnswered(ctx context.Context, err error) error {
	r := (*peer.Refusal)(nil)
	switch {
	case !errors.As(err, &r), r.Code == peer.NotReady, r.Code == peer.NotLeader:
	case r.Code == peer.Unsupported:
		return fmt.Errorf("forward to the leader, whose build does not know this call: %w", err)
	default:
		return fmt.Errorf("forward to the leader: %w", err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w: %w", errUnreachable, context.Cause(ctx), err)
	}
	return fmt.Errorf("%w: %w", errUnreachable, err)
}

// serveForwarded does here, on the leader, what another server was asked for. It never
// forwards again.
func (n *Node) serveForwarded(ctx context.Context, from raft.ServerID, path string, body []byte) ([]byte, error) {
	size, used := binary.Uvarint(body)
	if used <= 0 || size > uint64(len(body)-used) {
		return nil, &peer.Refusal{Code: peer.BadRequest}
	}
	aad, data := body[used:used+int(size)], body[used+int(size):]
	ctx = WithForwarder(ctx, from)
	switch path {
	case pathRotate, pathRemove, pathAddServer, pathRemoveServer, pathJoinToken, pathWithdraw: // who asked is what that server says
		n.log.Info("asked by another server", "path", path, "server", from)
	}
	var out []byte
	var err error
	switch path {
	case pathEncrypt:
		out, err = n.keys.Encrypt(data, aad)
	case pathDecrypt:
		out, err = n.keys.Decrypt(data, aad)
	case pathSign:
		var token string
		token, err = n.keys.Sign(json.RawMessage(data))
		out = []byte(token)
	case pathReady:
		err = n.mayRotate()
	case pathStatus:
		out, err = n.keys.EncodeStatus()
	case pathRotate:
		out, err = asked(data, rotateType, func(r rotateRequest) ([]byte, error) {
			k, err := n.keys.Rotate(WithActor(ctx, r.By), r.RotateOptions)
			return []byte(k.ID.String()), err
		})
	case pathRemove:
		out, err = asked(data, removeType, func(r removeRequest) ([]byte, error) { return n.removeForwarded(ctx, r) })
	case pathAddServer:
		out, err = asked(data, addType, func(r addRequest) ([]byte, error) {
			if err := r.check(); err != nil {
				return nil, err
			}
			return nil, n.addServer(WithActor(ctx, r.By), r)
		})
	case pathRemoveServer:
		out, err = asked(data, removeServerType, func(r removeServerRequest) ([]byte, error) {
			return nil, n.keys.RemoveServer(WithActor(ctx, r.By), r.ID, r.RemoveServerOptions)
		})
	case pathJoinToken:
		out, err = asked(data, joinTokenType, func(r joinTokenRequest) ([]byte, error) {
			text, err := n.keys.MakeJoinToken(ctx, r.ID, r.TTL)
			return []byte(text), err
		})
	case pathWithdraw:
		out, err = asked(data, withdrawType, func(r withdrawRequest) ([]byte, error) {
			return nil, n.keys.WithdrawJoinToken(WithActor(ctx, r.By), r.ID.String())
		})
	}
	if refusal := (*peer.Refusal)(nil); errors.As(err, &refusal) {
		return nil, refusal
	}
	return answer(out, err), nil
}

// asked has do answer a request in JSON. A newer server may ask for more than this one can do: that
// is refused.
func asked[R any](data []byte, t bounded.Type[R], do func(R) ([]byte, error)) ([]byte, error) {
	r, err := t.Decode(data)
	if err != nil {
		return nil, &peer.Refusal{Code: peer.Unsupported}
	}
	return do(r)
}

// removeForwarded does not wait until the data has moved, for that may take hours: it answers with a
// byte if it is to move, and the server that asked waits by itself.
func (n *Node) removeForwarded(ctx context.Context, r removeRequest) ([]byte, error) {
	moving, err := n.keys.StartRemoval(WithActor(ctx, r.By), r.ID, r.RemoveOptions)
	if !moving {
		return nil, err
	}
	return []byte{1}, nil
}

// wireErrors are the errors that keep their identity when they are forwarded, by the byte
// that stands for them: new ones come last, and an older build shows their text. Zero is success, wireText an error of which only the text is kept.
var wireErrors = []error{nil, ErrNotLeader, ErrNotReady, ErrUnknownKey, ErrKeyMissing, ErrDecrypt, ErrTooLong, ErrNotDurable, ErrClosed, ErrNoData, ErrNotMember}

const wireText = 0xff

// maxErrorText is how many bytes of an error's text another server's answer may have here. The rest is cut
// off: errors are logged.
const maxErrorText = 4 << 10

// answer is what goes back for a forwarded call: a byte of wireErrors, then the result or the
// error's text.
func answer(out []byte, err error) []byte {
	if err == nil {
		return append([]byte{0}, out...)
	}
	for i, e := range wireErrors {
		if errors.Is(err, e) {
			return append([]byte{byte(i)}, err.Error()...)
		}
	}
	return append([]byte{wireText}, err.Error()...)
}

// answered is the reverse of answer.
func answered(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("the leader's answer is empty")
	}
	code, rest := int(b[0]), b[1:]
	if code == 0 {
		return rest, nil
	}
	rest = rest[:min(len(rest), maxErrorText)]
	switch {
	case code >= len(wireErrors):
		return nil, fmt.Errorf("from the leader: %s", rest)
	case wireErrors[code] == ErrDecrypt: // which never says more
		return nil, ErrDecrypt
	}
	return nil, fmt.Errorf("from the leader: %w: %s", wireErrors[code], rest)
}
