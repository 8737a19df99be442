package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
	"golang.org/x/sync/errgroup"
)

// Options says how a backup is opened, and what it has to be. What is zero is not checked.
type Options struct {
	Identities []age.Identity
	Digest     [32]byte // of the file
	Signer     Signer
	Cluster    string
	MaxBytes   int64 // of what is in the backup, unpacked
}

// Check says why nothing can be read with these options, or returns nil. Read asks it first.
func (o Options) Check() error {
	err := errFIPS()
	if len(o.Identities) == 0 {
		err = errors.Join(err, errors.New("no age identity is given: Identities is empty"))
	}
	if o.MaxBytes < 0 {
		err = errors.Join(err, fmt.Errorf("MaxBytes %d is negative", o.MaxBytes))
	}
	return err
}

// Receiver gets the parts of a backup while it is read. What is nil is not called.
type Receiver struct {
	// Key takes over the material of a key. The keys come in the order of the manifest, when all of them are good.
	Key func(Material)
	// Convert returns the ring that takes the place of the backup's. It may be the same.
	Convert func(*meta.Ring) *meta.Ring
	// Snapshot returns what the snapshot is written to; nil throws it away. It is called when everything
	// before the host's part of the snapshot is good. By then the manifest describes what will be written,
	// and Host is known.
	Snapshot func(Manifest) (io.Writer, error)
}

// reading is one pass over a backup.
type reading struct {
	Options
	to      Receiver
	archive *tar.Reader
	sum     *archiveSum
	m       Manifest
	signing [][32]byte // for each key of the manifest, the fingerprint of its signing key
	signer  Signer     // that of the manifest's active key
	ring    *meta.Ring // of the snapshot as it is written
}

// Read reads a backup to its end and checks all of it. It returns the manifest, and the ring of the snapshot that
// the Receiver got.
func Read(ctx context.Context, r io.Reader, o Options, to Receiver) (Manifest, *meta.Ring, error) {
	if err := o.Check(); err != nil {
		return Manifest{}, nil, err
	}
	b := &reading{Options: o, to: to, sum: newArchiveSum()}
	defer b.sum.sum() // its goroutine ends
	sum, err := digest(func(d io.Writer) error { return b.read(ctx, io.TeeReader(contextReader{ctx, r}, d)) })
	b.m.SHA256 = sum
	if err == nil && o.Digest != [32]byte{} && o.Digest != sum {
		err = fmt.Errorf("the backup's SHA-256 is %x, not %x", sum, o.Digest)
	}
	return b.m, b.ring, err
}

func (b *reading) read(ctx context.Context, r io.Reader) error {
	decrypted, err := age.Decrypt(r, b.Identities...)
	if err != nil {
		return err
	}
	plain := decrypted
	if b.MaxBytes > 0 {
		plain = &limitedReader{decrypted, b.MaxBytes}
	}
	b.archive = tar.NewReader(io.TeeReader(plain, b.sum))
	if err := b.readManifest(); err != nil {
		return err
	}
	if err := b.readKeys(ctx); err != nil {
		return err
	}
	if err := b.readSnapshot(); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if b.m.Format != unsignedFormat {
		if err := b.readSignature(); err != nil {
			return err
		}
	}
	if _, err := b.archive.Next(); err != io.EOF {
		return fmt.Errorf("%w: the archive continues after its last file, or is cut short", nks.ErrCorrupt)
	}
	if n, err := io.Copy(io.Discard, plain); err != nil || n > 0 {
		return errors.Join(fmt.Errorf("%w: something follows the archive", nks.ErrCorrupt), err)
	}
	return nil
}

// next goes on to a file of the archive that has to be there.
func (b *reading) next(name string, limit int64) (size int64, err error) {
	h, err := b.archive.Next()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", nks.ErrCorrupt, err)
	}
	if h.Name != name || h.Typeflag != tar.TypeReg || h.Size > limit || !isPlain(h) {
		return 0, fmt.Errorf("%w: %.128q of %d bytes in place of %s", nks.ErrCorrupt, h.Name, h.Size, name)
	}
	return h.Size, nil
}

// isPlain reports whether a file is stored as it is, as Write stores it. A sparse file is not: a few bytes of it
// stand for any number. From 8 GiB on the size is in a PAX record, and there is no other record ever.
func isPlain(h *tar.Header) bool {
	_, large := h.PAXRecords["size"]
	return h.Format == tar.FormatUSTAR && len(h.PAXRecords) == 0 ||
		h.Format == tar.FormatPAX && len(h.PAXRecords) == 1 && large
}

// readManifest reads the manifest and checks what can be checked without the rest.
func (b *reading) readManifest() (err error) {
	if _, err := b.next(manifestName, maxManifest); err != nil {
		return err
	}
	if b.m, err = decodeManifest(b.archive); err != nil {
		return err
	}
	switch {
	case b.Cluster != "" && b.Cluster != b.m.Cluster:
		return fmt.Errorf("the backup is of cluster %.64q, not %s", b.m.Cluster, b.Cluster)
	case b.MaxBytes > 0 && b.m.Raft.Size > b.MaxBytes:
		return fmt.Errorf("its snapshot has %d bytes, the maximum is %d", b.m.Raft.Size, b.MaxBytes)
	case b.Signer != Signer{} && b.m.Format == unsignedFormat:
		return fmt.Errorf("its format, %q, has no signature", unsignedFormat)
	}
	return nil
}

// readKeys reads the key files one after the other. As many as there are processors are opened at a time: to
// derive a public key costs more than all else that is done with the file.
func (b *reading) readKeys(ctx context.Context) error {
	opened := newOpenedKeys(b.m.Keys, b.to.Key != nil)
	defer opened.wipe()
	workers, working := errgroup.WithContext(ctx)
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for i, key := range b.m.Keys {
		if working.Err() != nil {
			break
		}
		content, err := b.readKeyFile(key)
		workers.Go(func() error {
			defer clear(content) // the inline KEK is in it
			if err == nil {
				err = opened.open(working, i, content)
			}
			if err != nil {
				return fmt.Errorf("key %s: %w", key.ID, err)
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.signing, b.signer = opened.signing, opened.signer
	opened.handOver(b.to.Key)
	return nil
}

// readKeyFile reads a key file into one buffer: a copy that is left behind would have the key, which is under an inline KEK.
func (b *reading) readKeyFile(key Key) ([]byte, error) {
	size, err := b.next(keyDir+nks.FileName(key.ID), nks.MaxFile)
	if err != nil {
		return nil, err
	}
	content := make([]byte, size)
	if _, err := io.ReadFull(b.archive, content); err != nil {
		return content, fmt.Errorf("%w: %w", nks.ErrCorrupt, err)
	}
	return content, nil
}

// openedKeys is what the key files of a backup are opened to. Several may be opened at the same time.
type openedKeys struct {
	keks     *kek.Set
	manifest []Key
	active   int        // index of the active key; negative if there is none
	signing  [][32]byte // see fingerprint
	signer   Signer     // that of the active key
	material []Material // nil if nobody wants it
}

func newOpenedKeys(manifest []Key, keep bool) *openedKeys {
	o := &openedKeys{
		keks: inlineKEKs(), manifest: manifest, signing: make([][32]byte, len(manifest)),
		active: slices.IndexFunc(manifest, func(k Key) bool { return k.State == meta.StateActive }),
	}
	if keep {
		o.material = make([]Material, len(manifest))
	}
	return o
}

// open opens the file of a key and checks that it is the one in the manifest.
func (o *openedKeys) open(ctx context.Context, i int, content []byte) error {
	file, err := nks.DecodeFile(content)
	if errors.Is(err, nks.ErrVersion) {
		return fmt.Errorf("the backup is from a newer build: %w", err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", nks.ErrCorrupt, err)
	}
	if key := o.manifest[i]; file.ID != key.ID || file.Check != key.Check {
		return fmt.Errorf("%w: its file contains another key", nks.ErrCorrupt)
	}
	opened, err := o.keks.Decode(ctx, file)
	if err != nil {
		return err
	}
	secret := opened.Material
	if opened.Altered {
		secret.Wipe()
		return fmt.Errorf("%w: MAC of its file", nks.ErrCorrupt)
	}
	if o.material != nil {
		o.material[i] = Material{file.ID, file.Algorithm, file.Check, file.Created, secret}
	} else {
		defer secret.Wipe()
	}
	public, err := secret.Public(file.Algorithm)
	if err != nil {
		return fmt.Errorf("%w: %w", nks.ErrCorrupt, err)
	}
	o.signing[i] = fingerprint(file.Algorithm, public)
	if i == o.active {
		o.signer, err = SignerOf(file.ID, secret)
	}
	return err
}

// handOver gives the material to who wants it.
func (o *openedKeys) handOver(to func(Material)) {
	for _, m := range o.material {
		to(m)
	}
	o.material = nil
}

// wipe overwrites the material that was not handed over.
func (o *openedKeys) wipe() {
	for _, m := range o.material {
		m.Secret.Wipe()
	}
}

// fingerprint stands for a signing key: a public key costs more memory.
func fingerprint(algorithm string, public []byte) [32]byte {
	return sha256.Sum256(append([]byte(algorithm+"\x00"), public...))
}

// readSnapshot reads the snapshot, checks the keyring's part of it, and hands it on.
func (b *reading) readSnapshot() error {
	size, err := b.next(snapshotName, b.m.Raft.Size)
	if err != nil {
		return err
	}
	if size != b.m.Raft.Size {
		return fmt.Errorf("%w: %d bytes, not %d", nks.ErrCorrupt, size, b.m.Raft.Size)
	}
	s, err := meta.This.ReadSnapshot(b.archive)
	if err != nil {
		return snapshotError(err)
	}
	if s.Ring == nil {
		return fmt.Errorf("%w: the keyring's part is missing", nks.ErrCorrupt)
	}
	b.ring, b.m.Host = s.Ring, size-int64(len(s.Head))
	if err := b.compare(); err != nil {
		return err
	}
	part, err := b.converted(s.Head)
	if err != nil {
		return err
	}
	to := io.Discard
	if b.to.Snapshot != nil {
		w, err := b.to.Snapshot(b.m)
		if err != nil {
			return err
		}
		if w != nil {
			to = w
		}
	}
	if _, err := to.Write(part); err != nil {
		return err
	}
	_, err = io.Copy(to, s.Host)
	return err
}

// converted returns the keyring's part of a snapshot of the ring that takes the place of the backup's.
func (b *reading) converted(part []byte) ([]byte, error) {
	if b.to.Convert == nil {
		return part, nil
	}
	was := b.ring
	if b.ring = b.to.Convert(was); b.ring == was {
		return part, nil
	}
	var out bytes.Buffer
	if err := meta.This.WriteSnapshot(&out, b.ring); err != nil {
		return nil, err
	}
	b.m.Raft.Size = int64(out.Len()) + b.m.Host
	return out.Bytes(), nil
}

// compare says which keys of the snapshot are missing, and what else does not fit, so that a start from
// it would fail or go wrong.
func (b *reading) compare() error {
	if b.m.Cluster != clusterText(b.ring) {
		return fmt.Errorf("%w: it is of another cluster", nks.ErrCorrupt)
	}
	fit := 0
	for _, key := range b.ring.Keys {
		i, found := slices.BinarySearchFunc(b.m.Keys, key.ID, func(k Key, id meta.KeyID) int { return compareIDs(k.ID, id) })
		switch {
		case !found || b.m.Keys[i] != keyOf(key):
			if key.State.Opens() {
				b.m.Missing = append(b.m.Missing, key.ID)
			}
			continue
		case b.signing[i] != fingerprint(key.Algorithm, key.Public):
			return fmt.Errorf("%w: the public key of %s does not fit its material", nks.ErrCorrupt, key.ID)
		}
		fit++
	}
	if len(b.m.Missing) > 0 {
		return fmt.Errorf("%w: %v", ErrMissing, b.m.Missing)
	}
	if len(b.m.Keys) > fit {
		return fmt.Errorf("%w: keys that are not in the snapshot", nks.ErrCorrupt)
	}
	if last := b.ring.LastIndex(); last > b.m.Raft.Index {
		return fmt.Errorf("%w: its log index is %d, but the keyring in it is of index %d", nks.ErrCorrupt, b.m.Raft.Index, last)
	}
	return b.compareSigner()
}

// compareSigner requires the signer that is asked for before the host's part is read: no backup of another
// signer is handed on.
func (b *reading) compareSigner() error {
	if b.m.Format == unsignedFormat {
		return nil
	}
	if b.ring.Active() == nil {
		return fmt.Errorf("%w: it has no active key that could have signed the backup", nks.ErrCorrupt)
	}
	if b.Signer != (Signer{}) && b.Signer != b.signer {
		return fmt.Errorf("the backup is signed by %s, not by %s", b.signer, b.Signer)
	}
	return nil
}

// readSignature requires the last file to be the signature of all that comes before it.
func (b *reading) readSignature() error {
	if _, err := b.next(signatureName, ed25519.SignatureSize); err != nil {
		return err
	}
	sum := b.sum.sum()
	signature, err := io.ReadAll(b.archive)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", nks.ErrCorrupt, signatureName, err)
	}
	if !b.signer.verifies(sum, signature) {
		return fmt.Errorf("%w: the active key did not make the signature", nks.ErrCorrupt)
	}
	b.m.Signer = b.signer
	return nil
}

// limitedReader is a reader of at most so many bytes. More of them are an error.
type limitedReader struct {
	io.Reader
	left int64
}

// Read implements io.Reader.
func (r *limitedReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if r.left -= int64(n); r.left < 0 {
		return 0, errors.New("it is longer than MaxBytes allows")
	}
	return n, err
}
