package keyring_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/bounded/boundedtest"
	"filippo.io/age"
)

// What reading a backup may allocate: so many bytes, most of which are what age and the digests read ahead,
// and so many for each byte of the file.
const (
	backupBase = 4 << 20
	backupEach = 64
)

// readsWithinBounds reads the backup that has this plaintext: whoever knows the recipients can write it.
func readsWithinBounds(t *testing.T, identity *age.X25519Identity, plain []byte) error {
	t.Helper()
	var file bytes.Buffer
	w, err := age.Encrypt(&file, identity.Recipient())
	if err == nil {
		_, err = w.Write(plain)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	var m keyring.Manifest
	boundedtest.Memory(t, file.Len(), backupBase, backupEach, func() {
		m, err = keyring.VerifyBackup(bytes.NewReader(file.Bytes()), identity)
	})
	if err == nil && (m.Raft.Size > int64(len(plain)) || m.Host < 0 || m.Host > m.Raft.Size || m.SHA256 != sha256.Sum256(file.Bytes())) {
		t.Errorf("%+v, of %d bytes", m, len(plain))
	}
	return err
}

// FuzzBackup reads anything in place of the archive.
func FuzzBackup(f *testing.F) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, plain []byte) { readsWithinBounds(t, identity, plain) })
}

// FuzzBackupParts reads anything in place of each part, with sums and sizes that are right: what
// fuzzing by itself never gets to.
func FuzzBackupParts(f *testing.F) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, manifest, key, section, host, signature []byte) {
		readsWithinBounds(t, identity, archiveOf(manifest, key, section, host, signature))
	})
}

// archiveOf is a backup of one key, whose name is that in its file.
func archiveOf(manifest, key, section, host, signature []byte) []byte {
	sum := sha256.Sum256(section)
	head := binary.BigEndian.AppendUint64([]byte("keyring-snapshot"), uint64(len(section)))
	snapshot := bytes.Join([][]byte{head, sum[:], section, host}, nil)
	name := "none"
	if _, rest, ok := strings.Cut(string(key), `"ID": "`); ok {
		name, _, _ = strings.Cut(rest, `"`)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, p := range []part{
		{tar.Header{Name: "manifest.json"}, manifest}, {tar.Header{Name: "keystore/" + name + ".nks.json"}, withRightSum(key)},
		{tar.Header{Name: "snapshot"}, snapshot}, {tar.Header{Name: "signature"}, signature},
	} {
		if p.Name == "signature" && len(signature) == 0 {
			continue
		}
		p.Size = int64(len(p.content))
		w.WriteHeader(&p.Header)
		w.Write(p.content)
	}
	w.Close()
	return out.Bytes()
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
