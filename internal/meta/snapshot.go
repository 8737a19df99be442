package meta

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SnapshotMagic begins every raft snapshot that has a part of the keyring's.
const SnapshotMagic = "keyring-snapshot"

// SnapshotHead is how many bytes come before the section: the magic, its length and its SHA-256.
const SnapshotHead = len(SnapshotMagic) + 8 + sha256.Size

// maxSection bounds the section, far above 100,000 keys.
const maxSection = 1 << 30

// WriteSnapshot writes the keyring's part of a raft snapshot. It encodes the ring twice, to know its
// SHA-256 and length first: the ring may be large, and its section is never in memory at once.
func (b Build) WriteSnapshot(w io.Writer, r *Ring) error {
	var size counter
	sum := sha256.New()
	if err := b.EncodeRing(io.MultiWriter(sum, &size), r); err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint64([]byte(SnapshotMagic), uint64(size))
	out := bufio.NewWriterSize(w, 64<<10)
	out.Write(sum.Sum(head)) // Flush has the error
	if err := errors.Join(b.EncodeRing(out, r), out.Flush()); err != nil {
		return fmt.Errorf("write keyring snapshot: %w", err)
	}
	return nil
}

// counter is a writer that counts bytes.
type counter uint64

// Write never fails.
func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

// Snapshot is the keyring's part of a raft snapshot.
type Snapshot struct {
	Ring *Ring     // nil if the snapshot has no part of the keyring's
	Head []byte    // all that was read
	Host io.Reader // the host's part: what follows Head or, if Ring is nil, the whole snapshot
}

// ReadSnapshot reads the keyring's part of a raft snapshot and no byte more. Of a snapshot without one it
// reads as much as it takes to know that. An error matches ErrMalformed or ErrVersion, or it is one of r's.
func (b Build) ReadSnapshot(r io.Reader) (Snapshot, error) {
	head, err := readSection(r)
	if err != nil {
		return Snapshot{}, err
	}
	if !bytes.HasPrefix(head, []byte(SnapshotMagic)) {
		return Snapshot{Head: head, Host: io.MultiReader(bytes.NewReader(head), r)}, nil
	}
	ring, err := b.decodeSection(head)
	if err != nil {
		return Snapshot{}, err
	}
	return Snapshot{Ring: ring, Head: head, Host: r}, nil
}

// readSection reads the section and what comes before it.
func readSection(r io.Reader) ([]byte, error) {
	head := make([]byte, SnapshotHead)
	n, err := io.ReadFull(r, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("read keyring snapshot: %w", err)
	}
	if !bytes.HasPrefix(head[:n], []byte(SnapshotMagic)) {
		return head[:n], nil
	}
	if n < len(head) {
		return nil, fmt.Errorf("%w: the snapshot is cut short", ErrMalformed)
	}
	size := binary.BigEndian.Uint64(head[len(SnapshotMagic):])
	if size > maxSection {
		return nil, fmt.Errorf("%w: a snapshot of %d bytes", ErrMalformed, size)
	}
	// The size is only what the head says: a buffer has at most twice of what has come.
	all := bytes.NewBuffer(head)
	_, err = io.CopyN(all, r, int64(size))
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("%w: the snapshot is cut short", ErrMalformed)
	}
	if err != nil {
		return nil, fmt.Errorf("read keyring snapshot: %w", err)
	}
	return all.Bytes(), nil
}

// decodeSection checks what readSection has read and decodes it.
func (b Build) decodeSection(head []byte) (*Ring, error) {
	section := head[SnapshotHead:]
	if sum := sha256.Sum256(section); !bytes.Equal(sum[:], head[len(SnapshotMagic)+8:SnapshotHead]) {
		return nil, fmt.Errorf("%w: the snapshot is damaged", ErrMalformed)
	}
	return b.DecodeRing(section)
}
