package keyringtest

// Leaks: secrets that lie where they must not.

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"strings"
)

// spellings are the ways in which a secret could stand in a file: raw, hex in both cases,
// and base64 at each of its three alignments, without the characters at both ends that
// depend on what stands beside it.
func spellings(secret []byte) [][]byte {
	h := hex.EncodeToString(secret)
	all := [][]byte{secret, []byte(h), []byte(strings.ToUpper(h))}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for skip := range 3 {
			whole := (len(secret) - skip) / 3 * 3
			all = append(all, []byte(enc.EncodeToString(secret[skip:skip+whole])))
		}
	}
	return all
}

// Leaks returns the secrets that data has in it, however they are spelt. Of a long secret
// any 32 bytes in a row from its middle are enough.
func Leaks(data []byte, secrets [][]byte) (n int) {
	for _, s := range secrets {
		if len(s) > 32 {
			s = s[len(s)/2-16 : len(s)/2+16]
		}
		for _, spelt := range spellings(s) {
			if bytes.Contains(data, spelt) {
				n++
				break
			}
		}
	}
	return n
}
