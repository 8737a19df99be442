package node_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// countCalls listens, hangs up on everybody, and counts them.
func countCalls(t *testing.T) (addr string, calls *atomic.Int32) {
	t.Helper()
	l, calls := keyringtest.Listen(t), &atomic.Int32{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			calls.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return l.Addr().String(), calls
}

// TestRestoreRefusesBadOptionsBeforeItAsksAnybody, and before it makes a directory or reads the backup.
func TestRestoreRefusesBadOptionsBeforeItAsksAnybody(t *testing.T) {
	t.Parallel()
	identity := kektest.Identity(t)
	other, calls := countCalls(t)
	for name, c := range map[string]struct {
		change func(*keyring.RestoreOptions)
		want   string
	}{
		"no identity":         {func(o *keyring.RestoreOptions) { o.Identities = nil }, "Identities"},
		"a negative bound":    {func(o *keyring.RestoreOptions) { o.MaxBytes = -1 }, "MaxBytes"},
		"nobody who wrote it": {func(o *keyring.RestoreOptions) { o.Digest = [32]byte{} }, "Unauthenticated"},
		"a Dir that is set":   {func(o *keyring.RestoreOptions) { o.Dir = "keystore" }, "Dir"},
	} {
		o := keyring.RestoreOptions{Identities: []age.Identity{identity}, Digest: [32]byte{1}}
		c.change(&o)
		cfg := node.Config{
			ID: "s1", Dir: filepath.Join(t.TempDir(), "node"), KEKs: []keyring.KEK{keyring.InlineKEK()}, Addr: "127.0.0.1:1", Cluster: "test",
			TLS:   keyringtest.NewCA(t).Source("keyring://test/server/s1", nil),
			Peers: map[raft.ServerID]string{"s1": "127.0.0.1:1", "s2": other},
		}
		backup := strings.NewReader("a backup")
		if _, err := node.Restore(t.Context(), backup, cfg, o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if n := calls.Load(); n > 0 || backup.Len() < len("a backup") {
			t.Errorf("%s: the other server is asked %d times, and %d bytes of the backup are not read", name, n, backup.Len())
		}
		if _, err := os.Lstat(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: there is a directory, %v", name, err)
		}
	}
}

// TestStartRefusesABadConfigurationBeforeItMakesALog: a log has the server's ID in it from then on.
func TestStartRefusesABadConfigurationBeforeItMakesALog(t *testing.T) {
	t.Parallel()
	ca := keyringtest.NewCA(t)
	for name, change := range map[string]func(*node.Config){
		"a long ID":         func(c *node.Config) { c.ID = raft.ServerID(strings.Repeat("x", 1000)) },
		"an ID that is not": func(c *node.Config) { c.ID = "\xff" },
		"a token that is not": func(c *node.Config) {
			c.ID, c.Addr, c.Cluster, c.TLS = "s1", "127.0.0.1:1", "test", ca.Source("keyring://test/server/s1", nil)
			c.Listener, c.Join, c.JoinToken = keyringtest.Listen(t), []string{"127.0.0.1:2"}, "AQ"
		},
	} {
		cfg := node.Config{Dir: filepath.Join(t.TempDir(), "node"), KEKs: []keyring.KEK{keyring.InlineKEK()}}
		change(&cfg)
		n, err := node.Start(t.Context(), cfg)
		if err == nil {
			n.Close()
			t.Errorf("%s: started", name)
		}
		if _, err := os.Lstat(cfg.Dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: there is a directory, %v", name, err)
		}
	}
}
