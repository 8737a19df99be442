package backup

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"sync/atomic"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// Signer is the public key that a backup is signed with.
type Signer [ed25519.PublicKeySize]byte

// String returns hexadecimal.
func (s Signer) String() string { return hex.EncodeToString(s[:]) }

// SignerOf returns the signer of the backups that are made while a key is the active one.
func SignerOf(id meta.KeyID, secret *nks.Material) (s Signer, err error) {
	err = withSigner(id, secret, func(private ed25519.PrivateKey) { s = Signer(private.Public().(ed25519.PublicKey)) })
	return s, err
}

// SignerCache has the signer that was asked for last. The zero value has none.
type SignerCache struct{ last atomic.Pointer[knownSigner] }

type knownSigner struct {
	id     meta.KeyID
	check  meta.CheckValue
	signer Signer
}

// Of returns the signer of the backups that are made while a key is active. material returns a copy of what is here under
// an ID, which Of wipes. The signer is zero if the key is not here.
func (c *SignerCache) Of(key *meta.Key, material func(meta.KeyID) (Material, bool)) (Signer, error) {
	if known := c.last.Load(); known != nil && known.id == key.ID && known.check == key.Check {
		return known.signer, nil
	}
	m, ok := material(key.ID)
	defer m.Secret.Wipe()
	if !ok || m.Check != key.Check {
		return Signer{}, nil
	}
	signer, err := SignerOf(key.ID, m.Secret)
	if err != nil {
		return Signer{}, err
	}
	c.last.Store(&knownSigner{key.ID, key.Check, signer})
	return signer, nil
}

// sign returns the signature of an archive with that SHA-256.
func sign(id meta.KeyID, secret *nks.Material, sum [32]byte) (signature []byte, err error) {
	err = withSigner(id, secret, func(private ed25519.PrivateKey) { signature = ed25519.Sign(private, signedText(sum)) })
	return signature, err
}

// withSigner calls use with the private key of a signer, and overwrites it then.
func withSigner(id meta.KeyID, secret *nks.Material, use func(ed25519.PrivateKey)) error {
	seed, err := hkdf.Key(sha256.New, secret.Root()[:], nil, "keyring v2 backup"+string(id[:]), ed25519.SeedSize)
	if err != nil {
		return err
	}
	defer clear(seed)
	private := ed25519.NewKeyFromSeed(seed)
	defer clear(private)
	use(private)
	return nil
}

func signedText(sum [32]byte) []byte { return append([]byte(Format), sum[:]...) }

// verifies reports whether s has signed an archive with that SHA-256.
func (s Signer) verifies(sum [32]byte, signature []byte) bool {
	return ed25519.Verify(s[:], signedText(sum), signature)
}
