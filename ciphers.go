package keyring

// Encrypt, Decrypt, EncryptTo, and what they and Sign use: the active key, and the table of keys that decrypt.

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"example.com/keyring/internal/jwt"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
	"example.com/keyring/internal/seal"
	"github.com/hashicorp/raft"
)

// Encrypt encrypts plaintext under the active key and binds it to aad; both may be empty or nil. Leader only:
// elsewhere the error matches ErrNotLeader. The error is ErrNotReady on a new leader, before the first key
// exists, and after raft has restored a snapshot until a majority of the voters has confirmed that it holds
// the active key. It does no I/O.
func (k *Keyring) Encrypt(plaintext, aad []byte) ([]byte, error) {
	if uint64(len(plaintext)) > seal.MaxPlaintext { // before it allocates as much memory again
		return nil, ErrTooLong
	}
	return k.AppendEncrypt(make([]byte, 0, len(plaintext)+Overhead), plaintext, aad)
}

// Decrypt decrypts a ciphertext of Encrypt with the same aad, on any server that holds the key. It does no
// I/O. The errors:
//
//   - ErrDecrypt: the bytes are not such a ciphertext.
//   - ErrKeyMissing: the material of the key has not reached this server yet.
//   - ErrUnknownKey: the keyring does not have the key; or the key is deprecated and was not adopted, so no
//     data is encrypted under it. A record that was read before it was re-encrypted has to be read again; for
//     copies elsewhere use DecryptDeprecated.
//   - ErrNotReady: this server does not know the key, and has not caught up since its start, or has heard
//     from no leader for ten seconds.
//
// Never call it in the Apply of a raft FSM, because the result depends on the server. A server that has not
// yet fetched the key gets ErrKeyMissing where the others get the plaintext, and then its state differs from
// theirs. Keep the ciphertext in the FSM, and decrypt it when it is read. If Apply itself must know a part of
// the plaintext, such as a name for look-ups, put that into the command before you propose it: in the clear,
// or as a keyed hash.
func (k *Keyring) Decrypt(ciphertext, aad []byte) ([]byte, error) {
	return k.AppendDecrypt(make([]byte, 0, max(0, len(ciphertext)-Overhead)), ciphertext, aad)
}

// Overhead is the number of bytes by which a ciphertext is longer than its plaintext.
const Overhead = 57

// AppendEncrypt is Encrypt, but appends the ciphertext to dst. The error is ErrOverlap if dst overlaps
// plaintext or aad. It allocates nothing if dst has room for the plaintext and Overhead bytes. Leader only.
func (k *Keyring) AppendEncrypt(dst, plaintext, aad []byte) ([]byte, error) {
	s, err := k.ciphers.active()
	if err != nil {
		return nil, err
	}
	out, err := s.key.Seal(dst, plaintext, aad)
	if err == seal.ErrClosed { // closed, or the key was dropped, in this moment
		if _, why := k.ciphers.lookUpSealing(); why != nil {
			return nil, why
		}
		return nil, ErrNotReady
	}
	return out, err
}

// EncryptTo is Encrypt for data that is stored through raft behind FSM.Admit. It passes the ciphertext to
// store, which proposes it to raft. If the error of store matches ErrStaleKey, because the key was rotated
// meanwhile, EncryptTo encrypts and calls store again. It returns any other error unchanged. For a record
// with several ciphertexts, encrypt the others inside store. Leader only.
func (k *Keyring) EncryptTo(ctx context.Context, plaintext, aad []byte, store func(ctx context.Context, ciphertext []byte) error) error {
	for try := 0; ; try++ {
		ciphertext, err := k.Encrypt(plaintext, aad)
		if err != nil {
			return err
		}
		if err = store(ctx, ciphertext); !errors.Is(err, ErrStaleKey) {
			return err
		}
		if try > 0 { // the first retry follows a rotation; more are unexpected
			local.Sleep(ctx, mono.Now().Add(plan.Backoff(try, rand.Float64())))
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// ciphers is what Encrypt, Decrypt and Sign use: the active key, and the keys that decrypt. Both are replaced
// as a whole.
type ciphers struct {
	*server
	caughtUp *local.CaughtUp
	leader   *lead.Leader

	sealing atomic.Pointer[sealing]
	opening atomic.Pointer[keystore.Table] // nil after Close
}

// forget is for Close.
func (c *ciphers) forget() {
	c.sealing.Store(nil)
	c.opening.Store(nil)
}

// sealing is the active key, which encrypts and signs. It is valid while the ring and the term are those in
// which it was looked up.
type sealing struct {
	ring *meta.Ring
	term uint64
	id   meta.KeyID
	key  *seal.Key

	check     meta.CheckValue // in the ring, as what follows
	algorithm string
	public    []byte
	proved    atomic.Bool // a token was verified with them
}

// active returns the key to seal and to sign with, on a leader that may.
func (c *ciphers) active() (*sealing, error) {
	s := c.sealing.Load()
	if s == nil || s.ring != c.FSM.Ring() || !c.Leads(s.term) {
		return c.lookUpSealing()
	}
	return s, nil
}

// lookUpSealing finds the active key, and keeps it while nothing changes.
func (c *ciphers) lookUpSealing() (*sealing, error) {
	if err := c.Gate.Err(); err != nil {
		return nil, err
	}
	if c.Raft.State() != raft.Leader {
		return nil, c.FSM.NotLeader(c.Raft)
	}
	// The term first: a ring that was read after it has at least what the barrier of that term had. With
	// an older one a new leader would seal under a key that was retired before its term.
	s := &sealing{term: c.Term.Load()}
	if c.cfg.onLookUp != nil {
		c.cfg.onLookUp()
	}
	s.ring = c.FSM.Ring()
	active := s.ring.Active()
	if !c.Leads(s.term) || active == nil {
		return nil, ErrNotReady
	}
	if c.leader.Unconfirmed(s.ring) {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, c.leader.WhyUnconfirmed())
	}
	s.id, s.check, s.algorithm, s.public = active.ID, active.Check, active.Algorithm, active.Public
	var err error
	if s.key, err = c.sealer(active); err != nil {
		return nil, err
	}
	c.sealing.Store(s)
	return s, nil
}

// missing is why there is no material of a key: Close may have come in between.
func (c *ciphers) missing(id meta.KeyID) error {
	if err := c.Gate.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: %s", ErrKeyMissing, id)
}

// sealer returns what seals and opens data under a key of the ring. The error matches ErrNotReady if only a
// newer build can use the key.
func (c *ciphers) sealer(key *meta.Key) (*seal.Key, error) {
	if why := key.Newer(); why != "" {
		return nil, fmt.Errorf("%w: key %s: %s", ErrNotReady, key.ID, why)
	}
	s, err := c.Store.Sealer(key.ID, key.Check)
	if errors.Is(err, keystore.ErrNotHere) {
		return nil, c.missing(key.ID)
	}
	return s, err
}

// AppendDecrypt is Decrypt, but appends the plaintext to dst. The error is ErrOverlap if dst overlaps
// ciphertext or aad. It allocates nothing if dst has room for the plaintext. After an error it returns
// nothing of dst, and has overwritten the bytes that it wrote there. Never call it in Apply: see Decrypt.
func (k *Keyring) AppendDecrypt(dst, ciphertext, aad []byte) ([]byte, error) {
	t := k.ciphers.opening.Load()
	if t == nil {
		return nil, ErrClosed
	}
	id, ok := seal.KeyID(ciphertext)
	if !ok {
		return nil, ErrDecrypt
	}
	key := t.Find((*meta.KeyID)(&id))
	if key == nil {
		var err error
		if key, err = k.ciphers.lookUpOpening(id); err != nil {
			return nil, err
		}
		t.Keep((*meta.KeyID)(&id), key)
	}
	out, err := key.Open(dst, ciphertext, aad)
	if err == seal.ErrClosed { // removed, or closed, in this moment
		if _, why := k.ciphers.lookUpOpening(id); why != nil {
			return nil, why
		}
		return nil, k.ciphers.missing(id)
	}
	return out, err
}

// lookUpOpening finds a key that opens data, or says why there is none.
func (c *ciphers) lookUpOpening(id meta.KeyID) (*seal.Key, error) {
	if err := c.Gate.Err(); err != nil {
		return nil, err
	}
	key, err := c.knownKey(id)
	if err != nil {
		return nil, err
	}
	if key.IsEmpty() {
		return nil, fmt.Errorf("%w %s: it is deprecated, and no data is encrypted under it any longer", ErrUnknownKey, id)
	}
	return c.sealer(key)
}

// DecryptDeprecated is Decrypt that also uses deprecated keys. It is for copies in the host's own backups or
// exports, and for a record that was stored past FSM.Admit after the last scan. If the key may have been
// stolen, the thief may have made the ciphertext: decryption then proves nothing about its origin. Once the
// key is removed the error is ErrUnknownKey. Never call it in Apply: see Decrypt.
func (k *Keyring) DecryptDeprecated(ciphertext, aad []byte) ([]byte, error) {
	id, ok := seal.KeyID(ciphertext)
	if !ok || k.server.Gate.Err() != nil {
		return k.Decrypt(ciphertext, aad)
	}
	key := k.server.FSM.Ring().Key(id)
	if key == nil || !key.IsEmpty() {
		return k.Decrypt(ciphertext, aad)
	}
	opener, err := k.ciphers.sealer(key)
	if err != nil {
		return nil, err
	}
	out, err := opener.Open(nil, ciphertext, aad)
	if err == seal.ErrClosed { // removed, or closed, in this moment
		return nil, k.ciphers.missing(id)
	}
	return out, err
}

// knownKey returns the ring's key of that ID. If it has none the error is ErrUnknownKey, or ErrNotReady
// while this server may be behind.
func (c *ciphers) knownKey(id meta.KeyID) (*meta.Key, error) {
	behind := c.caughtUp.Behind() // before the ring is read
	ring := c.FSM.Ring()
	key := ring.Key(id)
	switch {
	case key != nil:
		return key, nil
	case behind != nil && !ring.WasRemoved(id):
		return nil, fmt.Errorf("key %s: %w", id, behind)
	}
	return nil, fmt.Errorf("%w %s", ErrUnknownKey, id)
}

// refresh brings the table of AppendDecrypt up to date. Once this server has caught up, keys that were
// removed are overwritten, and a file that is not the ring's key is set aside; until then they are left out
// of the table. Only Open and the replicator call it.
func (c *ciphers) refresh(v local.View) {
	if v.CaughtUp {
		c.Store.Follow(v.Ring)
	}
	c.opening.Store(c.Store.Table(v.Ring, func(key *meta.Key) bool { return key.IsEmpty() || key.Newer() != "" }))
}

// proves verifies the first signature with the ring's public key: others can verify with nothing else.
func (s *sealing) proves(token, typ string) error {
	if s.proved.Load() {
		return nil
	}
	key, err := jwt.NewKey(s.id.String(), s.algorithm, s.public)
	if err == nil {
		_, _, err = jwt.Open(token, only{key, s.id}, typ)
	}
	if err != nil {
		return fmt.Errorf("sign: %w: the public key of %s in raft does not fit its material: %w", ErrCorrupt, s.id, err)
	}
	s.proved.Store(true)
	return nil
}

// only is a set of one key.
type only struct {
	key *jwt.Key
	id  meta.KeyID
}

// WithHeader implements jwt.Keys.
func (o only) WithHeader(encoded string) *jwt.Key {
	if encoded != o.key.Header() {
		return nil
	}
	return o.key
}

// WithID implements jwt.Keys.
func (o only) WithID(kid string) (*jwt.Key, error) {
	if kid != o.id.String() {
		return nil, jwt.ErrUnknownKey
	}
	return o.key, nil
}
