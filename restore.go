package keyring

import (
	"archive/tar"
	"context"
	"crypto/fips140"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
	"github.com/hashicorp/go-hclog"
)

// VerifyBackup reads a whole backup and says what is in it. It returns no error only for one that
// restores: nothing is altered, cut short or left over, and it has the right material of every key of
// its snapshot that something may be sealed under. Manifest.Missing names those that it lacks, which is an
// error too. The host's
// part of the snapshot is known to be what was written, and is not looked into. Memory does
// not grow with the size of the backup.
func VerifyBackup(r io.Reader, with ...age.Identity) (Manifest, error) {
	m, err := readBackup(context.Background(), r, with, parts{})
	if err != nil {
		return m, fmt.Errorf("backup: %w", err)
	}
	return m, nil
}

// RestoreOptions says where to restore to.
type RestoreOptions struct {
	// Dir is the keystore directory to write: absent or empty, or with nothing in it but keys of
	// this very backup, as an interrupted Restore leaves it. Nothing in it is overwritten.
	Dir string
	// KEKs are this server's: the keys are wrapped under all of them. Required.
	KEKs []KEK
	// Identities open the backup. Required.
	Identities []age.Identity
	// Snapshot gets the raft snapshot, which Manifest.Raft describes, for raft's Restore. What
	// it got is void if Restore returns an error. Nil throws it away.
	Snapshot io.Writer
	// Digest is the SHA-256 that the backup must have, from a place that its writer can't reach.
	// Zero is not checked: whoever knows the recipients can make a backup.
	Digest [32]byte
	// Logger gets what the keystore logs. Nil logs nothing.
	Logger hclog.Logger

	fs durable.FS // in place of Dir, for tests
}

// Restore reads a backup and writes its keys into a keystore directory under this server's KEKs. It
// writes none before it has read all of the backup and found it good. After an error, or a
// crash, the same Restore finishes what is in Dir. The other servers need no backup: they get the
// keys from this one. See RestoreNode for a Node.
func Restore(ctx context.Context, r io.Reader, o RestoreOptions) (Manifest, error) {
	m, err := restore(ctx, r, o, func(Manifest) (io.Writer, error) { return o.Snapshot, nil })
	if err != nil {
		return m, fmt.Errorf("restore: %w", err)
	}
	return m, nil
}

func restore(ctx context.Context, r io.Reader, o RestoreOptions, snapshot func(Manifest) (io.Writer, error)) (m Manifest, err error) {
	if o.Dir == "" || len(o.KEKs) == 0 {
		return Manifest{}, errors.New("no Dir or no KEKs")
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	fsys := o.fs
	if fsys == nil {
		if fsys, err = durable.OpenDir(o.Dir); err != nil {
			return Manifest{}, err
		}
	}
	if err := strangers(fsys); err != nil {
		return Manifest{}, errors.Join(err, fsys.Close())
	}
	s, err := openKeystore(ctx, fsys, o.KEKs, nil, o.Logger)
	if err != nil {
		return Manifest{}, errors.Join(err, fsys.Close())
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var keys []arrival
	defer func() {
		for _, k := range keys {
			k.secret.Wipe()
		}
	}()
	m, err = readBackup(ctx, r, o.Identities, parts{
		key:      func(a arrival) { keys = append(keys, a) },
		snapshot: snapshot,
	})
	if err != nil {
		return m, err
	}
	if o.Digest != [32]byte{} && o.Digest != m.SHA256 {
		return m, fmt.Errorf("the backup's SHA-256 is %x, not %x", m.SHA256, o.Digest)
	}
	left, err := s.unrestored(keys)
	if err != nil {
		return m, err
	}
	const together = 256 // whose files are synced at a time
	for some := range slices.Chunk(left, together) {
		if err := errors.Join(s.put(ctx, some...)...); err != nil {
			return m, err
		}
	}
	return m, nil
}

// strangers says what lies in a directory that is to be restored into and is no keystore's, or of
// a key that was set aside.
func strangers(fsys durable.FS) error {
	names, err := durable.New(fsys).List()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, key := nks.ParseFileName(name); !key && name != identity {
			return fmt.Errorf("the directory is not empty: it has %q", name)
		}
	}
	return nil
}

// unrestored returns the keys of a backup that are not in the directory yet, as they are to be.
// Whatever else is there is an error.
func (s *keystore) unrestored(keys []arrival) (left []arrival, err error) {
	if err := s.oddities(); err != nil {
		return nil, fmt.Errorf("the directory is not empty: %w", err)
	}
	there := s.all()
	for _, k := range keys {
		m := there[k.id]
		if m != nil && m.check != k.check {
			return nil, fmt.Errorf("the directory has another key with the ID %s", k.id)
		}
		if m == nil || m.stale { // also where nobody knows that it is durable
			left = append(left, k)
		}
		delete(there, k.id)
	}
	for id := range there {
		return nil, fmt.Errorf("the directory is not empty: it has key %s, which is not in the backup", id)
	}
	return left, nil
}

// oddities says what an opened directory had that is no good key.
func (s *keystore) oddities() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.setAside) > 0 {
		return fmt.Errorf("it had a file that is now set aside as %q", s.setAside[0])
	}
	for id, f := range s.faults {
		return fmt.Errorf("it has a file of key %s that does not open: %w", id, f.err)
	}
	return nil
}

// parts says what is done with the parts of a backup as they are read. Nil does nothing.
type parts struct {
	key      func(arrival)                     // takes over the secret
	snapshot func(Manifest) (io.Writer, error) // where it goes to, if anywhere
}

// maxManifest bounds a manifest, far above 100,000 keys.
const maxManifest = 64 << 20

// readBackup reads a backup to its end and checks all of it.
func readBackup(ctx context.Context, r io.Reader, with []age.Identity, p parts) (Manifest, error) {
	if fips140.Enforced() {
		return Manifest{}, errors.New("age is not allowed in FIPS 140-only mode")
	}
	var m Manifest
	sum, err := digest(func(d io.Writer) (err error) {
		m, err = readParts(ctx, io.TeeReader(until{ctx, r}, d), with, p)
		return err
	})
	m.SHA256 = sum
	return m, err
}

func readParts(ctx context.Context, r io.Reader, with []age.Identity, p parts) (Manifest, error) {
	plain, err := age.Decrypt(r, with...)
	if err != nil {
		return Manifest{}, err
	}
	archive := tar.NewReader(plain)
	m, err := readManifest(archive)
	if err != nil {
		return Manifest{}, err
	}
	for _, key := range m.Keys {
		a, err := readKey(ctx, archive, key)
		if err != nil {
			return m, fmt.Errorf("key %s: %w", key.ID, err)
		}
		if p.key != nil {
			p.key(a)
		} else {
			a.secret.Wipe()
		}
	}
	var to io.Writer
	if p.snapshot != nil {
		if to, err = p.snapshot(m); err != nil {
			return m, err
		}
	}
	ring, err := readSnapshot(archive, m, to)
	if err != nil {
		return m, fmt.Errorf("snapshot: %w", err)
	}
	if _, err := archive.Next(); err != io.EOF {
		return m, fmt.Errorf("%w: the archive goes on after the snapshot, or is cut short", ErrCorrupt)
	}
	if n, err := io.Copy(io.Discard, plain); err != nil || n > 0 {
		return m, errors.Join(fmt.Errorf("%w: something follows the archive", ErrCorrupt), err)
	}
	return m, m.compare(ring)
}

// compare says which keys of the snapshot are missing, and what else does not fit.
func (m *Manifest) compare(ring *meta.Ring) error {
	want := manifestOf(ring, m.Raft, m.Created)
	if want.Cluster != m.Cluster {
		return fmt.Errorf("%w: the snapshot is of another cluster", ErrCorrupt)
	}
	have := map[BackupKey]bool{}
	for _, key := range m.Keys {
		have[key] = true
	}
	fit := 0
	for _, key := range want.Keys {
		switch {
		case have[key]:
			fit++
		case key.State.Opens():
			m.Missing = append(m.Missing, key.ID)
		}
	}
	if len(m.Missing) > 0 {
		return fmt.Errorf("%w: %v are in the snapshot, and not in the backup", ErrKeyMissing, m.Missing)
	}
	if len(m.Keys) > fit {
		return fmt.Errorf("%w: keys that are not in the snapshot", ErrCorrupt)
	}
	return nil
}

// next goes on to a file of the archive that has to be there.
func next(archive *tar.Reader, name string, limit int64) (size int64, err error) {
	h, err := archive.Next()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if h.Name != name || h.Typeflag != tar.TypeReg || h.Size > limit {
		return 0, fmt.Errorf("%w: %q of %d bytes in place of %s", ErrCorrupt, h.Name, h.Size, name)
	}
	return h.Size, nil
}

func readManifest(archive *tar.Reader) (m Manifest, err error) {
	if _, err := next(archive, backupManifest, maxManifest); err != nil {
		return m, err
	}
	in := json.NewDecoder(archive)
	in.DisallowUnknownFields()
	if err := in.Decode(&m); err != nil {
		return m, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	if _, err := in.Token(); err != io.EOF {
		return m, fmt.Errorf("%w: something follows the manifest", ErrCorrupt)
	}
	if m.Format != BackupFormat {
		return m, fmt.Errorf("%w: its format is %q, this build reads %q", ErrCorrupt, m.Format, BackupFormat)
	}
	return m, nil
}

// readKey reads the file of a key and opens it. The caller wipes the secret.
func readKey(ctx context.Context, archive *tar.Reader, key BackupKey) (arrival, error) {
	if _, err := next(archive, backupKeys+nks.FileName(key.ID), nks.MaxFile); err != nil {
		return arrival{}, err
	}
	b, err := io.ReadAll(archive)
	defer clear(b) // an inline KEK is in it
	if err != nil {
		return arrival{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	file, err := nks.DecodeFile(b)
	if err != nil {
		return arrival{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if file.ID != key.ID || file.Check != key.Check {
		return arrival{}, fmt.Errorf("%w: its file is another key's", ErrCorrupt)
	}
	got, fault := newKEKSet([]KEK{InlineKEK()}, nil).unwrap(ctx, file)
	if fault != nil {
		return arrival{}, fault.err
	}
	return arrival{key.ID, file.Algorithm, file.Check, file.Created, got.secret}, nil
}

// readSnapshot reads the snapshot, hands it on, and returns the keyring's section of it.
func readSnapshot(archive *tar.Reader, m Manifest, to io.Writer) (*meta.Ring, error) {
	size, err := next(archive, backupSnapshot, m.Raft.Size)
	if err != nil {
		return nil, err
	}
	if size != m.Raft.Size {
		return nil, fmt.Errorf("%w: %d bytes, not %d", ErrCorrupt, size, m.Raft.Size)
	}
	if to == nil {
		to = io.Discard
	}
	ring, rest, err := readSection(io.TeeReader(archive, to), meta.This)
	if err != nil {
		return nil, err
	}
	if ring == nil {
		return nil, fmt.Errorf("%w: it has no section of the keyring's", ErrCorrupt)
	}
	if _, err := io.Copy(io.Discard, rest); err != nil {
		return nil, err
	}
	return ring, nil
}

// until is a reader that a context ends.
type until struct {
	ctx context.Context
	io.Reader
}

func (u until) Read(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.Reader.Read(b)
}
