package keyring_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"filippo.io/age"
)

// TestRestoreOptionsSayAllThatIsWrong, to a host that asks before it does anything else.
func TestRestoreOptionsSayAllThatIsWrong(t *testing.T) {
	bad := keyring.RestoreOptions{MaxBytes: -1}
	err := bad.Check()
	for _, want := range []string{"Dir", "KEKs", "Identities", "MaxBytes", "Unauthenticated"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something about %s", err, want)
		}
	}
	backup := strings.NewReader("a backup")
	if _, got := keyring.Restore(t.Context(), backup, bad); got == nil || !strings.Contains(got.Error(), err.Error()) {
		t.Errorf("Restore says %v, Check says %v", got, err)
	}
	if backup.Len() < len("a backup") {
		t.Error("Restore has read the backup")
	}
	good := keyring.RestoreOptions{
		Dir: filepath.Join(t.TempDir(), "keystore"), KEKs: []keyring.KEK{brokenKEK{}},
		Identities: []age.Identity{kektest.Identity(t)}, Unauthenticated: true,
	}
	if err := good.Check(); err != nil { // nothing has asked the KEK
		t.Error(err)
	}
}

// TestRecoverKeysRefusesABadConfigurationFirst: raft is not recovered, and no directory is made.
func TestRecoverKeysRefusesABadConfigurationFirst(t *testing.T) {
	for name, change := range map[string]func(*keyring.Config){
		"no Dir":       func(c *keyring.Config) { c.Dir = "" },
		"no FSM":       func(c *keyring.Config) { c.FSM = nil },
		"no KEKs":      func(c *keyring.Config) { c.KEKs = nil },
		"a KEK of nil": func(c *keyring.Config) { c.OldKEKs = []keyring.KEK{nil} },
	} {
		dir := filepath.Join(t.TempDir(), "keystore")
		cfg := keyring.Config{Dir: dir, FSM: keyring.NewFSM(), KEKs: []keyring.KEK{keyring.InlineKEK()}}
		change(&cfg)
		recovered := false
		_, err := keyring.RecoverKeys(t.Context(), cfg, func() error { recovered = true; return nil })
		if err == nil || recovered {
			t.Errorf("%s: %v, raft is recovered: %t", name, err, recovered)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: there is a directory, %v", name, err)
		}
	}
}
