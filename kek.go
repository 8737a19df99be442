package keyring

// KEK, and those that come with the library. docs/keks.md has a table of them.

import (
	"context"
	"errors"

	"example.com/keyring/internal/kek"
	"filippo.io/age"
)

// KEK wraps key material on one server. Implementations are safe for concurrent use.
type KEK interface {
	// ID names the KEK in the key files: 1 to 128 printable ASCII characters. It is the
	// same for the same KEK at every start, and no secret. Another KEK has another ID;
	// where that can't be, as with two passphrases, one may be in Config.KEKs and the
	// others in Config.OldKEKs.
	ID() string
	// Wrap encrypts plaintext and binds it to aad. An error that matches ErrKEKRefused says that the KEK answers
	// and does not do it, one that matches ErrKEKThrottled that it is asked too often. Any other means that the
	// KEK could not be reached.
	Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error)
	// Unwrap reverses Wrap. An error that matches ErrDecrypt says that the bytes are
	// not what this KEK wrapped for that aad, one that matches ErrWrapOnly that it never
	// unwraps. Any other is as of Wrap. In no case is the file
	// touched: it may be the way back, and it is tried again. Both calls return soon
	// after ctx has ended, 10 seconds after they began at the latest.
	//
	// A KEK is asked to wrap and unwrap a few bytes at Open, and every 10 minutes. One that fails is asked once in
	// up to 30 seconds, for all its key files together, until it does. An old one, which may not wrap any more, is asked
	// to unwrap something that it has wrapped.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

// VersionedKEK is a KEK whose key has versions, as those of most key management services. Status.OnOldKEKs counts
// the files under another version than the one that it has wrapped under last, and Rewrap moves them: then the old version
// can be disabled or destroyed. It is asked to wrap at Open, every 10 minutes, and by Rewrap, so a new version is found soon.
type VersionedKEK interface {
	KEK
	// Version returns the version of the key under which Wrap has wrapped something, from what Wrap has
	// returned alone, which lies in the key files. It asks nobody. It is 1 to 128 printable ASCII characters; empty
	// means that it can't tell, and such a file counts as current.
	Version(wrapped []byte) string
}

// InlineKEK wraps each key under a random KEK that lies in the file beside what it wraps. It
// protects the keys from those who get a raft backup, and from nobody who can read the file.
// Status says so. Files wrapped this way open only on servers that are configured with it.
func InlineKEK() KEK { return kek.Inline() }

// FileKEK wraps keys under a 32-byte key in a file of its own: outside the data directory,
// on a medium that does not travel with it, or a systemd credential. The file holds 32 raw
// bytes, or their base64 or hexadecimal text with at most one newline at its end. Its ID is
// derived from the key, so a file renamed is the same KEK, and another key another KEK.
//
// What looks like a mistake is refused: 32 characters of text in place of raw bytes, 32 hexadecimal digits, which are half a
// key, and 32 bytes of zero. So is at once what is no regular file, but for a symlink to one. A file that everybody may read,
// or others than its owner may write, is a Problem in Status.
func FileKEK(path string) (KEK, error) { return kek.File(path) }

// Argon2id is the parameters of PassphraseKEK. What is zero is that of the second choice of RFC 9106, which is the default:
// {3, 64 << 10, 4}. The first choice, for servers with 2 GiB to spare, is {1, 2 << 20, 4}.
type Argon2id struct {
	Time    uint32 // how often argon2id passes over the memory; zero is 3
	Memory  uint32 // in KiB; zero is 65536, which are 64 MiB
	Threads uint8  // that work at a time, 1 to 16; zero is 4
}

// PassphraseKEK wraps keys under a key that argon2id derives from a passphrase. with is at most one set of parameters. What
// they cost is Time times Memory: not less than the default, which is 196608, and at most 4194304, since a KEK has to
// answer within 10 seconds.
//
// The parameters and the salt are in each key file. A file with other parameters opens, if they cost no
// less than the default and no more than RFC 9106's first choice or those of now; Status.OnOldKEKs counts it, and Rewrap moves
// it. The files of a keystore share one salt, so that a start derives once, which takes about as long as it takes to hash a
// password. Files with other salts that do not open cost a start a few seconds at most: when so much was wasted, those that are
// left are tried within minutes. A derivation that has begun goes on to its end, even if nobody waits for it any more.
//
// Its ID is "passphrase", whichever it is: a hash of it in the ID would be something to guess
// against beforehand. To change it, put the new one in Config.KEKs and the old one in
// Config.OldKEKs, and call Rewrap.
//
// An empty passphrase is an error, and so is any under GODEBUG=fips140=only, since argon2 is
// not approved. The bytes are copied.
func PassphraseKEK(passphrase []byte, with ...Argon2id) (KEK, error) {
	switch len(with) {
	case 0:
		return kek.Passphrase(passphrase, kek.Argon2id{})
	case 1:
		return kek.Passphrase(passphrase, kek.Argon2id(with[0]))
	}
	return nil, errors.New("KEK: more than one set of parameters of argon2id")
}

// AgeKEK wraps keys to age recipients (c2sp.org/age). Without identities it is escrow: it
// wraps and never unwraps, so the identities can lie offline, in a safe. With one of them it
// is the way back when the other KEKs are lost: put it in Config.OldKEKs, a new KEK in
// Config.KEKs, with escrow beside it as before, and call Rewrap.
//
// Anybody who knows the recipients can make a file that it opens. So a key that only such KEKs open, and that the
// keyring does not know, is adopted by Adopt alone, and not rewrapped before; Status says so.
//
// Its ID is derived from the recipients, in any order; so the way back is built with the same
// recipients. They must have a String method, as age's own key pairs do. Passphrase
// recipients are refused: PassphraseKEK is for that. AgeKEK wraps something to them once, and returns the error if that
// fails: age does not mix post-quantum and classic recipients, and a plugin may not be installed. A plugin that hangs is
// waited for 10 seconds, here and in each call that wraps; its process goes on. Under GODEBUG=fips140=only it is an error,
// since X25519 and ChaCha20-Poly1305 are not approved.
func AgeKEK(to []age.Recipient, with ...age.Identity) (KEK, error) { return kek.Age(to, with...) }
