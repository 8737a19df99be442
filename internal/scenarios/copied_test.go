package scenarios_test

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// TestCopiedKeystoreIsToldUntilTheCopyIsGone: by the leader and the servers that have it, and not by another one. It ends when
// the server with the copy has started with an empty directory, and that server gets every key.
func TestCopiedKeystoreIsToldUntilTheCopyIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{Servers: 4})
		leader := keyringtest.Ready(t, c)
		keyringtest.AwaitKeys(t, c)
		var others []*keyringtest.Server
		for _, s := range c.Servers {
			if s != leader {
				others = append(others, s)
			}
		}
		from, to, third := others[0], others[1], others[2]
		told := func(s *keyringtest.Server) bool {
			st, err := s.Keyring.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemKeystoreCopied })
		}
		c.Stop(to)
		copyOf := bytes.Clone(from.Disk.Bytes("keystore.id"))
		to.Disk.Unlink("keystore.id")
		to.Disk.Plant("keystore.id", 0o600, copyOf)
		c.Start(to)
		time.Sleep(time.Minute)
		if !told(leader) || !told(from) || !told(to) || told(third) {
			t.Errorf("a copy: told by the leader: %t, by the servers that have it: %t and %t, by another: %t", told(leader), told(from), told(to), told(third))
		}
		c.Stop(to)
		for _, name := range to.Disk.Names() {
			to.Disk.Unlink(name)
		}
		c.Start(to)
		time.Sleep(time.Minute)
		for _, s := range c.Servers {
			if told(s) {
				t.Errorf("%s tells of a copy that is gone", s.ID)
			}
		}
		keyringtest.AwaitKeys(t, c)
		c.Close()
	})
}
