package keyring

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/fips140"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"filippo.io/age"
)

// parts says what is done with the parts of a backup as they are read. Nil does nothing.
type parts struct {
	key func(arrival) // takes over the secret
	// convert returns the ring that takes the place of the backup's.
	convert func(*meta.Ring) *meta.Ring
	// snapshot says where the snapshot goes to, if anywhere. All that comes before the host's part of it
	// has been found good by then, Raft.Size is that of what will be written, and Host is known.
	snapshot func(Manifest) (io.Writer, error)
}

// reading is one pass over a backup.
type reading struct {
	VerifyOptions
	parts
	archive *tar.Reader
	sum     *archiveSum
	m       Manifest
	made    [][32]byte   // of each key of the manifest: see madeOf
	signer  BackupSigner // of its active key
	ring    *meta.Ring   // what is in the snapshot now
}

// readBackup reads a backup to its end and checks all of it. Beside the manifest it returns the ring of
// the snapshot that it has handed on.
func readBackup(ctx context.Context, r io.Reader, o VerifyOptions, p parts) (Manifest, *meta.Ring, error) {
	if fips140.Enforced() {
		return Manifest{}, nil, errors.New("age is not allowed in FIPS 140-only mode")
	}
	if o.MaxBytes < 0 {
		return Manifest{}, nil, fmt.Errorf("MaxBytes is %d", o.MaxBytes)
	}
	b := &reading{VerifyOptions: o, parts: p, sum: newArchiveSum()}
	defer b.sum.sum() // its goroutine ends
	sum, err := digest(func(d io.Writer) error { return b.read(ctx, io.TeeReader(until{ctx, r}, d)) })
	b.m.SHA256 = sum
	if err == nil && o.Digest != [32]byte{} && o.Digest != sum {
		err = fmt.Errorf("the backup's SHA-256 is %x, not %x", sum, o.Digest)
	}
	return b.m, b.ring, err
}

func (b *reading) read(ctx context.Context, r io.Reader) error {
	opened, err := age.Decrypt(r, b.Identities...)
	if err != nil {
		return err
	}
	plain := &capped{opened, b.MaxBytes, b.MaxBytes > 0}
	b.archive = tar.NewReader(io.TeeReader(plain, b.sum))
	if err := b.readManifest(); err != nil {
		return err
	}
	for _, key := range b.m.Keys {
		if err := b.readKey(ctx, key); err != nil {
			return fmt.Errorf("key %s: %w", key.ID, err)
		}
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
		return fmt.Errorf("%w: the archive goes on after its last file, or is cut short", ErrCorrupt)
	}
	if n, err := io.Copy(io.Discard, plain); err != nil || n > 0 {
		return errors.Join(fmt.Errorf("%w: something follows the archive", ErrCorrupt), err)
	}
	return nil
}

// next goes on to a file of the archive that has to be there.
func (b *reading) next(name string, limit int64) (size int64, err error) {
	h, err := b.archive.Next()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if h.Name != name || h.Typeflag != tar.TypeReg || h.Size > limit || !plainHeader(h) {
		return 0, fmt.Errorf("%w: %.128q of %d bytes in place of %s", ErrCorrupt, h.Name, h.Size, name)
	}
	return h.Size, nil
}

// plainHeader reports whether a file is stored as it is, as Backup stores it: no sparse one, of which a few
// bytes stand for any number. Of 8 GiB and more the size is in a record of PAX, and nothing else is ever.
func plainHeader(h *tar.Header) bool {
	_, large := h.PAXRecords["size"]
	return h.Format == tar.FormatUSTAR && len(h.PAXRecords) == 0 ||
		h.Format == tar.FormatPAX && len(h.PAXRecords) == 1 && large
}

// readManifest reads it and checks what it has by itself.
func (b *reading) readManifest() (err error) {
	if _, err := b.next(backupManifest, maxManifest); err != nil {
		return err
	}
	if b.m, err = decodeManifest(b.archive); err != nil {
		return err
	}
	switch {
	case b.Cluster != "" && b.Cluster != b.m.Cluster:
		return fmt.Errorf("the backup is of cluster %.64q, not %s", b.m.Cluster, b.Cluster)
	case b.MaxBytes > 0 && b.m.Raft.Size > b.MaxBytes:
		return fmt.Errorf("its snapshot has %d bytes, at most %d are allowed", b.m.Raft.Size, b.MaxBytes)
	case b.Signer != BackupSigner{} && b.m.Format == unsignedFormat:
		return fmt.Errorf("it is of the format %q, which is not signed", unsignedFormat)
	}
	return nil
}

// readKey reads the file of a key and opens it.
func (b *reading) readKey(ctx context.Context, key BackupKey) error {
	if _, err := b.next(backupKeys+nks.FileName(key.ID), nks.MaxFile); err != nil {
		return err
	}
	content, err := io.ReadAll(b.archive)
	defer clear(content) // an inline KEK is in it
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	file, err := nks.DecodeFile(content)
	if errors.Is(err, nks.ErrVersion) {
		return fmt.Errorf("the backup is of a newer build: %w", err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if file.ID != key.ID || file.Check != key.Check {
		return fmt.Errorf("%w: its file is another key's", ErrCorrupt)
	}
	secret, _, err := kek.NewSet([]KEK{InlineKEK()}, nil).Decode(ctx, file)
	if err != nil {
		return err
	}
	if err := b.noteKey(key, file.Algorithm, secret); err != nil {
		secret.Wipe()
		return err
	}
	if b.key == nil {
		secret.Wipe()
		return nil
	}
	b.key(arrival{key.ID, file.Algorithm, file.Check, file.Created, secret})
	return nil
}

// noteKey keeps what has to fit the ring.
func (b *reading) noteKey(key BackupKey, algorithm string, secret *nks.Material) error {
	public, err := secret.Public(algorithm)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	b.made = append(b.made, madeOf(algorithm, public))
	if key.State == StateActive {
		b.signer, err = signerOfBackups(key.ID, secret)
	}
	return err
}

// madeOf stands for the signing key of a key.
func madeOf(algorithm string, public []byte) [32]byte {
	return sha256.Sum256(append([]byte(algorithm+"\x00"), public...))
}

// readSnapshot reads the snapshot, checks the keyring's section of it, and hands it on.
func (b *reading) readSnapshot() error {
	size, err := b.next(backupSnapshot, b.m.Raft.Size)
	if err != nil {
		return err
	}
	if size != b.m.Raft.Size {
		return fmt.Errorf("%w: %d bytes, not %d", ErrCorrupt, size, b.m.Raft.Size)
	}
	s, err := meta.This.ReadSnapshot(b.archive)
	if err != nil {
		return snapshotError(err)
	}
	if s.Ring == nil {
		return fmt.Errorf("%w: it has no part of the keyring's", ErrCorrupt)
	}
	section := s.Head
	b.ring = s.Ring
	b.m.Host = size - int64(len(section))
	if err := b.compare(); err != nil {
		return err
	}
	if section, err = b.converted(section); err != nil {
		return err
	}
	var to io.Writer
	if b.snapshot != nil {
		if to, err = b.snapshot(b.m); err != nil {
			return err
		}
	}
	if to == nil {
		to = io.Discard
	}
	if _, err := to.Write(section); err != nil {
		return err
	}
	_, err = io.Copy(to, b.archive)
	return err
}

// converted returns the section of what takes the place of the ring.
func (b *reading) converted(section []byte) ([]byte, error) {
	if b.convert == nil {
		return section, nil
	}
	was := b.ring
	if b.ring = b.convert(was); b.ring == was {
		return section, nil
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
	want := manifestOf(b.ring, b.m.Raft, b.m.Created)
	if want.Cluster != b.m.Cluster {
		return fmt.Errorf("%w: it is of another cluster", ErrCorrupt)
	}
	fit := 0
	for i, key := range want.Keys {
		at, found := slices.BinarySearchFunc(b.m.Keys, key.ID, func(k BackupKey, id KeyID) int { return compareIDs(k.ID, id) })
		switch k := b.ring.Keys[i]; {
		case !found || b.m.Keys[at] != key:
			if key.State.Opens() {
				b.m.Missing = append(b.m.Missing, key.ID)
			}
			continue
		case b.made[at] != madeOf(k.Algorithm, k.Public):
			return fmt.Errorf("%w: the public key of %s is not that of its material", ErrCorrupt, key.ID)
		}
		fit++
	}
	if len(b.m.Missing) > 0 {
		return fmt.Errorf("%w: %v are in the snapshot, and not in the backup", ErrKeyMissing, b.m.Missing)
	}
	if len(b.m.Keys) > fit {
		return fmt.Errorf("%w: keys that are not in the snapshot", ErrCorrupt)
	}
	if last := b.ring.LastIndex(); last > b.m.Raft.Index {
		return fmt.Errorf("%w: it is of log index %d, and has what was made at %d", ErrCorrupt, b.m.Raft.Index, last)
	}
	return b.compareSigner()
}

// compareSigner comes before the host's part: a backup of somebody else's goes no further.
func (b *reading) compareSigner() error {
	if b.m.Format == unsignedFormat {
		return nil
	}
	if b.ring.Active() == nil {
		return fmt.Errorf("%w: it has no active key, which would have signed the backup", ErrCorrupt)
	}
	if b.Signer != (BackupSigner{}) && b.Signer != b.signer {
		return fmt.Errorf("the backup is signed by %s, not by %s", b.signer, b.Signer)
	}
	return nil
}

// readSignature requires the last file to be the signature of all that comes before it.
func (b *reading) readSignature() error {
	if _, err := b.next(backupSignature, ed25519.SignatureSize); err != nil {
		return err
	}
	sum := b.sum.sum()
	signature, err := io.ReadAll(b.archive)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, backupSignature, err)
	}
	if !b.signer.signs(sum, signature) {
		return fmt.Errorf("%w: the signature is not that of the active key", ErrCorrupt)
	}
	b.m.Signer = b.signer
	return nil
}

// capped is a reader of at most so many bytes, if it is.
type capped struct {
	io.Reader
	left int64
	is   bool
}

func (r *capped) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if r.left -= int64(n); r.is && r.left < 0 {
		return 0, errors.New("it has more bytes than MaxBytes allows")
	}
	return n, err
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
