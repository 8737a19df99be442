package backup_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"example.com/keyring/internal/backup"
	"example.com/keyring/internal/backup/backuptest"
	"example.com/keyring/internal/bounded/boundedtest"
	"filippo.io/age"
)

// What reading a backup may allocate: so many bytes, most of which are what age and the digests read ahead,
// and so many for each byte of the file.
const (
	backupBase = 4 << 20
	backupEach = 64
)

// readsWithinBounds reads the backup that has this plaintext: everybody who knows the recipients can write it.
func readsWithinBounds(t *testing.T, identity *age.X25519Identity, plain []byte) error {
	t.Helper()
	file := backuptest.Encrypt(t, plain, identity.Recipient())
	var m backup.Manifest
	var err error
	boundedtest.Memory(t, len(file), backupBase, backupEach, func() { m, err = read(file, identity) })
	if err == nil && (m.Raft.Size > int64(len(plain)) || m.Host < 0 || m.Host > m.Raft.Size || m.SHA256 != sha256.Sum256(file)) {
		t.Errorf("%+v, of %d bytes", m, len(plain))
	}
	return err
}

// FuzzBackup reads anything in place of the archive.
func FuzzBackup(f *testing.F) {
	identity := backuptest.Identity(f)
	f.Fuzz(func(t *testing.T, plain []byte) { readsWithinBounds(t, identity, plain) })
}

// FuzzBackupParts reads anything in place of each part, with sums and sizes that are right: what
// fuzzing by itself never gets to.
func FuzzBackupParts(f *testing.F) {
	identity := backuptest.Identity(f)
	f.Fuzz(func(t *testing.T, manifest, key, section, host, signature []byte) {
		if plain, err := archiveOf(manifest, key, section, host, signature); err == nil {
			readsWithinBounds(t, identity, plain)
		}
	})
}

// archiveOf is the archive of a backup of one key, whose name is that in its file.
func archiveOf(manifest, key, section, host, signature []byte) ([]byte, error) {
	sum := sha256.Sum256(section)
	head := binary.BigEndian.AppendUint64([]byte("keyring-snapshot"), uint64(len(section)))
	snapshot := bytes.Join([][]byte{head, sum[:], section, host}, nil)
	name := "none"
	if _, rest, ok := strings.Cut(string(key), `"ID": "`); ok {
		name, _, _ = strings.Cut(rest, `"`)
	}
	parts := []backuptest.Part{
		{Header: tar.Header{Name: "manifest.json"}, Content: manifest},
		{Header: tar.Header{Name: "keystore/" + name + ".nks.json"}, Content: withRightSum(key)},
		{Header: tar.Header{Name: "snapshot"}, Content: snapshot},
		{Header: tar.Header{Name: "signature"}, Content: signature},
	}
	if len(signature) == 0 {
		parts = parts[:3]
	}
	return backuptest.Archive(parts...)
}

// withRightSum puts the Sum of a key file right.
func withRightSum(key []byte) []byte {
	const end = "\"\n}\n"
	n := len(key) - len(end) - 2*sha256.Size
	if n < 0 {
		return key
	}
	sum := sha256.Sum256(append(bytes.Clone(key[:n]), end...))
	return append(hex.AppendEncode(bytes.Clone(key[:n]), sum[:]), end...)
}
