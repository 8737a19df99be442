package keyring

import (
	"archive/tar"
	"io"
)

// SignerOfBackups is who signs backups while the key of that ID, with this material, is the active one, and
// SignBackup the signature.
var (
	SignerOfBackups = signerOfBackups
	SignBackup      = signBackup
)

// PlainHeader reports whether a file of a backup is stored as it is.
func PlainHeader(h *tar.Header) bool { return plainHeader(h) }

// DecodeManifest reads one.
func DecodeManifest(r io.Reader) (Manifest, error) { return decodeManifest(r) }
