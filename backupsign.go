package keyring

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// BackupSigner is the Ed25519 public key with which a backup is signed. It follows from the material of the
// key that is active when the backup is made, so it changes with each rotation, and only servers of the
// cluster can sign. Whoever was a server once can go on signing with the keys of its day: after a theft
// note the one that the next rotation brings. It is no secret. Its text is 64 hexadecimal digits; zero is
// none.
type BackupSigner [ed25519.PublicKeySize]byte

// String returns the text.
func (b BackupSigner) String() string { return hex.EncodeToString(b[:]) }

// MarshalText returns the text.
func (b BackupSigner) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads the text.
func (b *BackupSigner) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(b) {
		return fmt.Errorf("signer of a backup: want %d hexadecimal digits", hex.EncodedLen(len(b)))
	}
	*b = BackupSigner(raw)
	return nil
}

// The private key of a signer is that of Ed25519 (RFC 8032) whose seed is
//
//	HKDF-SHA256(secret = root key, salt = none, info = "keyring v2 backup" || key ID), 32 bytes
//
// and what it signs is "keyring backup 2" and the SHA-256 of the archive, from its first byte to the last of
// the header of the file with the signature.
const signerInfo = "keyring v2 backup"

// withSigner calls use with the private key that signs backups while the key of that ID is active, and
// overwrites it.
func withSigner(id KeyID, secret *nks.Material, use func(ed25519.PrivateKey)) error {
	seed, err := hkdf.Key(sha256.New, secret.Root()[:], nil, signerInfo+string(id[:]), ed25519.SeedSize)
	if err != nil {
		return err
	}
	defer clear(seed)
	private := ed25519.NewKeyFromSeed(seed)
	defer clear(private)
	use(private)
	return nil
}

// signerOfBackups returns the public key of withSigner's.
func signerOfBackups(id KeyID, secret *nks.Material) (b BackupSigner, err error) {
	err = withSigner(id, secret, func(private ed25519.PrivateKey) { b = BackupSigner(private.Public().(ed25519.PublicKey)) })
	return b, err
}

// signBackup returns the signature of an archive with that SHA-256.
func signBackup(id KeyID, secret *nks.Material, sum [32]byte) (signature []byte, err error) {
	err = withSigner(id, secret, func(private ed25519.PrivateKey) { signature = ed25519.Sign(private, signedText(sum)) })
	return signature, err
}

func signedText(sum [32]byte) []byte { return append([]byte(BackupFormat), sum[:]...) }

// signs reports whether the signature is b's.
func (b BackupSigner) signs(sum [32]byte, signature []byte) bool {
	return ed25519.Verify(b[:], signedText(sum), signature)
}

// backupSigner is the signer of the backups of now, or zero if the active key is not held here. It is computed
// once for each key.
func (s *keystore) backupSigner(active *meta.Key) BackupSigner {
	if active == nil {
		return BackupSigner{}
	}
	m := s.get(active.ID)
	if m == nil || m.check != active.Check {
		return BackupSigner{}
	}
	if known := m.backups.Load(); known != nil {
		return *known
	}
	a, ok := s.copy(active.ID)
	if !ok || a.check != active.Check { // it was dropped meanwhile
		return BackupSigner{}
	}
	defer a.secret.Wipe()
	b, err := signerOfBackups(active.ID, a.secret)
	if err != nil {
		s.log.Error("signer of backups", "key", active.ID, "error", err)
		return BackupSigner{}
	}
	m.backups.Store(&b)
	return b
}

// archiveSum is a writer that computes the SHA-256 of the archive of a backup up to the moment when sum is
// called first. What comes later is not in it. sum has to be called.
type archiveSum struct {
	d    *digester
	over bool
	sum  func() [32]byte
}

func newArchiveSum() *archiveSum {
	a := &archiveSum{d: newDigester()}
	a.sum = sync.OnceValue(func() [32]byte {
		a.over = true
		return a.d.sum()
	})
	return a
}

// Write never fails.
func (a *archiveSum) Write(b []byte) (int, error) {
	if a.over {
		return len(b), nil
	}
	return a.d.Write(b)
}
