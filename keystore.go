package keyring

// The KEKs of this server and the directory of its key files: KEK and the four that come with the library; what is done
// with the files: Rewrap, Adopt, OpenNomad, Inspect, RecoverKeys.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/simulated"
	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
)

// KEK wraps key material on one server. Implementations are safe for concurrent use.
type KEK interface {
	// ID names the KEK in the key files: 1 to 128 printable ASCII characters. It is the
	// same for the same KEK at every start, and no secret. Another KEK has another ID;
	// where that can't be, as with two passphrases, one may be in Config.KEKs and the
	// others in Config.OldKEKs.
	ID() string
	// Wrap encrypts plaintext and binds it to aad.
	Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error)
	// Unwrap reverses Wrap. An error that matches ErrDecrypt says that the bytes are
	// not what this KEK wrapped for that aad, one that matches ErrWrapOnly that it never
	// unwraps. Any other means that the KEK could not be reached. In no case is the file
	// touched: it may be the way back, and it is tried again. Both calls return soon
	// after ctx has ended, 10 seconds after they began at the latest.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

// InlineKEK wraps each key under a random KEK that lies in the file beside what it wraps. It
// protects the keys from those who get a raft backup, and from nobody who can read the file.
// Status says so. Files wrapped this way open only on servers that are configured with it.
func InlineKEK() KEK { return kek.Inline() }

// FileKEK wraps keys under a 32-byte key in a file of its own: outside the data directory,
// on a medium that does not travel with it, or a systemd credential. The file holds 32 raw
// bytes, or their base64 or hexadecimal text with at most one newline at its end. Its ID is
// derived from the key, so a file renamed is the same KEK, and another key another KEK.
func FileKEK(path string) (KEK, error) { return kek.File(path) }

// PassphraseKEK wraps keys under a key that argon2id derives from a passphrase, with the second
// set of parameters that RFC 9106 recommends: 3 passes over 64 MiB, 4 lanes. They and the salt
// are in each file, and what a file asks for is bounded: 3 to 16 passes, 64 to 512 MiB, 1 to
// 16 lanes, for at most 16 salts. The files of a keystore share one salt, so that a start derives
// once, which takes about as long as it takes to hash a password.
//
// Its ID is "passphrase", whichever it is: a hash of it in the ID would be something to guess
// against beforehand. To change it, put the new one in Config.KEKs and the old one in
// Config.OldKEKs, and call Rewrap.
//
// An empty passphrase is an error, and so is any under GODEBUG=fips140=only, since argon2 is
// not approved. The bytes are copied.
func PassphraseKEK(passphrase []byte) (KEK, error) { return kek.Passphrase(passphrase) }

// AgeKEK wraps keys to age recipients (c2sp.org/age). Without identities it is escrow: it
// wraps and never unwraps, so the identities can lie offline, in a safe. With one of them it
// is the way back when the other KEKs are lost: put it in Config.OldKEKs, a new KEK in
// Config.KEKs, with escrow beside it as before, and call Rewrap.
//
// Its ID is derived from the recipients, in any order; so the way back is built with the same
// recipients. They must have a String method, as age's own key pairs do. Passphrase
// recipients are refused: PassphraseKEK is for that. Under GODEBUG=fips140=only it is an error,
// since X25519 and ChaCha20-Poly1305 are not approved.
func AgeKEK(to []age.Recipient, with ...age.Identity) (KEK, error) { return kek.Age(to, with...) }

// openKeystore opens a keystore, and ends with ctx. If it ends while a KEK hangs, the directory is given back as soon
// as that comes back.
func openKeystore(ctx context.Context, fsys durable.FS, keks *kek.Set, log hclog.Logger) (*keystore.Store, error) {
	return gate.AwaitOr(ctx, func() (*keystore.Store, error) {
		return keystore.Open(ctx, fsys, keks, log)
	}, func(s *keystore.Store) { s.Close() })
}

// Rewrap wraps every key file of this server under exactly Config.KEKs, after they have
// changed. Each file is replaced whole, and only by one that has been opened before it is
// written. A crash at any point leaves each file as it was or rewrapped; Rewrap again goes on.
// While it runs, and after an error, OldKEKs stay needed: Status.OnOldKEKs counts the files
// that are left, and when it is zero they can go. The files of removed keys are rewrapped too, for
// as long as that can be undone. Files that no KEK opens, and those that were set aside because
// they were bad, are left as they are; the former are part of the error.
//
// It is about this server alone, leader or not. There is no need to be in a hurry: until it
// has been called, nothing but the old KEK's retirement is late.
func (k *Keyring) Rewrap(ctx context.Context) error {
	return k.do(ctx, func(ctx context.Context) error {
		defer k.server.FSM.Notify() // a key that could not be written is not held
		return k.server.Store.Rewrap(ctx)
	})
}

// Adopt takes a key into the keyring whose file lies in a keystore although the keyring does
// not know it, here or on another server: Status.Orphans names those of each server. It
// becomes an inactive key that opens data and whose tokens verify. For a key that the leader
// adopted of its own accord, when the keyring was empty, it admits the tokens, which such a
// key does not have: somebody who can plant a file must not be able to plant a signer. So be sure
// where the file comes from. Those tokens verify for TokenPolicy.MaxTTL and the leeway from then on, as those of
// every key that is adopted. That is a command of version 2 of the log: until every server says, asked now, that it
// applies those, the error names the servers that do not. Adopting a key again has no effect.
//
// Of a key that the leader has not, the tokens are admitted when it has got the material, from which it derives the
// public key: no other server is believed which one that is. Until then the key opens data, and Adopt waits. If ctx
// ends first the error matches ErrKeyMissing: call it again.
//
// Leader only. A key that no server has is ErrUnknownKey, and so is one that was removed. One whose public key in
// raft is not that of its material is ErrCorrupt.
func (k *Keyring) Adopt(ctx context.Context, id KeyID) error {
	a := &lead.Adopter{Server: k.server.Server, Clocks: k.clocks, Public: k.public}
	return k.do(ctx, func(ctx context.Context) error { return a.Adopt(ctx, id) })
}

// OpenNomad opens data that HashiCorp Nomad encrypted under a key of its own: AES-256-GCM under
// the root key, the 12-byte nonce first, the key ID as additional data. Nomad keeps the key ID
// beside the data, not in it. The key is one that was adopted; data under any other is
// ErrDecrypt, as is data that is not Nomad's. The other errors are those of Decrypt. On any
// server that holds the key.
func (k *Keyring) OpenNomad(id KeyID, data []byte) ([]byte, error) {
	if err := k.server.Gate.Err(); err != nil {
		return nil, err
	}
	key, err := k.ciphers.knownKey(id)
	if err != nil {
		return nil, err
	}
	if !key.Adopted() {
		return nil, ErrDecrypt
	}
	m, ok := k.server.Store.Copy(id)
	defer m.Secret.Wipe()
	if !ok || m.Check != key.Check {
		return nil, k.ciphers.missing(id)
	}
	plaintext, err := nks.OpenNomadData(m.Secret.Root(), id, data)
	if err != nil {
		return nil, ErrDecrypt
	}
	return plaintext, nil
}

// FileKind says what a file in a keystore directory is.
type FileKind string

// The kinds of files.
const (
	FileKey     FileKind = "key"
	FileRemoved FileKind = "removed key" // kept until RotationPolicy.Undo is over
	FileAside   FileKind = "set aside"   // it was bad; the name says why
	FileNomad   FileKind = "Nomad's key"
	FileOwn     FileKind = "own"       // the keystore's ID and its lock
	FileTemp    FileKind = "temporary" // of a write that was cut short, or is under way; goes at start
	FileForeign FileKind = "foreign"   // nothing of the keyring's
)

// FileReport is what Inspect says of one file.
type FileReport struct {
	Name      string
	Kind      FileKind
	Key       KeyID     // zero if it is no key's
	Algorithm string    // of the key's signing key
	Created   time.Time // by the file; nothing authenticates it
	KEKs      []string  // the IDs of those that it is wrapped under
	Opens     []string  // those of the KEKs given that open it
	Err       error     // what is wrong with it, or nil
}

// Inspect reads a keystore directory and says what each file in it is, by name, which of the KEKs open
// it, and what is wrong. It changes nothing and takes no lock, so that the server may run. It
// holds no key beyond the look at it, and knows no raft: Status tells what is missing.
func Inspect(ctx context.Context, dir string, keks ...KEK) ([]FileReport, error) {
	return gate.Await(ctx, func() ([]FileReport, error) { return inspect(ctx, dir, keks) })
}

func inspect(ctx context.Context, dir string, keks []KEK) ([]FileReport, error) {
	var with []kek.KEK
	for _, k := range keks {
		with = append(with, k)
	}
	files, err := keystore.Inspect(ctx, dir, with)
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	var reports []FileReport
	for _, f := range files {
		reports = append(reports, FileReport{f.Name, FileKind(f.Kind), f.Key, f.Algorithm, f.Created, f.KEKs, f.Opens, f.Err})
	}
	return reports, nil
}

// MissingKey is a key whose material a server does not have.
type MissingKey struct {
	ID  KeyID
	Err error // why its file here does not open, or nil if there is none
}

// RecoverKeys is for a host that recovers its raft offline, by raft.RecoverCluster: it returns the keys whose material
// is not in the keystore directory, by ID, but for those that have sealed nothing. It opens the keystore first, so that
// nothing has changed if a KEK does not answer; then it calls recoverRaft, which gives cfg.FSM the snapshot and the log;
// and it gives the directory back. Of cfg it uses Dir, FSM, KEKs, OldKEKs and Logger. When ctx has ended before
// recoverRaft, that is not called; later it is not looked at.
func RecoverKeys(ctx context.Context, cfg Config, recoverRaft func() error) (missing []MissingKey, err error) {
	var w wrongs
	w.unless(cfg.Dir != "", "Dir is empty")
	w.unless(cfg.FSM != nil, "FSM is nil")
	w.unless(recoverRaft != nil, "recoverRaft is nil")
	if err := errors.Join(append(w, cfg.checkKEKs()...)...); err != nil {
		return nil, fmt.Errorf("recover keys: %w", err)
	}
	fsys, err := simulated.OpenDir(ctx, cfg.Dir)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	store, err := openKeystore(ctx, fsys, kek.NewSet(cfg.KEKs, cfg.OldKEKs), cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("open keystore %s: %w", cfg.Dir, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if ctx.Err() != nil { // what comes is not left half done
		return nil, context.Cause(ctx)
	}
	if err := recoverRaft(); err != nil {
		return nil, err
	}
	for _, key := range cfg.FSM.machine.Ring().Keys {
		if key.Sealed() && !store.Holds(key) {
			missing = append(missing, MissingKey{key.ID, store.FaultOf(key.ID)})
		}
	}
	return missing, nil
}
