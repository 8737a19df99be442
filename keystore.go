package keyring

// Operations on a server's key files: Rewrap, Adopt, OpenNomad, Inspect, RecoverKeys.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/lead"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"example.com/keyring/internal/simulated"
	"github.com/hashicorp/go-hclog"
)

// Rewrap wraps every key file of this server under exactly Config.KEKs, in the versions that these use now.
// Call it after Config.KEKs has changed. It replaces each file as a whole, and only by a file that it has
// successfully unwrapped before it writes. A crash at any point leaves each file either old or rewrapped;
// call Rewrap again.
//
// Keep OldKEKs while Rewrap runs, and after an error. Status.OnOldKEKs counts the files that are left; once
// it is zero you can drop OldKEKs. Files of removed keys are rewrapped too while their removal can be undone.
// Files that no KEK opens stay as they are, and are named in the error. Files that were set aside as bad stay
// as they are too.
//
// Rewrap affects this server alone, leader or not. It is not urgent: only the retirement of the old KEK waits
// for it.
func (k *Keyring) Rewrap(ctx context.Context) error {
	return k.rewrap(ctx, k.server.Store.Rewrap)
}

// RewrapAll is Rewrap, but also rewraps the files that are wrapped as Config.KEKs demands. Use it when the
// key of a KEK has a new version and the KEK is no VersionedKEK.
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

// Adopt adds a key to the keyring whose file lies in the keystore of a server, but which the keyring does not
// know. Status.Orphans names such keys on each server. An adopted key is inactive; it decrypts data, and its
// tokens verify for TokenPolicy.MaxTTL and the leeway from then on. So be sure where the file comes from.
//
// When the keyring was empty, the leader has adopted keys by itself, for data alone: whoever can plant a file
// must not be able to plant a signer. For such a key Adopt admits the tokens. That is a command of version 2
// of the log. Until every server has answered that it applies those, the error names the servers that have
// not.
//
// If the leader lacks the material of the key, Adopt waits until the leader has fetched it. The leader
// derives the public key from the material, and believes no other server about it. Until then the key only
// decrypts data. If ctx ends first, the error matches ErrKeyMissing; call Adopt again. Adopting a key twice
// has no effect.
//
// The error is ErrUnknownKey for a key that no server has or that was removed, and ErrCorrupt for a key whose
// public key in raft does not fit its material. Leader only.
func (k *Keyring) Adopt(ctx context.Context, id KeyID) error {
	a := &lead.Adopter{Server: k.server.Server, Clocks: k.clocks, Public: k.public}
	return k.doLed(ctx, func(ctx context.Context) error { return a.Adopt(ctx, meta.KeyID(id)) })
}

// OpenNomad decrypts data that HashiCorp Nomad encrypted under a root key of its own: AES-256-GCM, the
// 12-byte nonce first, the key ID as additional data. Nomad keeps the key ID beside the data, not in it. The
// key must have been adopted. Under any other key, and for other data, the error is ErrDecrypt. The other
// errors are those of Decrypt. It works on any server that holds the key. Never call it in Apply: see
// Decrypt.
func (k *Keyring) OpenNomad(id KeyID, data []byte) ([]byte, error) {
	if err := k.server.Gate.Err(); err != nil {
		return nil, err
	}
	key, err := k.ciphers.knownKey(meta.KeyID(id))
	if err != nil {
		return nil, err
	}
	if !key.Adopted() {
		return nil, ErrDecrypt
	}
	m, ok := k.server.Store.Copy(key.ID)
	defer m.Secret.Wipe()
	if !ok || m.Check != key.Check {
		return nil, k.ciphers.missing(key.ID)
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
	FileAside   FileKind = "set aside"   // it was bad; its name says why
	FileNomad   FileKind = "Nomad's key"
	FileOwn     FileKind = "own"       // the keystore's ID and its lock
	FileTemp    FileKind = "temporary" // a write was interrupted, or is in progress; the next start deletes it
	FileForeign FileKind = "foreign"   // the keyring does not know it
)

// FileUse says what a server does with a file.
type FileUse string

// The uses of files.
const (
	UseNone     FileUse = ""          // nothing: it is no key file, or was set aside
	UseKey      FileUse = "used"      // the server reads the key from it
	UseWaits    FileUse = "waits"     // it can't be used now; the server retries at least once a minute
	UseSetAside FileUse = "set aside" // it is bad; the server renames it
	UseRefused  FileUse = "refused"   // it is Nomad's, and these KEKs can't open it; the server leaves it alone
)

// FileReport describes one file of a keystore directory.
type FileReport struct {
	Name      string
	Kind      FileKind
	Use       FileUse   // by a server with the given KEKs, if it has no other file of the key
	Key       KeyID     // zero if it is no key file
	Algorithm string    // of the key's signing key
	Created   time.Time // according to the file, unauthenticated
	KEKs      []string  // the IDs of the KEKs that wrap it
	Opens     []string  // the IDs of the given KEKs that open it
	Err       error     // what is wrong with it, or nil
}

// Inspect reads a keystore directory and describes each file in it, by name: which of the KEKs open it, what
// a server with these KEKs does with it, and what is wrong with it. Run it as the user that owns the
// directory. It changes nothing and takes no lock, so the server may run. It keeps no key in memory. It does
// not know raft, so it can't say which keys are missing: Status does.
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
		reports = append(reports, FileReport{f.Name, FileKind(f.Kind), FileUse(f.Use), KeyID(f.Key), f.Algorithm, f.Created, f.KEKs, f.Opens, f.Err})
	}
	return reports, nil
}

// MissingKey is a key whose material a server does not have.
type MissingKey struct {
	ID  KeyID
	Err error // why its file here does not open; nil if there is no file
	// Removed reports that a file of the key is here that was set aside when the key was removed. The server
	// takes it back when it runs, if it opens.
	Removed bool
}

// RecoverKeys is for a host that recovers its raft offline with raft.RecoverCluster. It first opens the
// keystore, so nothing has changed if a KEK does not answer. Then it calls recoverRaft, which must feed
// cfg.FSM with the snapshot and the log. At last it unlocks the directory.
//
// It returns the keys, ordered by ID, whose material is not in the directory; keys that have encrypted
// nothing are left out. It uses only Dir, FSM, KEKs, OldKEKs and Logger of cfg. If ctx ends before
// recoverRaft begins, recoverRaft is not called. Later ctx has no effect.
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
			missing = append(missing, MissingKey{KeyID(key.ID), store.FaultOf(key.ID), store.CanTakeBack(key.ID)})
		}
	}
	return missing, nil
}
