package keyring

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/fips140"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"example.com/keyring/internal/gate"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// A backup is a file of age (https://c2sp.org/age) that holds a tar archive:
//
//	manifest.json              a Manifest
//	keystore/<key id>.nks.json each of its keys, in its order, as InlineKEK wraps them
//	snapshot                   the raft snapshot: the keyring's section, then the host's to the end
//	signature                  64 bytes: see BackupSigner
//
// It is of the format "keyring backup 2". Those of "keyring backup 1" have no signature, and are the same
// otherwise.
const (
	backupManifest  = "manifest.json"
	backupKeys      = "keystore/"
	backupSnapshot  = "snapshot"
	backupSignature = "signature"
)

// BackupFormat is what Manifest.Format says in a backup that Backup makes today.
const BackupFormat = "keyring backup 2"

// unsignedFormat is what it says in those that are not signed, of builds before this one.
const unsignedFormat = "keyring backup 1"

// Manifest says what is in a backup.
type Manifest struct {
	Format  string
	Cluster string // the ID that the keyring gave the cluster
	Created time.Time
	// Raft describes the snapshot. Its Index is the point of the log that the backup is of.
	Raft raft.SnapshotMeta
	// Keys are the keys of the snapshot, by ID. A prepublished one may be left out, for nothing is sealed
	// under it: it is if the server that made the backup did not have it.
	Keys []BackupKey
	// Missing are the other keys of the snapshot that are not in the backup. Backup makes none that misses
	// any; a damaged one may.
	Missing []KeyID `json:"-"`
	// Host is how many bytes of the snapshot are the host's own. They are its last.
	Host int64 `json:"-"`
	// SHA256 is that of the whole file, as it lies on a disk. age keeps others from reading it, and
	// does not say who wrote it: whoever knows the recipients can. Keep it where they can't write.
	SHA256 [32]byte `json:"-"`
	// Signer is who has signed the backup: in VerifyBackup and Restore, a server that had the active key that
	// is in it. That it is the cluster's own key, the backup alone can't tell: compare it with the
	// Status.BackupSigner of the time. Zero in a backup of "keyring backup 1".
	Signer BackupSigner `json:"-"`
}

// BackupKey is a key in a backup.
type BackupKey struct {
	ID    KeyID
	State State           // at the time
	Check meta.CheckValue // tells the right material from any other
}

// Backup writes one file with everything to w: the metadata, the material of every key in it, and
// the host's own snapshot if it rides the same raft, so that what is in the one opens with what
// is in the other. It is encrypted to age recipients; the age tool opens it, and tar what is in
// it. Leader only.
//
// It has raft make a snapshot first. A key of that snapshot whose material is not here makes it fail
// with an error that matches ErrKeyMissing and names each, before anything is written; but not a
// prepublished one, which is left out and named in the log. In the end it is noted in raft, for Status, as
// a backup of what was there before the first key that is left out: until that one is held or removed,
// newer keys are counted in Status.NoBackup. If that alone fails, the Manifest comes with the error and the
// backup is good. After any other error what was written is of no use. A Write that is under way when ctx
// ends may return after Backup has; there is none after it.
func (k *Keyring) Backup(ctx context.Context, w io.Writer, to ...age.Recipient) (Manifest, error) {
	return gate.Through(ctx, &k.gate, func(ctx context.Context) (Manifest, error) { return k.backup(ctx, w, to) })
}

func (k *Keyring) backup(ctx context.Context, w io.Writer, to []age.Recipient) (Manifest, error) {
	if fips140.Enforced() {
		return Manifest{}, errors.New("backup: age is not allowed in FIPS 140-only mode")
	}
	if len(to) == 0 {
		return Manifest{}, errors.New("backup: there are no age recipients")
	}
	if err := k.mayLead(); err != nil {
		return Manifest{}, err
	}
	if ctx.Err() != nil {
		return Manifest{}, fmt.Errorf("backup: %w", context.Cause(ctx))
	}
	s, err := k.snapshot(ctx)
	if err != nil {
		return Manifest{}, fmt.Errorf("backup: %w", err)
	}
	defer s.close()
	s.manifest.SHA256, err = digest(func(d io.Writer) error {
		return writeBackup(ctx, io.MultiWriter(within{ctx, w}, d), s, to)
	})
	if err != nil {
		return Manifest{}, fmt.Errorf("backup: %w", err)
	}
	err = k.propose(ctx, meta.Command{Backup: &meta.Backup{
		Index: s.upTo, Time: s.manifest.Created, Digest: s.manifest.SHA256,
	}})
	if err != nil {
		return s.manifest, fmt.Errorf("backup: it is whole, but not noted: %w", err)
	}
	k.cfg.Logger.Info("backup made", "index", s.manifest.Raft.Index, "keys", len(s.manifest.Keys))
	return s.manifest, nil
}

// snapshotted is a snapshot of raft's, and the keys that it is of.
type snapshotted struct {
	manifest Manifest
	keys     []arrival
	active   KeyID  // one of them, which signs
	upTo     uint64 // it has every key with a CreateIndex up to this one
	section  []byte // the keyring's part, which is read already
	body     io.ReadCloser
}

func (s *snapshotted) close() {
	s.body.Close()
	for _, k := range s.keys {
		k.secret.Wipe()
	}
}

// snapshot has raft make one, and takes a copy of each of its keys: from then on none can be removed
// under our hands. If one has been before that, a newer snapshot does not have it.
func (k *Keyring) snapshot(ctx context.Context) (*snapshotted, error) {
	for {
		s, ring, err := k.openSnapshot()
		if err != nil {
			return nil, err
		}
		var missing []string
		gone := false
		for _, key := range ring.Keys {
			a, ok := k.store.copy(key.ID)
			switch {
			case ok && a.check == key.Check:
				s.keys = append(s.keys, a)
				continue
			case key.Sealed():
				missing = append(missing, key.ID.String())
				gone = gone || k.fsm.ring.Load().WasRemoved(key.ID)
			default:
				k.cfg.Logger.Warn("a prepublished key that is not here is left out of the backup", "key", key.ID)
				s.leaveOut(key)
			}
			a.secret.Wipe()
		}
		if len(missing) == 0 {
			return s, nil
		}
		if s.close(); !gone {
			return nil, fmt.Errorf("%w: %s", ErrKeyMissing, strings.Join(missing, ", "))
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}

// leaveOut makes it a backup without a key.
func (s *snapshotted) leaveOut(key *meta.Key) {
	s.upTo = min(s.upTo, key.CreateIndex-1)
	s.manifest.Keys = slices.DeleteFunc(s.manifest.Keys, func(b BackupKey) bool { return b.ID == key.ID })
}

func (k *Keyring) openSnapshot() (*snapshotted, *meta.Ring, error) {
	// Raft makes no snapshot right after a change of its configuration. An entry helps.
	if err := k.raft.Barrier(proposeTimeout).Error(); err != nil {
		return nil, nil, outcome(k.raft, err)
	}
	f := k.raft.Snapshot()
	if err := f.Error(); err != nil {
		return nil, nil, fmt.Errorf("make a snapshot: %w", err)
	}
	m, body, err := f.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("open the snapshot: %w", err)
	}
	read, err := k.fsm.build.ReadSnapshot(body)
	ring, section := read.Ring, read.Head
	if err != nil {
		err = snapshotError(err)
	} else if ring == nil {
		err = fmt.Errorf("%w: a snapshot without the keyring's part", ErrCorrupt)
	}
	if err == nil && ring.Active() == nil {
		err = fmt.Errorf("%w: there is no active key, which would sign it", ErrNotReady)
	}
	if err != nil {
		return nil, nil, errors.Join(err, body.Close())
	}
	s := &snapshotted{
		manifest: manifestOf(ring, *m, k.now()), active: ring.Active().ID, upTo: m.Index, section: section, body: body,
	}
	s.manifest.Host = m.Size - int64(len(section))
	return s, ring, nil
}

func manifestOf(ring *meta.Ring, snapshot raft.SnapshotMeta, created time.Time) Manifest {
	cluster, _ := ring.Cluster.MarshalText() // never fails
	m := Manifest{Format: BackupFormat, Cluster: string(cluster), Created: created, Raft: snapshot}
	for _, key := range ring.Keys {
		m.Keys = append(m.Keys, BackupKey{key.ID, key.State, key.Check})
	}
	return m
}

func writeBackup(ctx context.Context, w io.Writer, s *snapshotted, to []age.Recipient) error {
	sealed, err := age.Encrypt(w, to...)
	if err != nil {
		return err
	}
	sum := newArchiveSum()
	defer sum.sum() // its goroutine ends
	archive := tar.NewWriter(io.MultiWriter(sealed, sum))
	manifest, err := json.MarshalIndent(s.manifest, "", "  ")
	if err == nil && len(manifest) > maxManifest {
		err = fmt.Errorf("%d keys are more than a manifest has room for", len(s.keys))
	}
	if err != nil {
		return err
	}
	if err := writeFile(archive, s.manifest.Created, backupManifest, int64(len(manifest)), bytes.NewReader(manifest)); err != nil {
		return err
	}
	if err := s.writeKeys(ctx, archive); err != nil {
		return err
	}
	body := io.MultiReader(bytes.NewReader(s.section), s.body)
	if err := writeFile(archive, s.manifest.Created, backupSnapshot, s.manifest.Raft.Size, body); err != nil {
		return err
	}
	if err := s.writeSignature(archive, sum); err != nil {
		return err
	}
	return errors.Join(archive.Close(), sealed.Close())
}

func (s *snapshotted) writeKeys(ctx context.Context, archive *tar.Writer) error {
	inline := kek.NewSet([]KEK{InlineKEK()}, nil)
	for _, key := range s.keys {
		content, opened, err := inline.Encode(ctx, key.file(), key.secret)
		if err != nil {
			return fmt.Errorf("key %s: %w", key.id, err)
		}
		opened.Wipe()
		err = writeFile(archive, s.manifest.Created, backupKeys+nks.FileName(key.id), int64(len(content)), bytes.NewReader(content))
		clear(content)
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSignature writes the header of the signature first, for that is what it covers last.
func (s *snapshotted) writeSignature(archive *tar.Writer, sum *archiveSum) error {
	h := &tar.Header{Name: backupSignature, Mode: 0o600, Size: ed25519.SignatureSize, ModTime: s.manifest.Created}
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	i := slices.IndexFunc(s.keys, func(k arrival) bool { return k.id == s.active })
	signature, err := signBackup(s.active, s.keys[i].secret, sum.sum())
	if err == nil {
		_, err = archive.Write(signature)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", backupSignature, err)
	}
	s.manifest.Signer, err = signerOfBackups(s.active, s.keys[i].secret)
	return err
}

// writeFile writes one file of the archive.
func writeFile(archive *tar.Writer, made time.Time, name string, size int64, content io.Reader) error {
	h := &tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: made}
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(archive, content)
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// within is a writer that a context ends.
type within struct {
	ctx context.Context
	io.Writer
}

func (w within) Write(b []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.Writer.Write(b)
}
