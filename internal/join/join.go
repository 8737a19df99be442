// Package join is the cryptography of join tokens: how their secret is stored in raft, and how a server that joins and
// the leader prove to each other that both have it, without sending it. It is pure but for the randomness of New and
// Seal. With lp(x) = the length of x as 4 bytes, big endian, followed by x:
//
// The token is the base64url, without padding, of
//
//	version 2 | token ID 16 | secret 32
//
// In raft the secret is sealed with AES-256-GCM, as nonce 12 | ciphertext 32 | tag 16, under a key that
// seals nothing else:
//
//	key = HKDF-SHA256(secret = root key, salt = none, info = "keyring v2 join" || key ID), 32 bytes
//	aad = lp("keyring v2 join token") || lp(cluster ID) || lp(token ID) || lp(server ID) || lp(end) || lp(key ID)
//
// where the end is RFC 3339 in UTC. The proof of each side, for one TLS connection, is
//
//	HKDF-SHA256(secret = the token's, salt = exporter, info), 32 bytes
//	info = lp("keyring v2 join leader" or "keyring v2 join joiner") || lp(cluster name) || lp(token ID) ||
//	       lp(leader's ID) || lp(joiner's ID) || lp(leader's public key) || lp(joiner's public key) || lp(address)
//
// The exporter is the tls-exporter channel binding of RFC 9266, public keys are the DER
// SubjectPublicKeyInfo of the certificates on the connection, and the address is where the joiner
// listens. So a proof is of no use on another connection, or between other servers.
package join

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const (
	version   = 2
	tokenSize = 1 + 16 + 32
)

// ErrOpen says that a sealed secret was altered, or is another token's. It never says which.
var ErrOpen = errors.New("the token's secret does not open")

// ErrRefused means that a server may not join with its token. What else the error says is for the leader's log: the server
// must learn no more than that it is no member. What is wrong with a token in the ring is in plan.JoinRefusal, and what
// must also hold when raft applies its use in package meta.
var ErrRefused = errors.New("the server may not join")

// Token is a join token, which the operator gives to the server that joins. It prints without its secret.
type Token struct {
	ID     [16]byte
	secret [32]byte
}

// New draws a token.
func New() Token {
	var t Token
	rand.Read(t.ID[:]) // never fails
	rand.Read(t.secret[:])
	return t
}

// Parse reads the text of a token.
func Parse(text string) (Token, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	defer clear(b)
	switch {
	case err == nil && len(b) > 0 && b[0] == 1:
		return Token{}, errors.New("join token from an older build: make a new one")
	case err != nil || len(b) != tokenSize || b[0] != version || len(text) != base64.RawURLEncoding.EncodedLen(tokenSize):
		return Token{}, errors.New("join token: malformed, or not copied completely")
	}
	return Token{ID: [16]byte(b[1:17]), secret: [32]byte(b[17:])}, nil
}

// Text returns what Parse reads. The secret is in it.
func (t Token) Text() string {
	b := append(append([]byte{version}, t.ID[:]...), t.secret[:]...)
	defer clear(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// Wipe overwrites the secret.
func (t *Token) Wipe() { clear(t.secret[:]) }

// Format implements fmt.Formatter, for every verb, without the secret.
func (t Token) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "join token %x (redacted)", t.ID[:]) }

// MarshalJSON leaves the secret out.
func (t Token) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%q", fmt.Sprint(t)), nil }

// Record is what raft stores about a token besides its sealed secret.
type Record struct {
	Cluster [16]byte
	Server  string
	End     time.Time
	Key     [16]byte // the root key's ID
}

func (r Record) aad(id [16]byte) []byte {
	end := r.End.UTC().AppendFormat(nil, time.RFC3339Nano)
	return fields([]byte("keyring v2 join token"), r.Cluster[:], id[:], []byte(r.Server), end, r.Key[:])
}

// Seal seals the token's secret under the root key that the record names.
func (t Token) Seal(root []byte, r Record) ([]byte, error) {
	c, err := r.cipher(root)
	if err != nil {
		return nil, err
	}
	return c.Seal(nil, nil, t.secret[:], r.aad(t.ID)), nil
}

// Open is the reverse of Seal.
func Open(root []byte, id [16]byte, r Record, sealed []byte) (Token, error) {
	c, err := r.cipher(root)
	if err != nil {
		return Token{}, err
	}
	b, err := c.Open(nil, nil, sealed, r.aad(id))
	defer clear(b)
	if err != nil || len(b) != 32 {
		return Token{}, ErrOpen
	}
	return Token{ID: id, secret: [32]byte(b)}, nil
}

// cipher returns the AEAD for the secret, which draws its nonces.
func (r Record) cipher(root []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, root, nil, "keyring v2 join"+string(r.Key[:]), 32)
	defer clear(key)
	if err != nil {
		return nil, fmt.Errorf("join token: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("join token: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// Meeting is one TLS connection between a server that joins and the leader, as both ends know it.
type Meeting struct {
	Exporter             []byte // tls-exporter of the connection, 32 bytes
	Cluster              string // the name of the cluster in the certificates
	Leader, Joiner       string // the server IDs in the certificates
	LeaderKey, JoinerKey []byte // the public keys of the certificates, in DER
	Addr                 string // where the joiner listens
}

// LeaderProof is what the leader sends.
func (m Meeting) LeaderProof(t Token) ([]byte, error) { return m.proof("keyring v2 join leader", t) }

// JoinerProof is what the server that joins sends.
func (m Meeting) JoinerProof(t Token) ([]byte, error) { return m.proof("keyring v2 join joiner", t) }

// CheckLeader is an error unless a proof is the leader's for this token, on this connection.
func (m Meeting) CheckLeader(t Token, proof []byte) error {
	want, err := m.LeaderProof(t)
	if err == nil && !proven(proof, want) {
		err = fmt.Errorf("join: server %q does not prove that it belongs to the cluster that has made the join token", m.Leader)
	}
	return err
}

// CheckJoiner is an error unless a proof is the joiner's for this token, on this connection.
func (m Meeting) CheckJoiner(t Token, proof []byte) error {
	want, err := m.JoinerProof(t)
	if err == nil && !proven(proof, want) {
		err = fmt.Errorf("join token %x: the server does not prove that it has the token", t.ID[:])
	}
	return err
}

// proven reports whether a proof is the expected one.
func proven(got, want []byte) bool { return len(want) == sha256.Size && hmac.Equal(got, want) }

func (m Meeting) proof(label string, t Token) ([]byte, error) {
	if len(m.Exporter) != 32 || len(m.LeaderKey) == 0 || len(m.JoinerKey) == 0 {
		return nil, errors.New("join token: JoinConn is incomplete")
	}
	info := fields([]byte(label), []byte(m.Cluster), t.ID[:], []byte(m.Leader), []byte(m.Joiner), m.LeaderKey, m.JoinerKey, []byte(m.Addr))
	b, err := hkdf.Key(sha256.New, t.secret[:], m.Exporter, string(info), sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("join token: %w", err)
	}
	return b, nil
}

// fields is lp of each, one after the other.
func fields(all ...[]byte) []byte {
	var out []byte
	for _, f := range all {
		out = binary.BigEndian.AppendUint32(out, uint32(len(f)))
		out = append(out, f...)
	}
	return out
}
