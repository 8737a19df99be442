package keyringtest

// Keystores of Nomad's.

import (
	"maps"
	"testing"

	"example.com/keyring/internal/keystore/keystoretest"
)

// NomadDisk is a disk with one key of each form, the last two of which nobody can open,
// and a second file of one.
func NomadDisk(t testing.TB) (disk *Disk, keys []keystoretest.NomadKey, files map[string][]byte) {
	t.Helper()
	disk, files = NewDisk(), map[string][]byte{}
	for i, form := range []string{"1.4", "1.7", "1.8.3", "1.9", "kms", "damaged"} {
		keys = append(keys, keystoretest.NewNomadKey(t, byte(i), form))
		maps.Copy(files, keys[i].Files(t))
	}
	again := keys[2]
	again.Form = "1.7"
	maps.Copy(files, again.Files(t))
	for name, b := range files {
		disk.Plant(name, 0o600, b)
	}
	return disk, keys, files
}

// CheckUnchanged wants every file of Nomad's to be there as it was.
func CheckUnchanged(t testing.TB, disk *Disk, files map[string][]byte, when string) {
	t.Helper()
	for name, b := range files {
		if string(disk.Bytes(name)) != string(b) {
			t.Errorf("%s: Nomad's file %s was changed", when, name)
		}
	}
}
