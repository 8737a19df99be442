package nks

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
)

// ErrNomadProvider is matched by the error about a file whose KEK is not in it.
var ErrNomadProvider = errors.New("nks: wrapped by another provider")

type Nomad struct {
	ID            ID
	Created       time.Time
	Provider      string
	kek, dek, rsa []byte
}

type nomadText struct {
	Meta *struct {
		KeyID      string
		CreateTime int64
	}
	DEK, KEK, RSAKey          []byte
	Provider, ProviderID      string
	WrappedDEK, WrappedRSAKey *struct {
		Ciphertext []byte `json:"ciphertext"`
	}
}

func IsNomad(b []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(b), []byte(`{"Meta"`)) }

func DecodeNomad(b []byte) (*Nomad, error) {
	var t nomadText
	if err := json.Unmarshal(b, &t); err != nil || t.Meta == nil {
		return nil, fmt.Errorf("%w: Nomad's file", ErrFormat)
	}
	id, ok := parseID(t.Meta.KeyID)
	if !ok {
		return nil, fmt.Errorf("%w: Nomad's file: key ID", ErrFormat)
	}
	n := &Nomad{ID: id, Created: time.Unix(0, t.Meta.CreateTime).UTC(), Provider: t.Provider, kek: t.KEK, dek: t.DEK, rsa: t.RSAKey}
	if t.WrappedDEK != nil {
		n.dek = t.WrappedDEK.Ciphertext
	}
	if t.WrappedRSAKey != nil {
		n.rsa = t.WrappedRSAKey.Ciphertext
	}
	return n, nil
}

func (n *Nomad) Inline() bool { return len(n.kek) > 0 }

func (n *Nomad) Open() (*Material, string, error) {
	if !n.Inline() {
		return nil, "", fmt.Errorf("%w: %.64q", ErrNomadProvider, n.Provider)
	}
	root, err := openGCM(n.kek, n.dek, nil)
	if err != nil || len(root) != 32 {
		return nil, "", fmt.Errorf("%w: Nomad's file: root key", ErrFormat)
	}
	defer clear(root)
	s := &secret{Root: [32]byte(root)}
	algorithm := eddsa
	var private any = ed25519.NewKeyFromSeed(root)
	if len(n.rsa) > 0 {
		algorithm = rs256
		der, err := openGCM(n.kek, n.rsa, nil)
		if err != nil {
			return nil, "", fmt.Errorf("%w: Nomad's file: RSA key", ErrFormat)
		}
		defer clear(der)
		if private, err = x509.ParsePKCS1PrivateKey(der); err != nil {
			return nil, "", fmt.Errorf("%w: Nomad's file: RSA key", ErrFormat)
		}
	}
	if s.Signing, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
		return nil, "", fmt.Errorf("%w: Nomad's file: signing key", ErrFormat)
	}
	return hide(s), algorithm, nil
}

func openGCM(key, sealed, aad []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil || len(sealed) < aead.NonceSize() {
		return nil, errors.New("short")
	}
	return aead.Open(nil, sealed[:aead.NonceSize()], sealed[aead.NonceSize():], aad)
}

func OpenNomadData(root *[32]byte, id ID, data []byte) ([]byte, error) {
	return openGCM(root[:], data, []byte(formatID(id)))
}

var nomadName = regexp.MustCompile(`^([0-9a-f-]{36})(\.[A-Za-z0-9_-]+){0,2}\.nks\.json$`)

func ParseNomadName(name string) (id ID, ok bool) {
	m := nomadName.FindStringSubmatch(name)
	if m == nil {
		return ID{}, false
	}
	return parseID(m[1])
}
