package keyring

// What is done with the key files of a server: Rewrap, Adopt, OpenNomad, Inspect, RecoverKeys.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/simulated"
	"github.com/hashicorp/go-hclog"
)

// Rewrap wraps every key file of this server under exactly Config.KEKs, and under the versions that they use now, after
// these have changed. Each file is replaced whole, and only by one that has been opened before it is
// written. A crash at any point leaves each file as it was or rewrapped; Rewrap again goes on.
// While it runs, and after an error, OldKEKs stay needed: Status.OnOldKEKs counts the files
// that are left, and when it is zero they can go. The files of removed keys are rewrapped too, for
// as long as that can be undone. Files that no KEK opens, and those that were set aside because
// they were bad, are left as they are; the former are part of the error.
//
// It is about this server alone, leader or not. There is no need to be in a hurry: until it
// has been called, nothing but the old KEK's retirement is late.
func (k *Keyring) Rewrap(ctx context.Context) error {
	return k.rewrap(ctx, k.server.Store.Rewrap)
}

// RewrapAll is Rewrap of every key file, also of those that are wrapped as they would be now: for a KEK whose key has
// another version, and that does not tell versions apart as a VersionedKEK does.
func (k *Keyring) RewrapAll(ctx context.Context) error {
	return k.rewrap(ctx, k.server.Store.RewrapAll)
}

func (k *Keyring) rewrap(ctx context.Context, files func(context.Context) error) error {
	return k.do(ctx, func(ctx context.Context) error {
		defer k.server.FSM.Notify() // a key that could not be written is not held
		k.server.Store.Vouch(k.server.FSM.Ring())
		return files(ctx)
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
	return k.doLed(ctx, func(ctx context.Context) error { return a.Adopt(ctx, id) })
}

// OpenNomad opens data that HashiCorp Nomad encrypted under a key of its own: AES-256-GCM under
// the root key, the 12-byte nonce first, the key ID as additional data. Nomad keeps the key ID
// beside the data, not in it. The key is one that was adopted; data under any other is
// ErrDecrypt, as is data that is not Nomad's. The other errors are those of Decrypt. On any
// server that holds the key. Never call it in Apply: see Decrypt.
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

// FileUse says what a server does with a file.
type FileUse string

// The uses of files.
const (
	UseNone     FileUse = ""          // nothing: it is no key's, or was set aside
	UseKey      FileUse = "used"      // the server has the key from it
	UseWaits    FileUse = "waits"     // it is left, and read again within a minute, until what is wrong has ended
	UseSetAside FileUse = "set aside" // it is bad, and gets another name
	UseRefused  FileUse = "refused"   // it is Nomad's, and left: with these KEKs there is no key in it
)

// FileReport is what Inspect says of one file.
type FileReport struct {
	Name      string
	Kind      FileKind
	Use       FileUse   // what a server with the KEKs given does with it, if it has no other file of the key
	Key       KeyID     // zero if it is no key's
	Algorithm string    // of the key's signing key
	Created   time.Time // by the file; nothing authenticates it
	KEKs      []string  // the IDs of those that it is wrapped under
	Opens     []string  // those of the KEKs given that open it
	Err       error     // what is wrong with it, or nil
}

// Inspect reads a keystore directory and says what each file in it is, by name, which of the KEKs open
// it, what a server with these KEKs does with it, and what is wrong. A server runs as the user that owns the
// directory. It changes nothing and takes no lock, so that the server may run. It
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
		reports = append(reports, FileReport{f.Name, FileKind(f.Kind), FileUse(f.Use), f.Key, f.Algorithm, f.Created, f.KEKs, f.Opens, f.Err})
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
	store, err := openKeystore(ctx, fsys, kek.NewSet(cfg.KEKs, cfg.OldKEKs), cfg.Logger, keystore.Open)
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
