package keyring

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// A join token is the base64url of
//
//	version 1 | key ID 16 | end 8 | MAC 32
//
// where the end is in seconds since 1970, big-endian, and the MAC is HMAC-SHA256 over version, key ID, end,
// cluster ID and the server's ID. Its key is
//
//	HKDF-SHA256(secret = root key, salt = none, info = "keyring v1 join" || key ID), 32 bytes
const (
	joinVersion = 1
	joinSize    = 1 + 16 + 8 + sha256.Size
)

// Bounds on how long a join token is good.
const (
	defaultJoinTTL = time.Hour
	MaxJoinTTL     = 24 * time.Hour
)

// JoinToken returns a token with which the server of that ID may join this cluster: it goes into
// NodeConfig.JoinToken there. It is good for ttl, zero means an hour, at most MaxJoinTTL; for that
// server alone, whose certificate names it; and no longer than until a full rotation, or until its key
// is revoked. It can't be taken back before: keep the time short. It may be called on any server that holds the active
// key; on another the error matches ErrKeyMissing.
func (n *Node) JoinToken(id raft.ServerID, ttl time.Duration) (string, error) {
	if ttl == 0 {
		ttl = defaultJoinTTL
	}
	if ttl < 0 || ttl > MaxJoinTTL || id == "" || len(id) > meta.MaxServerID {
		return "", fmt.Errorf("join token for server %q of %v: want an ID of at most %d bytes and at most %v",
			id, ttl, meta.MaxServerID, MaxJoinTTL)
	}
	if n.keys.isClosed() {
		return "", ErrClosed
	}
	active := n.keys.fsm.ring.Load().Active()
	if active == nil {
		return "", ErrNotReady
	}
	return n.keys.joinToken(active.ID, id, n.keys.now().Add(ttl))
}

func (k *Keyring) joinToken(key KeyID, id raft.ServerID, end time.Time) (string, error) {
	head := append([]byte{joinVersion}, key[:]...)
	head = binary.BigEndian.AppendUint64(head, uint64(end.Unix()))
	mac, err := k.joinMAC(head, key, id)
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(append(head, mac...)), nil
}

// errJoinToken is for the log: the server that asks learns only that it is no member.
var errJoinToken = errors.New("join token")

// checkJoinToken reports whether a token lets the server join now.
func (k *Keyring) checkJoinToken(token string, id raft.ServerID, at time.Time) error {
	if token == "" {
		return fmt.Errorf("no %w", errJoinToken)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) != joinSize || b[0] != joinVersion {
		return fmt.Errorf("%w: malformed", errJoinToken)
	}
	head, mac := b[:joinSize-sha256.Size], b[joinSize-sha256.Size:]
	key := KeyID(head[1:17])
	switch m := k.fsm.ring.Load().Key(key); {
	case m == nil:
		return fmt.Errorf("%w: made with key %s, which is not in the keyring", errJoinToken, key)
	case m.State != meta.StateActive && m.State != meta.StateInactive:
		return fmt.Errorf("%w: made with key %s, which is %s", errJoinToken, key, m.State)
	case m.DataOnly || m.Revoked: // as for tokens that it signs
		return fmt.Errorf("%w: made with key %s, which was adopted or revoked", errJoinToken, key)
	case m.State == meta.StateInactive && at.Sub(m.Retired) > MaxJoinTTL:
		return fmt.Errorf("%w: made with key %s, which was retired too long ago", errJoinToken, key)
	}
	want, err := k.joinMAC(head, key, id)
	if err != nil {
		return fmt.Errorf("%w: %w", errJoinToken, err)
	}
	if !hmac.Equal(mac, want) {
		return fmt.Errorf("%w: of another server, or forged", errJoinToken)
	}
	end := time.Unix(int64(binary.BigEndian.Uint64(head[17:])), 0)
	if !at.Before(end) || end.Sub(at) > MaxJoinTTL+k.cfg.Tokens.Leeway {
		return fmt.Errorf("%w: it ends at %v", errJoinToken, end.UTC().Format(time.DateTime))
	}
	return nil
}

func (k *Keyring) joinMAC(head []byte, key KeyID, id raft.ServerID) ([]byte, error) {
	m, ok := k.store.copy(key)
	if !ok {
		return nil, fmt.Errorf("%w %s", ErrKeyMissing, key)
	}
	defer m.secret.Wipe()
	secret, err := hkdf.Key(sha256.New, m.secret.Root()[:], nil, "keyring v1 join"+string(key[:]), sha256.Size)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	cluster := k.fsm.ring.Load().Cluster
	mac := hmac.New(sha256.New, secret)
	mac.Write(head)
	mac.Write(cluster[:])
	mac.Write([]byte(id))
	return mac.Sum(nil), nil
}
