package nks

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// ErrNomadProvider is what Open's error wraps when the key is wrapped by an external KMS.
var ErrNomadProvider = errors.New("nks: only an external KMS opens this file of Nomad's")

const (
	nomadAEAD      = "aead" // the kind of provider whose KEK lies in the file
	nomadAlgorithm = "aes256-gcm"

	// Sizes in bytes. What is wrapped has a nonce before it and a tag after it.
	nomadKEK    = 32
	nomadRoot   = 12 + len(secret{}.Root) + 16
	maxNomadRSA = 12 + maxSigning/2 + 16 // 2048 bits take 1193

	// So that the name of a file has at most the 255 bytes that file systems allow.
	maxProvider = 255 - len("00000000-0000-0000-0000-000000000000.") - len(suffix)
)

// Nomad is the content of a key file of HashiCorp Nomad. It comes from [DecodeNomad].
type Nomad struct {
	ID      ID
	Created time.Time // a note for people; nothing authenticates it
	// Provider is "aead" or "aead.<name>" if the KEK lies in the file, or else the external
	// KMS that wrapped the key, such as "transit.<name>".
	Provider string

	// A closure, as in Material. Nil unless the KEK lies in the file.
	reveal func() *nomadWrapped
}

// nomadWrapped is as good as the key.
type nomadWrapped struct{ kek, root, rsa []byte }

// Inline reports whether the KEK is in the file, so that anyone who reads the file has the key.
func (n *Nomad) Inline() bool { return n.reveal != nil }

// Open unwraps the key with the KEK that lies in the file, and names the algorithm of its
// signing key, RS256 or EdDSA. Files of one key give the same material, whatever wrapped it.
// Nothing in the file binds the key to its ID: compare the check value with what is known of
// the key. An error matches ErrNomadProvider if the KEK is elsewhere, else ErrFormat.
func (n *Nomad) Open() (material *Material, algorithm string, err error) {
	if !n.Inline() {
		return nil, "", fmt.Errorf("%w: %q", ErrNomadProvider, n.Provider)
	}
	w := n.reveal()
	root, err := openGCM(w.kek, w.root, nil)
	if err != nil {
		return nil, "", malformedNomad("its KEK does not open its root key")
	}
	defer clear(root)
	signing, algorithm, err := w.signing(root)
	if err != nil {
		return nil, "", err
	}
	return hide(&secret{Root: [32]byte(root), Signing: signing}), algorithm, nil
}

// signing returns the PKCS #8 DER of the signing key that goes with root.
func (w *nomadWrapped) signing(root []byte) (der []byte, algorithm string, err error) {
	if len(w.rsa) == 0 {
		key := ed25519.NewKeyFromSeed(root)
		defer clear(key)
		der, err = x509.MarshalPKCS8PrivateKey(key)
		return der, eddsa, err
	}
	pkcs1, err := openGCM(w.kek, w.rsa, nil)
	if err != nil {
		return nil, "", malformedNomad("its KEK does not open its RSA key")
	}
	defer clear(pkcs1)
	key, err := x509.ParsePKCS1PrivateKey(pkcs1)
	if err != nil || publicFor(key, rs256) == nil {
		// Without the cause: it talks about the insides of a private key.
		return nil, "", malformedNomad("its RSA key is not one of 2048 bits")
	}
	der, err = x509.MarshalPKCS8PrivateKey(key) // as it was, or spelled the one way
	return der, rs256, err
}

// Wipe overwrites the KEK and what it wraps. Open fails from then on.
func (n *Nomad) Wipe() {
	if n.Inline() {
		w := n.reveal()
		clear(w.kek)
		clear(w.root)
		clear(w.rsa)
	}
}

// ParseNomadName returns the key ID in the name of a file of Nomad's: "<key ID>.nks.json", or
// "<key ID>.<provider>.nks.json" from 1.8.3 on. The first is the name of our own files too;
// IsNomad tells which it is.
func ParseNomadName(name string) (id ID, ok bool) {
	if id, ok := ParseFileName(name); ok {
		return id, true
	}
	text, ok := strings.CutSuffix(name, suffix)
	uuid, provider, _ := strings.Cut(text, ".")
	if !ok || !validProvider(provider) {
		return ID{}, false
	}
	return parseID(uuid)
}

// validProvider tells what may be in a file name and in an error.
func validProvider(provider string) bool {
	kind, name, named := strings.Cut(provider, ".")
	if kind == "" || named && name == "" || len(provider) > maxProvider || !utf8.ValidString(provider) {
		return false
	}
	return !strings.ContainsFunc(provider, func(r rune) bool {
		return r == '/' || r == '\\' || !unicode.IsPrint(r)
	})
}

var errNomadData = errors.New("nks: not what Nomad sealed under this key")

// OpenNomadData opens what Nomad sealed under the root key of this ID. The error is always the
// same.
func OpenNomadData(root *[32]byte, id ID, data []byte) ([]byte, error) {
	plaintext, err := openGCM(root[:], data, []byte(formatID(id)))
	if err != nil {
		return nil, errNomadData
	}
	return plaintext, nil
}

// openGCM opens a nonce, what was sealed, and its tag.
func openGCM(key, data, aad []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block) // which takes the nonce from data, also in FIPS mode
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, data, aad)
}
