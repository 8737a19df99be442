package backup_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestSignerIsAsSpecified: HKDF by hand and another implementation of Ed25519 made these.
func TestSignerIsAsSpecified(t *testing.T) {
	var vectors []struct{ ID, Material string }
	file, err := os.ReadFile("../nks/testdata/vectors.json")
	if err == nil {
		err = json.Unmarshal(file, &vectors)
	}
	if err != nil {
		t.Fatal(err)
	}
	id, err := hex.DecodeString(vectors[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	material, err := hex.DecodeString(vectors[0].Material)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := nks.Decode(material)
	if err != nil {
		t.Fatal(err)
	}
	const (
		signer    = "e3f0404f45bc76e28ce1a027b683c20ff627e83d10ff2acfb8fb5139efd811f8"
		signature = "322b6ee8b5299686bbe98b09b4385d4d0937d1b0ecb31126aa0f202d1d1ae4b863024681f1cabe0e151ccbfd4deaf3086d2eb62043739b8071cc9631c1ac9d01"
	)
	if got, err := backup.SignerOf(meta.KeyID(id), secret); err != nil || got.String() != signer {
		t.Errorf("the signer is %v, %v", got, err)
	}
	if got, err := backup.Sign(meta.KeyID(id), secret, sha256.Sum256(nil)); err != nil || hex.EncodeToString(got) != signature {
		t.Errorf("the signature is %x, %v", got, err)
	}
}
