package keystoretest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"example.com/keyring/internal/meta"
)

// NomadKey is a root key of Nomad's, and how one of its versions writes it.
type NomadKey struct {
	ID   meta.KeyID
	Root [32]byte
	RSA  []byte // PKCS #1 DER; nil for a key that signs with the root key as its Ed25519 seed
	Form string // see Files
}

// GCM is how Nomad encrypts: the nonce first.
func GCM(key, plaintext, aad []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	return aead.Seal(nonce, nonce, plaintext, aad)
}

// Seal is data that Nomad encrypted under the key.
func (k NomadKey) Seal(plaintext string) []byte {
	return GCM(k.Root[:], []byte(plaintext), []byte(k.ID.String()))
}

// Files are what Nomad writes of the key, by name.
func (k NomadKey) Files(t testing.TB) map[string][]byte {
	t.Helper()
	kek := make([]byte, 32)
	rand.Read(kek)
	about := map[string]any{"KeyID": k.ID.String(), "Algorithm": "aes256-gcm", "CreateTime": int64(1700000000123456789),
		"CreateIndex": 7, "ModifyIndex": 9, "State": "active"}
	file := map[string]any{"Meta": about, "KEK": kek}
	wrapped := func(b []byte) map[string]any {
		return map[string]any{"ciphertext": GCM(kek, b, nil), "key_info": map[string]any{"key_id": k.ID.String()}}
	}
	name := k.ID.String() + ".nks.json"
	switch k.Form {
	case "1.4":
		file["DEK"] = GCM(kek, k.Root[:], nil)
	case "1.7":
		file["DEK"], file["RSAKey"] = GCM(kek, k.Root[:], nil), GCM(kek, k.RSA, nil)
	case "1.8.3":
		about["PublishTime"] = 0
		name = k.ID.String() + ".aead.nks.json"
		file["Provider"], file["ProviderID"] = "aead", "aead"
		file["WrappedDEK"], file["WrappedRSAKey"] = wrapped(k.Root[:]), wrapped(k.RSA)
	case "1.9":
		name = k.ID.String() + ".aead.local.nks.json"
		file["ProviderID"] = "aead.local"
		file["WrappedDEK"], file["WrappedRSAKey"] = wrapped(k.Root[:]), map[string]any{}
	case "kms":
		name = k.ID.String() + ".transit.nks.json"
		delete(file, "KEK")
		file["Provider"], file["ProviderID"] = "transit", "transit"
		file["WrappedDEK"] = map[string]any{"ciphertext": []byte("vault:v1:AAAA")}
	case "damaged":
		file["DEK"] = GCM(kek, k.Root[:], nil)[1:]
	default:
		t.Fatalf("unknown form %s", k.Form)
	}
	order := []byte(`{"Meta":`) // as Nomad does, which json.Marshal of a map does not
	b, err := json.Marshal(about)
	if err != nil {
		t.Fatal(err)
	}
	order = append(order, b...)
	delete(file, "Meta")
	for _, member := range slices.Sorted(maps.Keys(file)) {
		b, err := json.Marshal(file[member])
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, fmt.Sprintf(",%q:%s", member, b)...)
	}
	return map[string][]byte{name: append(order, '}')}
}

// NewNomadKey draws a key; n is the last byte of its ID.
func NewNomadKey(t testing.TB, n byte, form string) NomadKey {
	t.Helper()
	k := NomadKey{ID: meta.KeyID{0x4e, 15: n}, Form: form}
	rand.Read(k.Root[:])
	if form == "1.7" || form == "1.8.3" {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		k.RSA = x509.MarshalPKCS1PrivateKey(key)
	}
	return k
}
