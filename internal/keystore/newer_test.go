package keystore_test

import (
	"testing"

	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
)

// TestKeyOfAnotherSuiteIsNotHeld, though its material is here: this build could not use it.
func TestKeyOfAnotherSuiteIsNotHeld(t *testing.T) {
	id := meta.KeyID{1}
	s := openStore(t, keyringtest.NewDisk(), []kek.KEK{kek.Inline()}, nil)
	defer s.Close()
	check, err := put(t, s, id)
	if err != nil {
		t.Fatal(err)
	}
	for suite, want := range map[string]bool{"": true, "some-suite": false} {
		if got := s.Store.Holds(&meta.Key{ID: id, Algorithm: "EdDSA", Check: check, Suite: suite}); got != want {
			t.Errorf("suite %q: held: %t", suite, got)
		}
	}
}
