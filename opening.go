package keyring

// Decrypt, and the table in which it finds its key.

import (
	"fmt"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/seal"
)

// AppendDecrypt is Decrypt with the plaintext appended to dst, which must not overlap
// ciphertext or aad: that is ErrOverlap. With room for the plaintext it allocates nothing.
// After an error nothing of dst is returned, and what it wrote is overwritten.
func (k *Keyring) AppendDecrypt(dst, ciphertext, aad []byte) ([]byte, error) {
	t := k.opening.Load()
	if t == nil {
		return nil, ErrClosed
	}
	id, ok := seal.KeyID(ciphertext)
	if !ok {
		return nil, ErrDecrypt
	}
	key := t.Find((*KeyID)(&id))
	if key == nil {
		var err error
		if key, err = k.lookUpOpening(id); err != nil {
			return nil, err
		}
		t.Keep((*KeyID)(&id), key)
	}
	out, err := key.Open(dst, ciphertext, aad)
	if err == seal.ErrClosed { // removed, or closed, in this moment
		if _, why := k.lookUpOpening(id); why != nil {
			return nil, why
		}
		return nil, k.missing(id)
	}
	return out, err
}

// lookUpOpening finds a key that opens data, or says why there is none.
func (k *Keyring) lookUpOpening(id KeyID) (*seal.Key, error) {
	if err := k.gate.Err(); err != nil {
		return nil, err
	}
	key, err := k.knownKey(id)
	if err != nil {
		return nil, err
	}
	if isEmpty(key) {
		return nil, fmt.Errorf("%w %s: it is deprecated, and nothing is sealed under it any more", ErrUnknownKey, id)
	}
	return k.sealer(key)
}

// isEmpty reports whether a scan has found that nothing is sealed under the key. What still comes is forged,
// if the key was stolen, or a copy from elsewhere. Of what there is under a key that was adopted, Data may
// not know.
func isEmpty(key *meta.Key) bool { return key.State == StateDeprecated && !key.Adopted() }

// DecryptDeprecated is Decrypt that opens also what is sealed under a deprecated key: a copy in a backup of
// the host's or in an export, or a record that was stored past FSM.Admit after the last scan. If the key
// may have been stolen, a thief may have made what it opens: that proves nothing about where it
// comes from. Once the key is removed it is ErrUnknownKey.
func (k *Keyring) DecryptDeprecated(ciphertext, aad []byte) ([]byte, error) {
	id, ok := seal.KeyID(ciphertext)
	if !ok || k.gate.Err() != nil {
		return k.Decrypt(ciphertext, aad)
	}
	key := k.fsm.ring.Load().Key(id)
	if key == nil || !isEmpty(key) {
		return k.Decrypt(ciphertext, aad)
	}
	opener, err := k.sealer(key)
	if err != nil {
		return nil, err
	}
	out, err := opener.Open(nil, ciphertext, aad)
	if err == seal.ErrClosed { // removed, or closed, in this moment
		return nil, k.missing(id)
	}
	return out, err
}

// knownKey returns the ring's key of that ID. If it has none the error is ErrUnknownKey, or ErrNotReady
// while this server may be behind.
func (k *Keyring) knownKey(id KeyID) (*meta.Key, error) {
	behind := k.caughtUp.behind() // before the ring is read
	ring := k.fsm.ring.Load()
	key := ring.Key(id)
	switch {
	case key != nil:
		return key, nil
	case behind != nil && !ring.WasRemoved(id):
		return nil, fmt.Errorf("key %s: %w", id, behind)
	}
	return nil, fmt.Errorf("%w %s", ErrUnknownKey, id)
}

// refresh brings the table of AppendDecrypt up to date. Once this server has caught up, keys that were removed are
// overwritten, and a file that is not the ring's key is set aside; until then they are left out of the
// table. Only Open and the replicator call it.
func (k *Keyring) refresh(v view) {
	if v.caughtUp {
		k.store.Follow(v.ring)
	}
	k.opening.Store(k.store.Table(v.ring, isEmpty))
}
