package nks

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

const (
	// MaxFile is the size in bytes of the largest file that is written or read.
	MaxFile = 1 << 20

	// FileVersion is the newest version of files that is read and written.
	FileVersion = 2

	aadVersion = 1
	maxWrapped = 16
	maxKEK     = 128
	timeLayout = "2006-01-02T15:04:05.000000000Z"
)

// File is the content of a key file: one root key, wrapped for one server.
type File struct {
	Version   int // of the format, 1 or 2; zero is 1
	ID        [16]byte
	Algorithm string    // of the signing key: RS256, ES256 or EdDSA
	Check     [32]byte  // Material.Check, as the raft state has it
	Created   time.Time // a note for people; in version 1 nothing authenticates it
	Wrapped   []Wrapped // the same material under 1 to 16 KEKs, each of another name
	MAC       [32]byte  // Material.MAC of the rest; zero in version 1, which has none
}

// Wrapped is the encoded material under one KEK.
type Wrapped struct {
	KEK        string // the KEK's ID, 1 to 128 bytes of printable ASCII
	Version    string // which version of the KEK wrapped it, as KEK; empty if the KEK has none, and in version 1 of files
	Ciphertext []byte // what KEK.Wrap returned for Material.Encode and File.AAD
}

// AAD returns what every KEK binds its ciphertext to: ID, algorithm and check value.
func (f *File) AAD() []byte {
	b := make([]byte, 0, 1+4+len(f.ID)+4+len(f.Algorithm)+4+len(f.Check))
	b = append(b, aadVersion)
	b = appendField(b, f.ID[:])
	b = appendField(b, []byte(f.Algorithm))
	return appendField(b, f.Check[:])
}

// Encode returns the bytes of the file. It refuses what DecodeFile would refuse.
func (f *File) Encode() ([]byte, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	b := withSum(f.appendText(make([]byte, 0, f.textSize()), f.MAC[:]))
	if len(b) > MaxFile {
		return nil, fmt.Errorf("%w: file: %d bytes are more than %d", ErrFormat, len(b), MaxFile)
	}
	return b, nil
}

// DecodeFile is the reverse of Encode, and accepts nothing else. It keeps no part
// of b, and allocates no more than a small multiple of len(b). It does not say
// whether the file is authentic: the KEK, the check value and Material.MAC do.
func DecodeFile(b []byte) (*File, error) {
	if len(b) > MaxFile {
		return nil, fmt.Errorf("%w: file: %d bytes are more than %d", ErrFormat, len(b), MaxFile)
	}
	version, err := fileVersion(b)
	if err != nil {
		return nil, err
	}
	if err := checkSum(b); err != nil {
		return nil, err
	}
	f, err := parseText(b, version)
	if err != nil {
		return nil, err
	}
	if err := f.validate(); err != nil {
		return nil, err
	}
	return f, nil
}

// version is Version, with zero for 1.
func (f *File) version() int { return max(1, f.Version) }

func (f *File) validate() error {
	if f.Version < 0 || f.Version > FileVersion || f.version() == 1 && f.MAC != [32]byte{} {
		return fmt.Errorf("%w: file: version %d, or a MAC that this version does not have", ErrFormat, f.Version)
	}
	if !knownAlgorithm(f.Algorithm) {
		return fmt.Errorf("%w: file: unknown algorithm %.16q, %w", ErrFormat, f.Algorithm, ErrVersion)
	}
	if y := f.Created.UTC().Year(); y < 0 || y > 9999 {
		return fmt.Errorf("%w: file: Created in the year %d", ErrFormat, y)
	}
	if n := len(f.Wrapped); n == 0 || n > maxWrapped {
		return fmt.Errorf("%w: file: %d entries in Wrapped, not 1 to %d", ErrFormat, n, maxWrapped)
	}
	seen := make(map[string]bool, len(f.Wrapped))
	for i, w := range f.Wrapped {
		switch {
		case !validKEK(w.KEK):
			return fmt.Errorf("%w: file: Wrapped[%d]: name of the KEK", ErrFormat, i)
		case seen[w.KEK]:
			return fmt.Errorf("%w: file: Wrapped[%d]: the same KEK again", ErrFormat, i)
		case len(w.Ciphertext) == 0:
			return fmt.Errorf("%w: file: Wrapped[%d]: no ciphertext", ErrFormat, i)
		case w.Version != "" && (f.version() == 1 || !validKEK(w.Version)):
			return fmt.Errorf("%w: file: Wrapped[%d]: version of the KEK", ErrFormat, i)
		}
		seen[w.KEK] = true
	}
	return nil
}

func validKEK(name string) bool {
	for i := range len(name) {
		if name[i] < ' ' || name[i] > '~' {
			return false
		}
	}
	return 0 < len(name) && len(name) <= maxKEK
}

// textSize is at least the size of the encoded file.
func (f *File) textSize() int {
	n := 512
	for _, w := range f.Wrapped {
		n += 128 + 2*len(w.KEK) + 2*len(w.Version) + base64.StdEncoding.EncodedLen(len(w.Ciphertext))
	}
	return n
}

// sumEnd is what follows the digits of the Sum, and sumSize both together.
const (
	sumEnd  = `"` + atEnd
	sumSize = 2*sha256.Size + len(sumEnd)
)

// withSum puts the Sum into text, in place if there is room.
func withSum(text []byte) []byte {
	sum := sha256.Sum256(text)
	b := hex.AppendEncode(text[:len(text)-len(sumEnd)], sum[:])
	return append(b, sumEnd...)
}

// checkSum comes before parsing: a damaged file is called damaged, whatever the damage would
// look like to a parser.
func checkSum(b []byte) error {
	n := len(b) - sumSize
	if n < 0 {
		return fmt.Errorf("%w: file: cut short", ErrFormat)
	}
	h := sha256.New()
	h.Write(b[:n])
	io.WriteString(h, sumEnd)
	var want [sumSize]byte
	hex.Encode(want[:], h.Sum(nil))
	copy(want[hex.EncodedLen(sha256.Size):], sumEnd)
	if !bytes.Equal(b[n:], want[:]) {
		return fmt.Errorf("%w: file: damaged: not what its Sum was taken of", ErrFormat)
	}
	return nil
}
