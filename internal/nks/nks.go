// Package nks is the secret part of a root key, its check value, and the files named <key id>.nks.json that hold it,
// wrapped, on one server.
//
// It turns values into bytes and back. It opens no file and knows no KEK: the caller wraps [Material.Encode] under each
// KEK with [File.AAD], and puts the results into a [File].
//
// # What protects what
//
// The KEK's AEAD keeps material secret and binds it to key ID, signing algorithm
// and check value. The check value tells the right key from any other, once it is
// compared with the one in the raft state. The Sum of a file authenticates
// nothing, because anyone can compute it: it tells a damaged file from a wrong KEK.
// In version 1 of files nothing else covers Created and the set of entries. From version 2 on the MAC does, under a
// key that follows from the root key: who opens a file sees that it was altered. It tells neither the latest of several files
// of one key, nor who made a key.
//
// The bytes of a [Material] are out of reach of fmt, log, slog and every encoder or
// dumper that works by reflection, however deep in other values it lies. The byte
// slices that its methods return are not protected.
//
// # Fields
//
// u32(n) is four bytes, big endian. field(b) is u32(len(b)) followed by b. A key
// ID is 16 bytes; as text it is a UUID in 8-4-4-4-12 lowercase hex digits.
//
// # Material, version 1
//
//	0x01 | field(root) | field(signing)
//
// The root is 32 bytes. The signing key is the PKCS #8 DER of a private key, of 1
// to 4096 bytes, and is not parsed. Nothing follows. KEKs wrap these bytes.
//
// # Check value, version 1
//
//	k     = HKDF-SHA256(secret root, no salt, info "keyring v1 check" | id, 32 bytes)
//	check = HMAC-SHA256(k, 0x01 | field(id) | field(algorithm) | field(root) | field(signing))
//
// # AAD, version 1
//
//	0x01 | field(id) | field(algorithm) | field(check)
//
// # File, version 1
//
// A file is a JSON text of at most 1 MiB, and exactly one text stands for given
// content: this one, with a newline after every line, the last included.
//
//	{
//	  "Version": 1,
//	  "ID": "<key ID>",
//	  "Algorithm": "<EdDSA, ES256 or RS256>",
//	  "Check": "<check value>",
//	  "Created": "<yyyy-mm-ddThh:mm:ss.nnnnnnnnnZ>",
//	  "Wrapped": [
//	    {
//	      "KEK": "<name of the KEK>",
//	      "Ciphertext": "<wrapped material>"
//	    }
//	  ],
//	  "Sum": "<64 lowercase hex digits>"
//	}
//
// Byte strings are base64 with padding, RFC 4648 section 4. Created is UTC, in the
// years 0000 to 9999, always with nine digits of nanoseconds. There are 1 to 16
// entries in Wrapped, parted by a comma after the brace, in the order they were
// given. A KEK's name is 1 to 128 bytes from 0x20 to 0x7e, no two are the same,
// and only the quotation mark and the backslash in it are escaped, each by a
// backslash. No ciphertext is empty. The Sum is the SHA-256 of the same text with
// nothing between the quotation marks of the Sum.
//
// # File, version 2
//
// It is version 1 with the number 2, with one more member before the Sum, and with one more that an entry may have
// between KEK and Ciphertext, spelled as a KEK's name is: the version of the KEK that has wrapped it.
//
//	      "Version": "<version of the KEK>",
//	...
//	  ],
//	  "MAC": "<MAC>",
//	  "Sum": "<64 lowercase hex digits>"
//	}
//
//	k   = HKDF-SHA256(secret root, no salt, info "keyring v2 file" | id, 32 bytes)
//	mac = HMAC-SHA256(k, the text with nothing between the quotation marks of MAC and of Sum)
//
// The MAC comes before the Sum, which covers it. That text has every member, and every entry in its place; as one text stands
// for given content, there is nothing else to put into a canonical form.
//
// # Later versions
//
// Readers refuse every other text and every other version. A new member or a new
// algorithm is a new version. A file of any version has at most 1 MiB and begins with the same
// line and the number of its version, of 1 to 9 digits and without a zero before it, so that a build which
// does not read it knows it for one: see [ErrVersion].
//
// # Nomad's files
//
// The key files of HashiCorp Nomad, 1.4 to 2.x, can be read but not written. One is a JSON
// object; here are its members, with those that are read under them:
//
//	before 1.8.3              from 1.8.3 on
//	Meta                      Meta
//	  KeyID Algorithm           KeyID Algorithm
//	  CreateTime                CreateTime
//	KEK                       KEK
//	DEK                       WrappedDEK
//	                            ciphertext
//	RSAKey                    WrappedRSAKey
//	                            ciphertext
//	                          Provider, not read
//	                          ProviderID
//
// KEK is 32 bytes. What is wrapped, AES-256-GCM with a 12-byte nonce before and the tag after
// it and no additional data, is the root key of 32 bytes and, unless absent or {}, the PKCS #1
// DER of an RSA key of 2048 bits. As [Material] the root key stays what it is. Its signing key
// is the RSA key, for RS256; if there is none, the Ed25519 key whose seed is the root key, for
// EdDSA. ProviderID is "aead", or "aead." and a name, for a KEK that lies in the file; a file of
// any other has no KEK. Data is AES-256-GCM under the root key itself, nonce first, with the text
// of the key ID as additional data.
//
// Nothing binds a key to the ID in its file, and there is no check value. The tags tell whether
// KEK, root key and RSA key belong together, and nothing else. In Meta, all but Algorithm can change
// unseen, KeyID too; so can Provider, the name in ProviderID, and what is in key_info. None of
// them changes the key. Any other flip of a bit is refused; so is a member that is there twice,
// and one at the top or of what is wrapped that is not known: it may be the RSA key under a
// damaged name. A file from which the RSA key was taken whole is that of another key, for EdDSA.
//
// Their vectors are in testdata/nomad, with nomad.py, which made them without this package.
//
// # Vectors
//
// testdata/vectors.json has three keys; testdata/vectors.py made them without this
// package. The first has the root 000102...1e1f and the Ed25519 key of test 1 in RFC 8032:
//
//	id        00112233445566778899aabbccddeeff
//	algorithm EdDSA
//	signing   302e020100300506032b6570042204209d61b19deffd5a60ba844af492ec2cc4
//	          4449c5697b326919703bac031cae7f60
//	material  0100000020000102030405060708090a0b0c0d0e0f101112131415161718191a
//	          1b1c1d1e1f00000030302e020100300506032b6570042204209d61b19deffd5a
//	          60ba844af492ec2cc44449c5697b326919703bac031cae7f60
//	check     0fd8dbf16eca01ac69cd43b3841e38c13094fb3864dbb0754b7249aa3f11e4eb
//	aad       010000001000112233445566778899aabbccddeeff0000000545644453410000
//	          00200fd8dbf16eca01ac69cd43b3841e38c13094fb3864dbb0754b7249aa3f11
//	          e4eb
//
// and with the ciphertext f0f1...feff under the one KEK "inline", the file
// 00112233-4455-6677-8899-aabbccddeeff.nks.json is
//
//	{
//	  "Version": 1,
//	  "ID": "00112233-4455-6677-8899-aabbccddeeff",
//	  "Algorithm": "EdDSA",
//	  "Check": "D9jb8W7KAaxpzUOzhB44wTCU+zhk27B1S3JJqj8R5Os=",
//	  "Created": "2026-01-02T03:04:05.000000000Z",
//	  "Wrapped": [
//	    {
//	      "KEK": "inline",
//	      "Ciphertext": "8PHy8/T19vf4+fr7/P3+/w=="
//	    }
//	  ],
//	  "Sum": "84d8518adff71f09a3be1aac99f396fc6b27326f754486290d47b545918cff67"
//	}
//
// testdata/v2/vectors.json has files of version 2 for the same keys; testdata/vectors2.py made them, also without this
// package. The first has
//
//	mac       274f543350c85dee296ad1b7d33be6a6edcf6745e4b004eb03ec398bfa1a987c
//
//	{
//	  "Version": 2,
//	  "ID": "00112233-4455-6677-8899-aabbccddeeff",
//	  "Algorithm": "EdDSA",
//	  "Check": "D9jb8W7KAaxpzUOzhB44wTCU+zhk27B1S3JJqj8R5Os=",
//	  "Created": "2026-01-02T03:04:05.000000000Z",
//	  "Wrapped": [
//	    {
//	      "KEK": "inline",
//	      "Ciphertext": "8PHy8/T19vf4+fr7/P3+/w=="
//	    }
//	  ],
//	  "MAC": "J09UM1DIXe4patG30zvmpu3PZ0XksATrA+w5i/oamHw=",
//	  "Sum": "1c3bf10ee57e309ac76c96521ecfd4454a4bb97cf9586095b211751c5a4e1948"
//	}
package nks

import (
	"encoding/binary"
	"errors"
	"hash"
)

// ErrFormat is matched by every error about bytes that are not of the format, and about values that have no encoding. The
// text around it says where, and quotes neither secrets nor ciphertext.
var ErrFormat = errors.New("nks: malformed")

// ErrCorrupt means that a value is well formed, but not the one that was written.
var ErrCorrupt = errors.New("corrupt")

// ErrVersion is matched, besides ErrFormat, by the error about a file of a later version, or of another signing algorithm,
// than this build reads. Only a newer build knows what is in it, and whether it is damaged.
var ErrVersion = errors.New("of a newer version than this build reads")

// ID is a key ID. It is an alias, so that other packages need not import this one
// to name a key.
type ID = [16]byte

// The signing algorithms, by the names they have in JOSE.
const (
	rs256 = "RS256" // RSA 2048, PKCS #1 v1.5
	es256 = "ES256" // ECDSA on P-256
	eddsa = "EdDSA" // Ed25519
)

func knownAlgorithm(a string) bool {
	return a == rs256 || a == es256 || a == eddsa
}

// appendField appends b with its length before it.
func appendField(dst, b []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(b)))
	return append(dst, b...)
}

// writeField is appendField to a hash, which never fails.
func writeField(h hash.Hash, b []byte) {
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
	h.Write(b)
}

// cutField is the reverse of appendField; what it returns is part of b.
func cutField(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n, b := binary.BigEndian.Uint32(b), b[4:]
	if uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}
