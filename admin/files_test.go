package admin

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestWhatIsNoFileIsRefusedAtOnce, wherever a file is named: nothing waits for it, and nothing of it fills the memory. A
// symlink to a file is one: that is how secrets are mounted.
func TestWhatIsNoFileIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	large, err := os.Create(path("large"))
	if err := errors.Join(
		err, large.Truncate(1<<40), large.Close(), syscall.Mkfifo(path("fifo"), 0o600), os.Symlink("fifo", path("to a fifo")),
		os.WriteFile(path("file"), []byte("content"), 0o600), os.Symlink("file", path("symlink")),
	); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "symlink"} {
		if b, err := readFile(path(name)); err != nil || string(b) != "content" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for _, bad := range []string{path("fifo"), path("to a fifo"), dir, "/dev/zero", path("large")} {
		_, token := readFile(bad)
		_, identities := readIdentities(bad)
		for what, err := range map[string]error{"file": token, "identities": identities} {
			if err == nil || !strings.Contains(err.Error(), bad+": ") {
				t.Errorf("%s %s: %v", what, bad, err)
			}
		}
		if bad == path("large") {
			continue // a backup may be
		}
		if f, _, err := openFile(bad); err == nil {
			f.Close()
			t.Errorf("a backup %s is opened", bad)
		}
	}
}
