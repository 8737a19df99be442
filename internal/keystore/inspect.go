package keystore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	KindOwn     Kind = "own"       // the keystore's ID, its lock, and its note of what was synced
	KindTemp    Kind = "temporary" // of a write that was cut short, or is under way; it goes at the next start
	KindForeign Kind = "foreign"   // nothing of the keyring's
)

// Verdict says what a server does with a file.
type Verdict string

// The verdicts.
const (
	UseNone     Verdict = ""          // nothing: it is no key's, or was set aside
	UseKey      Verdict = "used"      // the server has the key from it
	UseWaits    Verdict = "waits"     // it can't be used now; the server retries at least once a minute
	UseSetAside Verdict = "set aside" // it is bad, and gets another name
	UseRefused  Verdict = "refused"   // it is Nomad's, and left: with these KEKs there is no key in it
)

// useFor is what becomes of a file of which judge has returned this.
func useFor(f *Fault) Verdict {
	switch {
	case f == nil:
		return UseKey
	case f.Cause == BadFile:
		return UseSetAside
	case f.Cause == NomadFile:
		return UseRefused
	}
	return UseWaits
}

// File is what Inspect says of one file.
type File struct {
	Name      string
	Kind      Kind
	Use       Verdict    // what a server with the KEKs given does with it, if it has no other file of the key
	Key       meta.KeyID // zero if it is no key's
	Algorithm string     // of the key's signing key
	Created   time.Time  // by the file; nothing authenticates it
	KEKs      []string   // the IDs of those that it is wrapped under
	Opens     []string   // those of the KEKs given that open it
	Err       error      // what is wrong with it, or nil
}

// inspector looks at the files of one directory.
type inspector struct {
	dir  *durable.Look
	all  *kek.Set            // as a server has them
	each map[string]*kek.Set // one KEK each, by its ID
}

// Inspect reads a keystore directory and says what each file in it is, by name, what a server with these KEKs would do with
// it, which of them open it, and what is wrong. It changes nothing and takes no lock.
func Inspect(ctx context.Context, path string, keks []kek.KEK) ([]File, error) {
	dir, err := durable.OpenLook(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.List()
	if err != nil {
		return nil, err
	}
	in := inspector{dir, kek.NewSet(keks, nil), map[string]*kek.Set{}}
	for _, k := range keks {
		in.each[k.ID()] = kek.NewSet([]kek.KEK{k}, nil)
	}
	var files []File
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f := File{Name: name}
		in.inspect(ctx, &f)
		if !errors.Is(f.Err, fs.ErrNotExist) { // the server has renamed or removed it since
			files = append(files, f)
		}
	}
	return files, nil
}

// inspect fills in all but the name.
func (in inspector) inspect(ctx context.Context, f *File) {
	f.classify()
	if f.Kind == KindTemp || f.Kind == KindForeign || f.Name == durable.LockName || f.Name == durable.SyncedName {
		return
	}
	b, mode, err := in.dir.Read(f.Name, nks.MaxFile)
	defer clear(b) // a KEK may be in it
	if f.Kind == KindOwn {
		if err == nil {
			_, err = parseIdentity(b)
		}
		if f.Err = err; isBadIdentity(err) {
			f.Use = UseSetAside
		}
		return
	}
	found := found{f.Key, f.Name, b, err}
	if f.Kind == KindKey || f.Kind == KindNomad {
		if found.isNomads() {
			f.Kind = KindNomad
		}
		m, fault := found.judge(ctx, in.all)
		f.Use = useFor(fault)
		in.explain(f, m, fault)
	} else {
		m, fault := found.openOwn(ctx, in.all) // as it would if it had its name
		in.explain(f, m, fault)
	}
	f.describe(b, in.all)
	in.openWithEach(ctx, f, b)
	if f.Err == nil && mode.Perm()&0o077 != 0 {
		f.Err = fmt.Errorf("others may read it: its mode is %v", mode)
	}
}

// explain says what is wrong with a file, by what a server finds. It wipes the key.
func (in inspector) explain(f *File, m *material, fault *Fault) {
	switch {
	case fault == nil:
		if f.Algorithm = m.algorithm; m.altered {
			f.Err = errAltered
		}
		m.wipe()
	case fault.Cause == Locked:
		f.Err = fmt.Errorf("none of the given KEKs opens it: %w", fault.Err)
	case fault.Cause == Newer:
		f.Err = fmt.Errorf("%w: it is left as it is: start the newer build", fault.Err)
	default:
		f.Err = fault.Err
	}
}

var errAltered = fmt.Errorf("%w: its key is right, but the rest was altered: entries may be missing, or not open", nks.ErrCorrupt)

// describe fills in what the file says of itself.
func (f *File) describe(b []byte, keks *kek.Set) {
	if f.Kind == KindNomad {
		n, err := nks.DecodeNomad(b)
		if err != nil {
			return
		}
		defer n.Wipe()
		f.Created, f.KEKs = n.Created, []string{n.Provider}
		if n.Inline() {
			f.KEKs = []string{kek.InlineID}
		}
		if f.Use == UseKey {
			f.Opens = f.KEKs
		}
		return
	}
	if file, err := nks.DecodeFile(b); err == nil {
		f.Algorithm, f.Created, f.KEKs = file.Algorithm, file.Created, keks.Names(file)
	}
}

// openWithEach fills in which of the KEKs open a file of the keyring's.
func (in inspector) openWithEach(ctx context.Context, f *File, b []byte) {
	file, err := nks.DecodeFile(b)
	if f.Kind == KindNomad || err != nil || file.ID != f.Key {
		return
	}
	for _, id := range f.KEKs {
		if set := in.each[id]; set != nil {
			if opened, err := set.Decode(ctx, file); err == nil {
				opened.Material.Wipe()
				f.Opens = append(f.Opens, id)
			}
		}
	}
	slices.Sort(f.Opens)
}

// classify says what the file is by its name.
func (f *File) classify() {
	original, why, aside := durable.ParseAside(f.Name)
	id, isKey := nks.ParseFileName(f.Name)
	nomad, isNomads := nks.ParseNomadName(f.Name)
	switch {
	case f.Name == identity, f.Name == durable.LockName, f.Name == durable.SyncedName:
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
