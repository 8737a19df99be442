package keyring_test

import (
	"strings"
	"testing"

	"example.com/keyring"
)

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
