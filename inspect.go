package keyring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/go-hclog"
)

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
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	var reports []FileReport
	for _, e := range entries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r := FileReport{Name: e.Name()}
		r.inspect(ctx, dir, keks)
		if !errors.Is(r.Err, fs.ErrNotExist) { // the server has renamed or removed it since
			reports = append(reports, r)
		}
	}
	return reports, nil
}

// inspect fills in all but the name.
func (r *FileReport) inspect(ctx context.Context, dir string, keks []KEK) {
	name := r.Name
	original, why, aside := durable.ParseAside(name)
	id, isKey := nks.ParseFileName(name)
	nomad, isNomads := nks.ParseNomadName(name)
	switch {
	case name == identity:
		r.Kind, r.Err = FileOwn, inspectIdentity(filepath.Join(dir, name))
		return
	case name == durable.LockName:
		r.Kind = FileOwn
		return
	case durable.IsTemp(name):
		r.Kind = FileTemp
		return
	case isKey:
		r.Kind, r.Key = FileKey, id
	case aside && why == asideRemoved:
		r.Kind = FileRemoved
		r.Key, _ = nks.ParseFileName(original)
	case aside:
		r.Kind = FileAside
		r.Key, _ = nks.ParseFileName(original)
	case isNomads:
		r.Kind, r.Key = FileNomad, nomad
	default:
		r.Kind = FileForeign
		return
	}
	b, mode, err := readKeyFile(filepath.Join(dir, name))
	defer clear(b) // an inline KEK is in it
	switch {
	case err != nil:
		r.Err = err
	case nks.IsNomad(b):
		r.Kind = FileNomad
		r.Algorithm, r.Err = openNomad(b)
	default:
		r.Err = r.open(ctx, b, keks)
	}
	if r.Err == nil && mode.Perm()&0o077 != 0 {
		r.Err = fmt.Errorf("others may read it: its mode is %v", mode)
	}
}

// inspectIdentity says what is wrong with the file of the keystore's ID, if a newer build has written it.
func inspectIdentity(path string) error {
	b, _, err := readKeyFile(path)
	if err == nil && newerIdentity(b) {
		err = fmt.Errorf("%w: start the newer build", nks.ErrVersion)
	}
	return err
}

// open says what is in a key file, and which KEKs open it.
func (r *FileReport) open(ctx context.Context, b []byte, keks []KEK) error {
	file, err := nks.DecodeFile(b)
	if errors.Is(err, nks.ErrVersion) {
		return fmt.Errorf("%w: it is left as it is: start the newer build", err)
	}
	if err != nil {
		return err
	}
	r.Algorithm, r.Created = file.Algorithm, file.Created
	for _, w := range file.Wrapped {
		r.KEKs = append(r.KEKs, w.KEK)
	}
	if file.ID != r.Key {
		return fmt.Errorf("%w: it is the file of key %s", ErrCorrupt, KeyID(file.ID))
	}
	why := errors.New("none of the KEKs given is one of its own")
	for _, k := range keks {
		secret, _, err := kek.NewSet([]KEK{k}, nil).Decode(ctx, file)
		if err == nil {
			secret.Wipe()
			r.Opens = append(r.Opens, k.ID())
		} else if slices.Contains(r.KEKs, k.ID()) {
			why = err
		}
	}
	if len(r.Opens) == 0 {
		return why
	}
	return nil
}

// openNomad opens a file of Nomad's, which has its KEK in it, and returns the key's algorithm.
func openNomad(b []byte) (algorithm string, err error) {
	n, err := nks.DecodeNomad(b)
	if err != nil {
		return "", err
	}
	defer n.Wipe()
	m, algorithm, err := n.Open()
	if err != nil {
		return "", err
	}
	m.Wipe()
	return algorithm, nil
}

// readKeyFile reads a regular file of the size of a key's.
func readKeyFile(path string) ([]byte, fs.FileMode, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() || info.Size() > nks.MaxFile {
		return nil, 0, fmt.Errorf("%w: %v of %d bytes", ErrCorrupt, info.Mode(), info.Size())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, nks.MaxFile))
	return b, info.Mode(), err
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
	fsys, err := durable.OpenDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	store, err := openKeystore(ctx, fsys, cfg.KEKs, cfg.OldKEKs, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("open keystore %s: %w", cfg.Dir, err)
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if ctx.Err() != nil { // what comes is not left half done
		return nil, context.Cause(ctx)
	}
	if err := recoverRaft(); err != nil {
		return nil, err
	}
	for _, key := range cfg.FSM.ring.Load().Keys {
		if key.Sealed() && !store.has(key) {
			missing = append(missing, MissingKey{key.ID, store.faultOf(key.ID)})
		}
	}
	return missing, nil
}
