package backup_test

import (
	"crypto/rand"
	"testing"

	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/nks"
)

// BenchmarkRead reads a backup of 500 keys for RS256, of which the public keys take most of the time. With -cpu 1,2,4
// it shows what more processors are good for.
func BenchmarkRead(b *testing.B) {
	first, err := nks.Generate("RS256")
	if err != nil {
		b.Fatal(err)
	}
	encoded := first.Encode()
	var secrets []*nks.Material
	for range 500 { // with one signing key: it takes long to make
		rand.Read(encoded[5:37]) // the root key
		secret, err := nks.Decode(encoded)
		if err != nil {
			b.Fatal(err)
		}
		secrets = append(secrets, secret)
	}
	file, _, identity := backuptest.Of(b, "RS256", secrets...)
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		if _, err := read(file, identity); err != nil {
			b.Fatal(err)
		}
	}
}
