package scenarios_test

import (
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
)

// TestNewVersionOfAKEKIsCountedAndMovedTo: then the old one can be destroyed.
func TestNewVersionOfAKEKIsCountedAndMovedTo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.NewVersioned("a")
		l := newLone(t, a)
		l.seal("data")
		removed := l.Keyring.Keys()[0].ID
		if _, err := l.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := l.Keyring.Remove(t.Context(), removed, keyring.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		sealed := l.seal("data")
		time.Sleep(time.Minute) // virtual
		if n := l.status().OnOldKEKs; n != 0 {
			t.Fatalf("%d on old KEKs", n)
		}
		a.Rotate()
		time.Sleep(11 * time.Minute)             // virtual
		if st := l.status(); st.OnOldKEKs != 2 { // and the file of the removed key
			t.Errorf("%d on old KEKs: %v", st.OnOldKEKs, st.Problems)
		}
		for range 2 { // the second time nothing is known to be on an old version: Rewrap asks which one is in use
			a.Rotate()
			if err := l.Keyring.Rewrap(t.Context()); err != nil || l.status().OnOldKEKs != 0 {
				t.Errorf("%v, and %d on old KEKs", err, l.status().OnOldKEKs)
			}
		}
		a.Destroy()
		l.restart(a)
		l.opens(sealed)
		if st := l.status(); st.OnOldKEKs != 0 || len(butNoBackup(st.Problems)) > 0 {
			t.Errorf("%d on old KEKs: %v", st.OnOldKEKs, st.Problems)
		}
	})
}

// TestRewrapAllMovesWhatTellsNoVersion.
func TestRewrapAllMovesWhatTellsNoVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := kektest.NewVersioned("a")
		dumb := struct{ kek.KEK }{a} // it has versions, and does not tell
		l := newLone(t, dumb)
		sealed := l.seal("data")
		before := keyringtest.KeyFiles(l.Disk)
		a.Rotate()
		if err := l.Keyring.Rewrap(t.Context()); err != nil {
			t.Error(err)
		}
		if err := l.Keyring.RewrapAll(t.Context()); err != nil || l.status().OnOldKEKs != 0 {
			t.Errorf("%v, and %d on old KEKs", err, l.status().OnOldKEKs)
		}
		a.Destroy()
		l.restart(dumb)
		l.opens(sealed)
		if len(before) != 1 || len(keyringtest.KeyFiles(l.Disk)) != 1 {
			t.Errorf("%d files", len(keyringtest.KeyFiles(l.Disk)))
		}
	})
}
