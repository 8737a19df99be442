package nks

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"hash"
)

const (
	materialVersion = 1
	checkVersion    = 1
	checkInfo       = "keyring v1 check"

	maxSigning = 4096 // RSA with 2048 bits takes 1220
)

// Material is the secret part of a root key. It is immutable until it is wiped,
// and may be shared between goroutines until then.
//
// It comes from [Generate] or [Decode]. The zero Material has nothing in it, like
// one that was wiped: asking it for key bytes panics, so that nothing is ever sealed
// under a key of zeros. Pass it by pointer; a copy by value shares the bytes, and
// wiping either leaves the other with zeros.
type Material struct {
	// A closure, because nothing that works by reflection can look into one. A pointer
	// would not do: fmt follows it when the verb does not fit, as in Sprintf("%s", x)
	// where x has a Material in an unexported field.
	reveal func() *secret
}

// secret has exported fields for the tests that walk them.
type secret struct {
	Root    [32]byte
	Signing []byte
}

func hide(s *secret) *Material {
	return &Material{reveal: func() *secret { return s }}
}

// Generate makes the material of a new root key, with a signing key for algorithm:
// RS256 (RSA 2048), ES256 (P-256) or EdDSA (Ed25519).
func Generate(algorithm string) (*Material, error) {
	signing, err := generateSigning(algorithm)
	if err != nil {
		return nil, err
	}
	s := &secret{Signing: signing}
	rand.Read(s.Root[:]) // never fails
	return hide(s), nil
}

// Root is the root key. It is the Material's own memory: not to be changed, and
// gone with Wipe.
func (m *Material) Root() *[32]byte { return &m.reveal().Root }

// Signing is the PKCS #8 DER of the private signing key. It is the Material's own
// memory: not to be changed, and gone with Wipe.
func (m *Material) Signing() []byte { return m.reveal().Signing }

// Encode returns the material as KEKs wrap it and backups hold it. The caller
// overwrites the result after use.
func (m *Material) Encode() []byte {
	s := m.reveal()
	b := make([]byte, 0, 1+4+len(s.Root)+4+len(s.Signing))
	b = append(b, materialVersion)
	b = appendField(b, s.Root[:])
	return appendField(b, s.Signing)
}

// Decode is the reverse of Encode, and accepts nothing else. It keeps no part of
// b, and does not parse the signing key.
func Decode(b []byte) (*Material, error) {
	if len(b) == 0 || b[0] != materialVersion {
		return nil, fmt.Errorf("%w: material: not of version %d", ErrFormat, materialVersion)
	}
	root, rest, ok := cutField(b[1:])
	if !ok || len(root) != len(secret{}.Root) {
		return nil, fmt.Errorf("%w: material: root key", ErrFormat)
	}
	signing, rest, ok := cutField(rest)
	if !ok || len(signing) == 0 || len(signing) > maxSigning {
		return nil, fmt.Errorf("%w: material: signing key", ErrFormat)
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%w: material: %d bytes after its end", ErrFormat, len(rest))
	}
	return hide(&secret{Root: [32]byte(root), Signing: bytes.Clone(signing)}), nil
}

// Check returns the check value of the key with this ID and algorithm. It tells
// this material from any other and reveals nothing of it. Compare with hmac.Equal.
func (m *Material) Check(id [16]byte, algorithm string) [32]byte {
	s := m.reveal()
	return s.mac(checkInfo+string(id[:]), func(h hash.Hash) {
		h.Write([]byte{checkVersion})
		writeField(h, id[:])
		writeField(h, []byte(algorithm))
		writeField(h, s.Root[:])
		writeField(h, s.Signing)
	})
}

// Clone returns a copy that shares no memory with m.
func (m *Material) Clone() *Material {
	s := m.reveal()
	return hide(&secret{Root: s.Root, Signing: bytes.Clone(s.Signing)})
}

// Wipe overwrites the material. Nobody may be using it; wiping it again does nothing.
func (m *Material) Wipe() {
	if m == nil || m.reveal == nil {
		return
	}
	s := m.reveal()
	clear(s.Root[:])
	clear(s.Signing)
	m.reveal = nil
}
