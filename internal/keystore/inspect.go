package keystore

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
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// Kind says what a file in a keystore directory is.
type Kind string

// The kinds of files.
const (
	KindKey     Kind = "key"
	KindRemoved Kind = "removed key" // set aside when its key was removed
	KindAside   Kind = "set aside"   // it was bad; the name says why
	KindNomad   Kind = "Nomad's key"
	KindOwn     Kind = "own"       // the keystore's ID and its lock
	KindTemp    Kind = "temporary" // of a write that was cut short, or is under way; it goes at the next start
	KindForeign Kind = "foreign"   // nothing of the keyring's
)

// File is what Inspect says of one file.
type File struct {
	Name      string
	Kind      Kind
	Key       meta.KeyID // zero if it is no key's
	Algorithm string     // of the key's signing key
	Created   time.Time  // by the file; nothing authenticates it
	KEKs      []string   // the IDs of those that it is wrapped under
	Opens     []string   // those of the KEKs given that open it
	Err       error      // what is wrong with it, or nil

	altered bool
}

// Inspect reads a keystore directory and says what each file in it is, by name, which of the KEKs open it, and what is
// wrong. It changes nothing and takes no lock.
func Inspect(ctx context.Context, dir string, keks []kek.KEK) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []File
	for _, e := range entries {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f := File{Name: e.Name()}
		f.inspect(ctx, dir, keks)
		if !errors.Is(f.Err, fs.ErrNotExist) { // the server has renamed or removed it since
			files = append(files, f)
		}
	}
	return files, nil
}

// inspect fills in all but the name.
func (f *File) inspect(ctx context.Context, dir string, keks []kek.KEK) {
	path := filepath.Join(dir, f.Name)
	switch f.classify(); f.Kind {
	case KindTemp, KindForeign:
		return
	case KindOwn:
		f.Err = inspectOwn(path)
		return
	}
	b, mode, err := readKeyFile(path)
	defer clear(b) // an inline KEK is in it
	switch {
	case err != nil:
		f.Err = err
	case nks.IsNomad(b):
		f.Kind = KindNomad
		f.Algorithm, f.Err = inspectNomad(b)
	default:
		f.Err = f.open(ctx, b, keks)
	}
	if f.Err == nil && mode.Perm()&0o077 != 0 {
		f.Err = fmt.Errorf("others may read it: its mode is %v", mode)
	}
}

// classify says what the file is by its name.
func (f *File) classify() {
	original, why, aside := durable.ParseAside(f.Name)
	id, isKey := nks.ParseFileName(f.Name)
	nomad, isNomads := nks.ParseNomadName(f.Name)
	switch {
	case f.Name == identity, f.Name == durable.LockName:
		f.Kind = KindOwn
	case durable.IsTemp(f.Name):
		f.Kind = KindTemp
	case isKey:
		f.Kind, f.Key = KindKey, id
	case aside && why == asideRemoved:
		f.Kind = KindRemoved
		f.Key, _ = nks.ParseFileName(original)
	case aside:
		f.Kind = KindAside
		f.Key, _ = nks.ParseFileName(original)
	case isNomads:
		f.Kind, f.Key = KindNomad, nomad
	default:
		f.Kind = KindForeign
	}
}

// inspectOwn says what is wrong with the file of the keystore's ID, if a newer build has written it.
func inspectOwn(path string) error {
	if filepath.Base(path) != identity {
		return nil
	}
	b, _, err := readKeyFile(path)
	if err == nil && newerIdentity(b) {
		err = fmt.Errorf("%w: start the newer build", nks.ErrVersion)
	}
	return err
}

// open says what is in a key file, and which KEKs open it.
func (f *File) open(ctx context.Context, b []byte, keks []kek.KEK) error {
	file, err := nks.DecodeFile(b)
	if errors.Is(err, nks.ErrVersion) {
		return fmt.Errorf("%w: it is left as it is: start the newer build", err)
	}
	if err != nil {
		return err
	}
	f.Algorithm, f.Created = file.Algorithm, file.Created
	f.KEKs = kek.NewSet(keks, nil).Names(file)
	if file.ID != f.Key {
		return fmt.Errorf("%w: it is the file of key %s", nks.ErrCorrupt, meta.KeyID(file.ID))
	}
	why := errors.New("none of the KEKs given is one of its own")
	for _, k := range keks {
		opened, err := kek.NewSet([]kek.KEK{k}, nil).Decode(ctx, file)
		if err == nil {
			opened.Material.Wipe()
			f.Opens = append(f.Opens, k.ID())
			f.altered = f.altered || opened.Altered
		} else if slices.Contains(f.KEKs, k.ID()) {
			why = err
		}
	}
	switch {
	case len(f.Opens) == 0:
		return why
	case f.altered:
		return fmt.Errorf("%w: its key is right, and the rest is not as it was written: entries may be gone, or not open", nks.ErrCorrupt)
	}
	return nil
}

// inspectNomad opens a file of Nomad's, which has its KEK in it, and returns the algorithm of its key.
func inspectNomad(b []byte) (algorithm string, err error) {
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
		return nil, 0, fmt.Errorf("%w: %v of %d bytes", nks.ErrCorrupt, info.Mode(), info.Size())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, nks.MaxFile))
	return b, info.Mode(), err
}
