package keyring

// KEK, and those that come with the library. docs/keks.md has a table of them.

import (
	"context"
	"errors"

	"example.com/keyring/internal/kek"
	"filippo.io/age"
)

// KEK wraps key material on one server. Implementations must be safe for concurrent use.
type KEK interface {
	// ID names the KEK in the key files: 1 to 128 printable ASCII characters. It is no secret. The same KEK
	// has the same ID at every start, and another KEK has another ID. Where that is impossible, as with two
	// passphrases, only one of the KEKs with the same ID may be in Config.KEKs; the others go to
	// Config.OldKEKs.
	ID() string
	// Wrap encrypts plaintext and binds it to aad. An error that matches ErrKEKRefused says that the KEK
	// answers but refuses; one that matches ErrKEKThrottled says that it is asked too often. Any other error
	// means that the KEK could not be reached.
	Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error)
	// Unwrap reverses Wrap. An error that matches ErrDecrypt says that this KEK did not wrap these bytes for
	// that aad; one that matches ErrWrapOnly says that it never unwraps. Other errors are as for Wrap. After
	// any error the key file stays unchanged and is retried: it may be the last copy. Wrap and Unwrap must
	// return soon after ctx has ended, and within 10 seconds.
	//
	// The keyring tests each KEK with a few bytes at Open and every 10 minutes. A KEK that fails is asked
	// only once in up to 30 seconds, for all its key files together, until it works again. An old KEK, which
	// may no longer wrap, only has to unwrap something that it wrapped earlier.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

// VersionedKEK is a KEK whose key has versions, as in most key management services. Status.OnOldKEKs counts
// the files under another version than that of the last Wrap, and Rewrap moves them. Then the old version can
// be disabled or destroyed. Wrap is called at Open, every 10 minutes, and by Rewrap, so a new version is
// noticed soon.
type VersionedKEK interface {
	KEK
	// Version returns the version of the key with which Wrap made wrapped. It must be determined from wrapped
	// alone, without asking the service, because wrapped is read from key files. It is 1 to 128 printable
	// ASCII characters. Empty means unknown; such a file counts as current.
	Version(wrapped []byte) string
}

// InlineKEK wraps each key under a random KEK that is stored in the same file. It protects the keys from
// those who get only a raft backup, not from anyone who can read the file. Status reports that. Files wrapped
// this way open only on servers that are configured with InlineKEK.
func InlineKEK() KEK { return kek.Inline() }

// FileKEK wraps keys under a 32-byte key from a file: one outside the data directory, on a medium that does
// not travel with it, or a systemd credential. The file contains 32 raw bytes, or their base64 or hexadecimal
// text with at most one newline at the end. The ID of the KEK is derived from the key. So a renamed file is
// the same KEK, and another key is another KEK.
//
// FileKEK rejects likely mistakes: 32 characters of text instead of raw bytes, 32 hexadecimal digits (half a
// key), and 32 zero bytes. It rejects at once everything but a regular file or a symlink to one. A file that
// everybody can read, or that others than its owner can write, is a Problem in Status. So is one that is gone
// later, or has another key: the KEK in use stays the same, but a start needs the file as it was.
func FileKEK(path string) (KEK, error) { return kek.File(path) }

// Argon2id are the parameters of PassphraseKEK. A zero field has the value of the default, the second choice
// of RFC 9106: {3, 64 << 10, 4}. The first choice, for servers with 2 GiB to spare, is {1, 2 << 20, 4}.
type Argon2id struct {
	Time    uint32 // passes over the memory; zero is 3
	Memory  uint32 // in KiB; zero is 65536, which is 64 MiB
	Threads uint8  // 1 to 16; zero is 4
}

// PassphraseKEK wraps keys under a key that argon2id derives from a passphrase. with is at most one set of
// parameters. The product of its Time and Memory must be at least that of the default, 196608, and at most
// 4194304, since a KEK has to answer within 10 seconds.
//
// Each key file contains the parameters and the salt. A file with other parameters opens if they cost no less
// than the default and no more than RFC 9106's first choice or the present parameters. Status.OnOldKEKs
// counts it, and Rewrap moves it.
//
// The files of a keystore share one salt, so a start needs only one derivation, which takes about as long as
// hashing a password. Files with other salts that do not open delay a start by a few seconds at most; the
// remaining ones are tried within minutes. A derivation that has begun runs to its end, even if nobody waits
// for it any longer.
//
// The ID is always "passphrase", because a hash of the passphrase in the ID would help an attacker to guess
// it. To change the passphrase, put the new KEK in Config.KEKs and the old one in Config.OldKEKs, and call
// Rewrap.
//
// An empty passphrase is an error. So is any passphrase under GODEBUG=fips140=only, since argon2 is not
// approved. The bytes are copied.
func PassphraseKEK(passphrase []byte, with ...Argon2id) (KEK, error) {
	switch len(with) {
	case 0:
		return kek.Passphrase(passphrase, kek.Argon2id{})
	case 1:
		return kek.Passphrase(passphrase, kek.Argon2id(with[0]))
	}
	return nil, errors.New("KEK: more than one set of argon2id parameters")
}

// AgeKEK wraps keys to age recipients (c2sp.org/age). Without identities it is escrow: it wraps and never
// unwraps, so you can keep the identities offline, in a safe. When the other KEKs are lost, put an AgeKEK
// with one of the identities in Config.OldKEKs, a new KEK and the escrow in Config.KEKs, and call Rewrap.
//
// Anyone who knows the recipients can make a file that it opens. So a key that the keyring does not know, and
// that only such KEKs open, is adopted only by Adopt, and not rewrapped before; Status reports it.
//
// The ID is derived from the recipients, in any order, so use the same recipients with and without
// identities. They must have a String method, like age's own key pairs. Passphrase recipients are rejected:
// use PassphraseKEK. AgeKEK wraps a test value to the recipients and returns the error if that fails: age
// does not mix post-quantum and classic recipients, and a plugin may not be installed. A plugin that hangs
// delays AgeKEK, and each call that wraps, by 10 seconds; its process goes on. Under GODEBUG=fips140=only
// AgeKEK is an error, since X25519 and ChaCha20-Poly1305 are not approved.
func AgeKEK(to []age.Recipient, with ...age.Identity) (KEK, error) { return kek.Age(to, with...) }
