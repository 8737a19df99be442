package meta

import (
	"encoding/hex"
	"fmt"
)

// KeyID names a root key for ever. It is a UUID (RFC 9562); its text is the canonical
// lowercase 8-4-4-4-12 form. The zero value names no key.
type KeyID [16]byte

// String returns the canonical text.
func (id KeyID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// ParseKeyID reads the canonical text and nothing else.
func ParseKeyID(s string) (KeyID, error) {
	var id KeyID
	if len(s) != 36 {
		return KeyID{}, fmt.Errorf("key ID of %d characters, want 36", len(s))
	}
	digits := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil || id.String() != s {
		return KeyID{}, fmt.Errorf("key ID %q is not a lowercase UUID", s)
	}
	return id, nil
}

// MarshalText returns the canonical text.
func (id KeyID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the canonical text.
func (id *KeyID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseKeyID(string(b))
	return err
}

// Identifiers whose text is lowercase hexadecimal.
type (
	// ClusterID is drawn once, for the first command of a cluster.
	ClusterID [16]byte
	// KeystoreID is drawn when a keystore directory is made. A wiped server that comes
	// back has another one, which is how its old holds are told from its new ones.
	KeystoreID [16]byte
	// CheckValue tells a right key from a wrong one without revealing it.
	CheckValue [32]byte
	// Digest is the SHA-256 of a backup.
	Digest [32]byte
)

// MarshalText returns lowercase hexadecimal.
func (c ClusterID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, c[:]), nil }

// UnmarshalText reads hexadecimal.
func (c *ClusterID) UnmarshalText(b []byte) error { return unhex(c[:], b) }

// MarshalText returns lowercase hexadecimal.
func (k KeystoreID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, k[:]), nil }

// UnmarshalText reads hexadecimal.
func (k *KeystoreID) UnmarshalText(b []byte) error { return unhex(k[:], b) }

// MarshalText returns lowercase hexadecimal.
func (c CheckValue) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, c[:]), nil }

// UnmarshalText reads hexadecimal.
func (c *CheckValue) UnmarshalText(b []byte) error { return unhex(c[:], b) }

// MarshalText returns lowercase hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads hexadecimal.
func (d *Digest) UnmarshalText(b []byte) error { return unhex(d[:], b) }

func unhex(dst, src []byte) error {
	if len(src) != hex.EncodedLen(len(dst)) {
		return fmt.Errorf("%d hexadecimal digits, want %d", len(src), hex.EncodedLen(len(dst)))
	}
	_, err := hex.Decode(dst, src)
	return err
}
