package node_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// TestServerThatWasRestoredJoinsAgainWithoutItsLog: the snapshot that it gets has the configuration of the restored cluster, in
// which it is the only voter, and the leader no member. It must not take that for the cluster.
func TestServerThatWasRestoredJoinsAgainWithoutItsLog(t *testing.T) {
	t.Parallel()
	ctx := keyringtest.UntilKilled(t)
	file, m, identity := keyringtest.SmallBackup(t)
	c, listeners := keyringtest.NewNodes(t, 3)
	t.Cleanup(c.Close)
	config := func(id raft.ServerID, join string) node.Config {
		cfg := c.Config(id)
		cfg.Listener = listeners[id]
		if join != "" {
			cfg.Join = []string{join + "@" + c.Addrs[raft.ServerID(join)]}
		}
		return cfg
	}
	first := config("s1", "")
	if _, err := node.Restore(ctx, bytes.NewReader(file), first, keyring.RestoreOptions{Identities: []age.Identity{identity}, Digest: m.SHA256}); err != nil {
		t.Fatal(err)
	}
	s1 := c.Start(ctx, first)
	for _, id := range []raft.ServerID{"s2", "s3"} {
		if err := s1.AddServer(ctx, id, c.Addrs[id]); err != nil {
			t.Fatal(err)
		}
		c.Start(ctx, config(id, "s1"))
	}
	if err := s1.TransferLeadershipTo(ctx, "s2"); err != nil {
		t.Fatal(err)
	}
	if err := s1.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(c.Dirs["s1"], "raft")); err != nil {
		t.Fatal(err)
	}
	again := c.Config("s1")
	again.Join = []string{"s2@" + c.Addrs["s2"], "s3@" + c.Addrs["s3"]}
	s1 = c.Start(ctx, again) // until it votes
	if leader := s1.Leader(); leader == "s1" {
		t.Error("it leads a cluster of its own")
	}
	key, err := c.Nodes["s2"].Rotate(ctx, keyring.RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	keyringtest.AwaitHolders(c.Nodes["s2"].Keyring(), key.ID, 3)
}
