package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// CheckRecipients says why no backup can be encrypted to these recipients, or returns nil.
func CheckRecipients(to []age.Recipient) error {
	if len(to) == 0 {
		return errors.New("there are no age recipients")
	}
	return errFIPS()
}

// Archive is a backup that is being made, of a raft snapshot and the keys in it.
type Archive struct {
	Ring *meta.Ring // of the snapshot

	manifest Manifest   // with the keys that were added
	keys     []Material // in the same order
	active   int        // index of the one that signs; negative if it was not added
	upTo     uint64     // see UpTo
	part     []byte     // the keyring's part of the snapshot
	host     io.ReadCloser
}

// New reads the keyring's part of a snapshot that raft has made. It takes the snapshot over: Close closes it, and
// New does after an error.
func New(m raft.SnapshotMeta, snapshot io.ReadCloser, build meta.Build, created time.Time) (*Archive, error) {
	s, err := build.ReadSnapshot(snapshot)
	switch {
	case err != nil:
		err = snapshotError(err)
	case s.Ring == nil:
		err = fmt.Errorf("%w: a snapshot without the keyring's part", nks.ErrCorrupt)
	case s.Ring.LastIndex() > m.Index:
		err = fmt.Errorf("the snapshot's log index is %d, but the restored keyring has entries up to index %d: raft got its snapshot under a lower index. "+
			"No server could start from the backup. Call Backup when raft's log has reached that index", m.Index, s.Ring.LastIndex())
	}
	if err != nil {
		return nil, errors.Join(err, snapshot.Close())
	}
	manifest := Manifest{Format: Format, Cluster: clusterText(s.Ring), Created: created, Raft: m, Host: m.Size - int64(len(s.Head))}
	return &Archive{Ring: s.Ring, manifest: manifest, active: -1, upTo: m.Index, part: s.Head, host: snapshot}, nil
}

// snapshotError adds to an error of meta's what callers branch on.
func snapshotError(err error) error {
	switch {
	case errors.Is(err, meta.ErrVersion):
		return fmt.Errorf("the snapshot is from a newer build: %w", err)
	case errors.Is(err, meta.ErrMalformed):
		return fmt.Errorf("%w: %w", nks.ErrCorrupt, err)
	}
	return err
}

// Add adds a key of the ring with its material, and takes that over. Keys are added in the ring's order. One that
// is not added is left out of the backup.
func (a *Archive) Add(k *meta.Key, m Material) {
	if k.State == meta.StateActive {
		a.active = len(a.keys)
	}
	a.keys = append(a.keys, m)
	a.manifest.Keys = append(a.manifest.Keys, keyOf(k))
}

// AddAll adds the keys of the ring. material returns a copy of what is here under an ID, which AddAll takes over. It
// returns the keys whose material is not here: missing are those that something may be sealed under, and leftOut the
// prepublished ones, of which a backup needs none.
func (a *Archive) AddAll(material func(meta.KeyID) (Material, bool)) (missing, leftOut []meta.KeyID) {
	for _, key := range a.Ring.Keys {
		m, ok := material(key.ID)
		switch {
		case ok && m.Check == key.Check:
			a.Add(key, m)
			continue
		case key.Sealed():
			missing = append(missing, key.ID)
		default:
			leftOut = append(leftOut, key.ID)
			a.upTo = min(a.upTo, key.CreateIndex-1)
		}
		m.Secret.Wipe()
	}
	return missing, leftOut
}

// UpTo is an index of the log: the backup has every key with a CreateIndex up to it, once AddAll has found none missing.
func (a *Archive) UpTo() uint64 { return a.upTo }

// Close wipes the material and closes the snapshot.
func (a *Archive) Close() error {
	for _, k := range a.keys {
		k.Secret.Wipe()
	}
	return a.host.Close()
}

// Write writes the backup, encrypted to the recipients. It is called once. The active key of the ring signs, and
// has to be one of those that were added.
func (a *Archive) Write(ctx context.Context, w io.Writer, to ...age.Recipient) (Manifest, error) {
	m := a.manifest
	var err error
	m.SHA256, err = digest(func(d io.Writer) (err error) {
		m.Signer, err = a.write(ctx, io.MultiWriter(contextWriter{ctx, w}, d), to)
		return err
	})
	if err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// write writes a backup to w, and returns who has signed it.
func (a *Archive) write(ctx context.Context, w io.Writer, to []age.Recipient) (Signer, error) {
	encrypted, err := age.Encrypt(w, to...)
	if err != nil {
		return Signer{}, err
	}
	sum := newArchiveSum()
	defer sum.sum() // its goroutine ends
	archive := &archiveWriter{tar.NewWriter(io.MultiWriter(encrypted, sum)), a.manifest.Created}
	text, err := json.MarshalIndent(a.manifest, "", "  ")
	if err == nil && len(text) > maxManifest {
		err = fmt.Errorf("%d keys do not fit into a manifest", len(a.keys))
	}
	if err != nil {
		return Signer{}, err
	}
	if err := archive.writeFile(manifestName, int64(len(text)), bytes.NewReader(text)); err != nil {
		return Signer{}, err
	}
	if err := a.writeKeys(ctx, archive); err != nil {
		return Signer{}, err
	}
	if err := archive.writeFile(snapshotName, a.manifest.Raft.Size, io.MultiReader(bytes.NewReader(a.part), a.host)); err != nil {
		return Signer{}, err
	}
	signer, err := a.writeSignature(archive, sum)
	if err != nil {
		return Signer{}, fmt.Errorf("%s: %w", signatureName, err)
	}
	return signer, errors.Join(archive.Close(), encrypted.Close())
}

func (a *Archive) writeKeys(ctx context.Context, archive *archiveWriter) error {
	keks := inlineKEKs()
	for _, k := range a.keys {
		file := nks.File{ID: k.ID, Algorithm: k.Algorithm, Check: k.Check, Created: k.Created}
		content, opened, err := keks.Encode(ctx, &file, k.Secret)
		if err != nil {
			return fmt.Errorf("key %s: %w", k.ID, err)
		}
		opened.Wipe()
		err = archive.writeFile(keyDir+nks.FileName(k.ID), int64(len(content)), bytes.NewReader(content))
		clear(content) // the inline KEK is in it
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSignature writes the header of the signature first: that is the end of what it signs.
func (a *Archive) writeSignature(archive *archiveWriter, sum *archiveSum) (Signer, error) {
	if a.active < 0 {
		return Signer{}, errors.New("the active key is not in the backup")
	}
	if err := archive.writeHeader(signatureName, ed25519.SignatureSize); err != nil {
		return Signer{}, err
	}
	key := a.keys[a.active]
	signature, err := sign(key.ID, key.Secret, sum.sum())
	if err != nil {
		return Signer{}, err
	}
	if _, err := archive.Write(signature); err != nil {
		return Signer{}, err
	}
	return SignerOf(key.ID, key.Secret)
}

// archiveWriter writes the files of an archive.
type archiveWriter struct {
	*tar.Writer
	created time.Time
}

func (w *archiveWriter) writeHeader(name string, size int64) error {
	return w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: w.created})
}

func (w *archiveWriter) writeFile(name string, size int64, content io.Reader) error {
	if err := w.writeHeader(name, size); err != nil {
		return err
	}
	n, err := io.Copy(w, content)
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
