package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
)

// Encrypt is Keyring.Encrypt on the leader: another server forwards the call. It waits for a leader that is
// ready and answers until ctx ends, or for 30 seconds if ctx has no deadline. If there is none, the error
// matches keyring.ErrNoLeader. All calls of a Node that wait for a leader do the same.
func (n *Node) Encrypt(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	here := func() ([]byte, error) { return n.keys.Encrypt(plaintext, aad) }
	return onLeader(ctx, n, here, forwarded{path: pathEncrypt, timeout: callTimeout, data: plaintext, aad: aad}, raw)
}

// EncryptTo is Keyring.EncryptTo with Node.Encrypt. store is called on this server, wherever the leader is.
func (n *Node) EncryptTo(ctx context.Context, plaintext, aad []byte, store func(ctx context.Context, ciphertext []byte) error) error {
	for try := 0; ; try++ {
		ciphertext, err := n.Encrypt(ctx, plaintext, aad)
		if err != nil {
			return err
		}
		if err = store(ctx, ciphertext); !errors.Is(err, keyring.ErrStaleKey) {
			return err
		}
		pause := time.Duration(0)
		if try > 0 { // the first retry follows a rotation; more are unexpected
			pause = plan.Backoff(try, rand.Float64())
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// Decrypt is Keyring.Decrypt on this server if it holds the key, otherwise on the leader. Never call it in
// Apply: see Keyring.Decrypt.
func (n *Node) Decrypt(ctx context.Context, ciphertext, aad []byte) ([]byte, error) {
	out, err := n.keys.Decrypt(ciphertext, aad)
	elsewhere := errors.Is(err, keyring.ErrKeyMissing) || errors.Is(err, keyring.ErrUnknownKey) || errors.Is(err, keyring.ErrNotReady)
	if !elsewhere || n.isLeader() {
		return out, err
	}
	if errors.Is(err, keyring.ErrNotReady) && (n.Leader() == "" || n.cluster.Port() == nil) {
		return nil, err
	}
	there := forwarded{path: pathDecrypt, timeout: callTimeout, data: ciphertext, aad: aad}
	out, err = n.forward(ctx, there)
	if errors.Is(err, errCloses) { // another server leads soon, perhaps this one
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		here := func() ([]byte, error) {
			if n.isLeader() {
				return n.keys.Decrypt(ciphertext, aad)
			}
			return nil, keyring.NotLeaderError{Leader: n.Leader()}
		}
		return onLeader(ctx, n, here, there, raw)
	}
	return out, err
}

// Sign is Keyring.Sign on the leader: another server forwards the call. Until ctx ends it waits for a leader
// that is ready and answers.
func (n *Node) Sign(ctx context.Context, claims ...any) (string, error) {
	return n.SignTyped(ctx, "", claims...)
}

// SignTyped is Keyring.SignTyped on the leader, forwarded like Sign. If the leader's build has no SignTyped,
// it signs nothing, and the error says so.
func (n *Node) SignTyped(ctx context.Context, typ string, claims ...any) (string, error) {
	typ, err := jwt.Type(typ)
	if err != nil {
		return "", fmt.Errorf("sign: typ: %w", err)
	}
	object, err := jwt.Merge(claims...)
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	here := func() (string, error) { return n.keys.SignTyped(typ, json.RawMessage(object)) }
	there := forwarded{path: pathSign, timeout: callTimeout, data: object}
	if typ != jwt.JWT { // not in pathSign, where an older leader would leave it out
		there.path, there.aad = pathSignTyped, []byte(typ)
	}
	return onLeader(ctx, n, here, there, text)
}

// Rotate is Keyring.Rotate on the leader. Until ctx ends it waits for a leader that is ready and answers. It
// sends the request again only if no leader can have begun it, because a second request could make a second
// key. Then it waits until the key is active. If ctx has no deadline, it waits at most 10 minutes when
// another server leads, and gives up after 30 seconds without a leader. A call after an error waits for the
// key that the earlier call made, if that is still prepublished: see Keyring.Rotate.
func (n *Node) Rotate(ctx context.Context, o keyring.RotateOptions) (keyring.Key, error) {
	here := func() (bool, error) { return true, n.leading() }
	there := func([]byte) (bool, error) { return false, nil }
	rotation := request(pathRotate, rotateTimeout, rotateRequest{keyring.Actor(ctx), o})
	ready := func() (bool, error) {
		return onLeader(ctx, n, here, forwarded{path: pathReady, timeout: callTimeout}, there)
	}
	leads, answer, err := untilTaken(ctx, ready, func() ([]byte, error) { return n.forward(ctx, rotation) })
	switch {
	case err != nil:
		return keyring.Key{}, err
	case leads:
		return n.keys.Rotate(ctx, o)
	}
	return n.rotated(ctx, answer)
}

// untilTaken waits with ready for a leader, and asks it to rotate. A leader that refuses has begun nothing,
// so untilTaken asks the next leader after a pause, which grows with each refusal up to a second. If this
// server leads, it asks nobody and returns leads.
func untilTaken(ctx context.Context, ready func() (bool, error), ask func() ([]byte, error)) (leads bool, answer []byte, err error) {
	for tries := 0; ; tries++ {
		if leads, err = ready(); err != nil || leads {
			return leads, nil, err
		}
		answer, err = ask()
		refusal := (*peer.Refusal)(nil)
		began := !errors.As(err, &refusal) || refusal.Code != peer.NotLeader && refusal.Code != peer.NotReady
		switch {
		case err == nil:
			return false, answer, nil
		case ctx.Err() != nil:
			return false, nil, fmt.Errorf("%w: %w", keyring.ErrNotDurable, err)
		case began:
			return false, nil, err
		}
		select {
		case <-time.After(min(time.Second, plan.Backoff(tries, rand.Float64()))):
		case <-ctx.Done():
			return false, nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// rotated waits for the key whose ID the leader has answered.
func (n *Node) rotated(ctx context.Context, answer []byte) (keyring.Key, error) {
	id, err := keyring.ParseKeyID(string(answer))
	if err != nil {
		return keyring.Key{}, fmt.Errorf("rotate: the leader's answer: %w", err)
	}
	return n.keys.WaitRotated(ctx, id)
}

// Remove is Keyring.Remove on the leader. Until ctx ends it waits for a leader that is ready, and asks the
// next one when the leader changes: removing a key twice does no harm. It first waits for re-encryption,
// which may take hours; only the end of ctx, or 30 seconds without a leader, end that wait. When it returns
// nil, the key is removed on this server too.
func (n *Node) Remove(ctx context.Context, id keyring.KeyID, o keyring.RemoveOptions) error {
	here := func() (bool, error) { return false, n.keys.Remove(ctx, id, o) }
	there := request(pathRemove, callTimeout, removeRequest{keyring.Actor(ctx), id, o})
	isMoving := func(b []byte) (bool, error) { return len(b) > 0, nil }
	for {
		moving, err := onLeader(ctx, n, here, there, isMoving)
		if err != nil {
			return err
		}
		if err := n.keys.WaitRemoved(ctx, id); err != nil || !moving || !o.Now {
			return err
		}
	}
}

// Adopt is Keyring.Adopt on the leader. Until ctx ends it waits for a leader that is ready and answers, and
// then for the key material: if another server leads and ctx has no deadline, at most 10 minutes. The call
// may be repeated.
func (n *Node) Adopt(ctx context.Context, id keyring.KeyID) error {
	here := func() (struct{}, error) { return only(n.keys.Adopt(ctx, id)) }
	_, err := onLeader(ctx, n, here, request(pathAdopt, rotateTimeout, adoptRequest{keyring.Actor(ctx), id}), nothing)
	return err
}

// ConfirmBackup is Keyring.ConfirmBackup on the leader, for a server that stores a backup which the leader
// has made. Until ctx ends it waits for a leader that is ready and answers. If another server leads by then,
// the error matches keyring.ErrUnknownBackup.
func (n *Node) ConfirmBackup(ctx context.Context, sha256 [32]byte) error {
	here := func() (struct{}, error) { return only(n.keys.ConfirmBackup(ctx, sha256)) }
	there := request(pathConfirmBackup, memberTimeout, confirmRequest{keyring.Actor(ctx), sha256[:]})
	_, err := onLeader(ctx, n, here, there, nothing)
	return err
}

// Status is Keyring.Status of the leader, from any server, because only the leader knows some of it. Keys and
// NoBackup are as this server knows them. Until ctx ends it waits for a leader that answers. Keyring().Status
// is the status of this server.
func (n *Node) Status(ctx context.Context) (keyring.Status, error) {
	here := func() (keyring.Status, error) {
		if err := n.keys.Leading(); err != nil {
			return keyring.Status{}, err
		}
		return n.keys.Status(ctx)
	}
	return onLeader(ctx, n, here, forwarded{path: pathStatus, timeout: callTimeout}, n.keys.DecodeStatus)
}
