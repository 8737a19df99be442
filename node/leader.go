package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// MaxForward is the maximum size in bytes of a plaintext or ciphertext together with its AAD that a follower
// forwards to the leader.
const MaxForward = 1<<20 - 1024

// How long a forwarded call may take if its context allows more.
const (
	callTimeout   = 2 * time.Second
	memberTimeout = 10 * time.Second // covers the live question and two changes of the configuration
	rotateTimeout = 10 * time.Minute
)

// askAgain is how long a call waits before it looks for a leader again: one may be ready without a change here.
const askAgain = 250 * time.Millisecond

// errUnreachable is matched by the errors of calls that got no answer from the leader.
var errUnreachable = errors.New("no answer from the leader")

// errCloses is that of a leader which is being closed.
var errCloses = fmt.Errorf("%w, which is being closed", errUnreachable)

// forwarded is a call as it goes to the leader.
type forwarded struct {
	path      string
	timeout   time.Duration
	data, aad []byte
	err       error // why there is no data
}

// request is a forwarded call whose argument is JSON.
func request(path string, timeout time.Duration, argument any) forwarded {
	b, err := json.Marshal(argument)
	return forwarded{path: path, timeout: timeout, data: b, err: err}
}

// onLeader makes a call on the leader: here if this server is it, else by forwarding it, once. It tries again
// as long as the cluster has no leader, or one that is not ready or does not answer, until ctx ends.
func onLeader[T any](ctx context.Context, n *Node, here func() (T, error), there forwarded, decode func([]byte) (T, error)) (T, error) {
	return whenLed(ctx, n, func() (T, error) { return hereOrForwarded(ctx, n, here, there, decode) })
}

// hereOrForwarded is one try of onLeader.
func hereOrForwarded[T any](ctx context.Context, n *Node, here func() (T, error), there forwarded, decode func([]byte) (T, error)) (T, error) {
	v, err := here()
	if !errors.Is(err, keyring.ErrNotLeader) {
		return v, err
	}
	b, err := n.forward(ctx, there)
	if err != nil {
		var none T
		return none, err
	}
	return decode(b)
}

// leaderPatience is how long a call waits for a leader that is ready and answers, if its context has no
// deadline.
const leaderPatience = 30 * time.Second

// whenLed calls do, and again for as long as the cluster has no leader, or one that is not ready or does not
// answer: until ctx ends, or for leaderPatience if that has no deadline. A leader that was at work on the
// call for that long was there: after it the wait begins again.
func whenLed[T any](ctx context.Context, n *Node, do func() (T, error)) (T, error) {
	var over <-chan time.Time
	begun := time.Now()
	for {
		changed, tried := n.keys.Changed(), time.Now()
		v, err := do()
		if time.Since(tried) >= leaderPatience {
			begun, over = time.Now(), nil
		}
		again := errors.Is(err, keyring.ErrNotLeader) || errors.Is(err, keyring.ErrNotReady) || errors.Is(err, errUnreachable)
		if !again {
			return v, err
		}
		if by := n.removedBy(); len(by) > 0 { // no leader will be heard here
			return v, removedError(by) // not ErrNoLeader, which advises to recover
		}
		if _, bounded := ctx.Deadline(); !bounded && over == nil {
			timer := time.NewTimer(cmp.Or(n.cfg.patience, leaderPatience))
			defer timer.Stop()
			over = timer.C
		}
		ended := false
		select {
		case <-ctx.Done():
			ended = true
		case <-over:
			ended = true
		case <-changed:
		case <-time.After(askAgain):
		}
		if ended || ctx.Err() != nil {
			return v, n.notLed(err, time.Since(begun)) // another try would get no answer
		}
	}
}

// notLed is the error of a call that has waited for a leader: the error of its last try, and what to do if
// there is none.
func (n *Node) notLed(last error, waited time.Duration) error {
	switch refused := n.refusal(); {
	case refused != "" && n.Leader() == "": // not ErrNoLeader, which advises to recover: there is a leader
		return fmt.Errorf("waited %v: %w: this server sees no leader: %s", waited.Round(time.Second), keyring.ErrNotReady, refused)
	case errors.Is(last, keyring.ErrNoLeader), errors.Is(last, errUnreachable) && n.Leader() == "":
		return fmt.Errorf("waited %v: %w: %w", waited.Round(time.Second), keyring.ErrNoLeader, last)
	case errors.Is(last, errUnreachable):
		return fmt.Errorf("the leader, %s, has not answered in %v: %w", n.Leader(), waited.Round(time.Second), last)
	}
	return last
}

// Answers of the leader: what it returns, its text, or nothing.
func raw(b []byte) ([]byte, error)     { return b, nil }
func text(b []byte) (string, error)    { return string(b), nil }
func nothing([]byte) (struct{}, error) { return struct{}{}, nil }
func only(err error) (struct{}, error) { return struct{}{}, err }

// forward sends a call to the leader.
func (n *Node) forward(ctx context.Context, f forwarded) ([]byte, error) {
	if f.err != nil {
		return nil, f.err
	}
	if size := len(f.data) + len(f.aad); size > MaxForward {
		return nil, fmt.Errorf("%w to forward to the leader: %d bytes, at most %d", keyring.ErrTooLong, size, MaxForward)
	}
	leader, port := n.Leader(), n.cluster.Port()
	if leader == "" || port == nil || leader == n.cfg.ID {
		return nil, keyring.NotLeaderError{Leader: leader}
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	b, err := port.CallMember(ctx, leader, f.path, f.body())
	if err != nil {
		return nil, notAnswered(ctx, err)
	}
	return answerOf(b)
}

// answerOf decodes the leader's answer. That a keyring is closed is true of the leader's, not of this server's.
func answerOf(b []byte) ([]byte, error) {
	out, err := wireErrors.DecodeReply(b)
	if errors.Is(err, keyring.ErrClosed) {
		return nil, errCloses
	}
	return out, err
}

// body is what goes over the wire: the length of the AAD, the AAD and the data.
func (f forwarded) body() []byte {
	body := binary.AppendUvarint(nil, uint64(len(f.aad)))
	return append(append(body, f.aad...), f.data...)
}

// parseBody is the reverse of body.
func parseBody(body []byte) (data, aad []byte, ok bool) {
	size, used := binary.Uvarint(body)
	if used <= 0 || size > uint64(len(body)-used) {
		return nil, nil, false
	}
	return body[used+int(size):], body[used : used+int(size)], true
}

// notAnswered tells a leader that was not reached, or may yet be one, from one that refuses
// for good.
func notAnswered(ctx context.Context, err error) error {
	r := (*peer.Refusal)(nil)
	switch {
	case !errors.As(err, &r), r.Code == peer.NotReady, r.Code == peer.NotLeader:
	case r.Code == peer.Unsupported:
		return fmt.Errorf("forward to the leader: its build does not have this call: %w", err)
	default:
		return fmt.Errorf("forward to the leader: %w", err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w: %w", errUnreachable, context.Cause(ctx), err)
	}
	return fmt.Errorf("%w: %w", errUnreachable, err)
}

// leading reports whether this server is a leader that has a key: Rotate asks before it asks for a key, which
// is made once.
func (n *Node) leading() error {
	if err := n.keys.Leading(); err != nil {
		return err
	}
	_, err := n.keys.ActiveKey()
	return err
}

// isLeader reports whether raft takes this server for the leader.
func (n *Node) isLeader() bool { return n.cluster.Raft().State() == raft.Leader }
