// Package backup writes and reads the archives that clusters are backed up to.
//
// # Archive
//
// A backup is a file of age (https://c2sp.org/age) that holds a tar archive of these files, in this order:
//
//	manifest.json               the JSON of a [Manifest]
//	keystore/<key ID>.nks.json  for each key of the manifest, in its order: its key file, see package nks
//	snapshot                    a raft snapshot: the keyring's part, see package meta, and the host's part
//	signature                   64 bytes
//
// Each file is stored as it is: its header is that of USTAR or, from 8 GiB on, has its size in a PAX record. The
// key files are wrapped under an inline KEK alone, so they open without anything else. Nothing follows the archive.
//
// # Signature
//
// The key that is active in the snapshot signs, with Ed25519 (RFC 8032). The seed of the private key is
//
//	HKDF-SHA256(secret = root key, salt = none, info = "keyring v2 backup" || key ID), 32 bytes
//
// and what it signs is "keyring backup 2" and the SHA-256 of the archive, from its first byte to the last of
// the header of the file with the signature.
//
// # Versions
//
// This is the format "keyring backup 2". Archives of "keyring backup 1" have no signature, and are the same
// otherwise.
package backup

import (
	"bytes"
	"context"
	"crypto/fips140"
	"errors"
	"io"
	"time"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
)

// Format is the format that is written.
const Format = "keyring backup 2"

// unsignedFormat is the other format that is read.
const unsignedFormat = "keyring backup 1"

// The names of the files in an archive. Those of keys are in a directory.
const (
	manifestName  = "manifest.json"
	keyDir        = "keystore/"
	snapshotName  = "snapshot"
	signatureName = "signature"
)

// Manifest says what is in a backup. Its JSON has the members in this order.
type Manifest struct {
	Format  string
	Cluster string // the ID of the cluster, as text
	Created time.Time
	Raft    raft.SnapshotMeta // of the snapshot
	Keys    []Key             // by ID

	Missing []meta.KeyID `json:"-"` // keys of the snapshot that something may be sealed under, and that are not in Keys
	Host    int64        `json:"-"` // how many bytes of the snapshot are the host's
	SHA256  [32]byte     `json:"-"` // of the file
	Signer  Signer       `json:"-"` // zero if the format has no signature
}

// Key is a key in a backup.
type Key struct {
	ID    meta.KeyID
	State meta.State // in the snapshot
	Check meta.CheckValue
}

// Material is a key with its secret.
type Material struct {
	ID        meta.KeyID
	Algorithm string
	Check     meta.CheckValue
	Created   time.Time
	Secret    *nks.Material // its last owner wipes it
}

// ErrMissing is matched by the error about a backup that lacks keys of its snapshot: see Manifest.Missing.
var ErrMissing = errors.New("the backup lacks keys of its snapshot")

// errFIPS says that there are no backups where only approved algorithms are allowed.
func errFIPS() error {
	if fips140.Enforced() {
		return errors.New("age is not allowed in FIPS 140-only mode")
	}
	return nil
}

// inlineKEKs is the set of KEKs that the key files of an archive are wrapped under.
func inlineKEKs() *kek.Set { return kek.NewSet([]kek.KEK{kek.Inline()}, nil) }

func compareIDs(a, b meta.KeyID) int { return bytes.Compare(a[:], b[:]) }

// keyOf is what a manifest says of a key.
func keyOf(k *meta.Key) Key { return Key{k.ID, k.State, k.Check} }

// clusterText is what a manifest says of a ring's cluster.
func clusterText(r *meta.Ring) string {
	text, _ := r.Cluster.MarshalText() // never fails
	return string(text)
}

// contextWriter is a writer that its context ends.
type contextWriter struct {
	ctx context.Context
	io.Writer
}

// Write implements io.Writer.
func (w contextWriter) Write(b []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.Writer.Write(b)
}

// contextReader is a reader that its context ends.
type contextReader struct {
	ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (r contextReader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(b)
}
