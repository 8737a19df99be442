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
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
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

// plantIntroduction leaves in raft's store that the server in a directory has joined, and not caught up, as a crash does.
func plantIntroduction(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "raft"), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft", "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Set([]byte("keyring.introduction"), []byte(`{"index":1000000,"servers":["s9"]}`)); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestServerThatJoinedInVainBeginsACluster, which is recovered, restored or bootstrapped where it ended: it waits for the other
// one no longer.
func TestServerThatJoinedInVainBeginsACluster(t *testing.T) {
	t.Parallel()
	file, m, identity := keyringtest.SmallBackup(t)
	for what, begin := range map[string]func(*testing.T, *keyringtest.Nodes, node.Config) error{
		"bootstrapped": func(*testing.T, *keyringtest.Nodes, node.Config) error { return nil },
		"restored": func(t *testing.T, _ *keyringtest.Nodes, cfg node.Config) error {
			_, err := node.Restore(t.Context(), bytes.NewReader(file), cfg, keyring.RestoreOptions{Identities: []age.Identity{identity}, Digest: m.SHA256})
			return err
		},
		"recovered": func(t *testing.T, c *keyringtest.Nodes, cfg node.Config) error {
			if _, err := node.Restore(t.Context(), bytes.NewReader(file), cfg, keyring.RestoreOptions{Identities: []age.Identity{identity}, Digest: m.SHA256}); err != nil {
				return err
			}
			plantIntroduction(t, cfg.Dir)
			_, err := node.Recover(t.Context(), cfg)
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := keyringtest.UntilKilled(t)
			c, listeners := keyringtest.NewNodes(t, 1)
			cfg := c.Config("s1")
			cfg.Peers = c.Addrs
			plantIntroduction(t, cfg.Dir)
			if err := begin(t, c, cfg); err != nil {
				t.Fatal(err)
			}
			cfg.Listener = listeners["s1"]
			n, err := node.Start(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Keyring().WaitReady(ctx); err != nil {
				t.Error(err)
			}
			closeNode(t, n)
		})
	}
}
