package keyring_test

import (
	"runtime"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

func passphraseKEK(t testing.TB, passphrase string) keyring.KEK {
	return kektest.Passphrase(t, passphrase)
}

// TestPassphraseIsDerivedOnceForThousandsOfFiles, though they are read side by side.
func TestPassphraseIsDerivedOnceForThousandsOfFiles(t *testing.T) {
	disk, first := keyringtest.NewDisk(), passphraseKEK(t, "correct horse")
	const files = 2000
	for i := range files {
		plantKey(t, disk, keyring.KeyID{1, byte(i >> 8), byte(i)}, first)
	}
	next := passphraseKEK(t, "correct horse")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := openStore(t, disk, []keyring.KEK{next}, nil)
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / (64 << 20); n != 1 {
		t.Errorf("memory for %d derivations", n)
	}
	for i := range files {
		if !s.Confirm(keyring.KeyID{1, byte(i >> 8), byte(i)}) {
			t.Fatalf("file %d is not held", i)
		}
	}
}

// TestPassphraseFilesShareOneSalt also where another KEK opens them: each salt is a derivation on
// the day when the passphrase is needed, and there is a bound on them.
func TestPassphraseFilesShareOneSalt(t *testing.T) {
	disk, a := keyringtest.NewDisk(), newKMS("a")
	for i := range 3 {
		s := openStore(t, disk, []keyring.KEK{a, passphraseKEK(t, "correct horse")}, nil)
		if _, err := put(t, s, keyring.KeyID{byte(i)}); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	salts := map[string]bool{}
	for _, content := range keyFiles(disk) {
		f, err := nks.DecodeFile([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		salts[string(f.Wrapped[1].Ciphertext[:26])] = true
	}
	if len(salts) != 1 {
		t.Errorf("%d salts", len(salts))
	}
}

// TestKEKsPrintTheirIDs, and no passphrase, identity or cipher.
func TestKEKsPrintTheirIDs(t *testing.T) {
	identity := ageIdentity(t)
	secrets := [][]byte{[]byte("correct horse battery"), []byte(identity.String())}
	passphrase := passphraseKEK(t, string(secrets[0]))
	if _, err := passphrase.Wrap(t.Context(), nil, nil); err != nil { // so that it has a cipher
		t.Fatal(err)
	}
	for name, kek := range map[string]keyring.KEK{"passphrase": passphrase, "age": ageKEK(t, identity, identity)} {
		for _, v := range []any{kek, &kek, []keyring.KEK{kek}, struct{ k keyring.KEK }{kek}} {
			text := printed(v)
			if n := leaks([]byte(text), secrets); n > 0 || strings.Contains(text, decimals(secrets[0][:8])[0]) {
				t.Errorf("%s prints %d secrets: %s", name, n, text)
			}
		}
		if !strings.Contains(printed(kek), "KEK "+kek.ID()) {
			t.Errorf("%s prints %s", name, printed(kek))
		}
	}
}
