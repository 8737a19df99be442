package nks

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"hash"

	erase "example.com/keyring/internal/secret"
)

const macInfo = "keyring v2 file"

// MAC returns the MAC of a file of version 2 that this material was wrapped for: of every member but MAC and Sum. The
// Version of the file is taken for 2. Compare with Authentic.
func (m *Material) MAC(f *File) [32]byte {
	second := *f
	second.Version = 2
	text := second.appendText(make([]byte, 0, f.textSize()), nil)
	defer clear(text) // an inline KEK is in it
	return m.reveal().mac(macInfo+string(f.ID[:]), func(h hash.Hash) { h.Write(text) })
}

// mac returns the HMAC-SHA256 of what write writes, under the key that HKDF derives from the root for info.
func (s *secret) mac(info string, write func(hash.Hash)) (sum [32]byte) {
	erase.Do(func() {
		key, err := hkdf.Key(sha256.New, s.Root[:], nil, info, sha256.Size)
		if err != nil {
			panic("nks: " + err.Error()) // the lengths are constants that HKDF allows
		}
		defer clear(key)
		h := hmac.New(sha256.New, key)
		write(h)
		h.Sum(sum[:0])
	})
	return sum
}

// Authentic reports whether the file is as it was written by a server that had this material. A file of version 1 has
// nothing to tell that by, and is not. A file that was written for the same key earlier is: the MAC does not tell the
// latest.
func (m *Material) Authentic(f *File) bool {
	if f.version() < 2 {
		return false
	}
	mac := m.MAC(f)
	return hmac.Equal(mac[:], f.MAC[:])
}
