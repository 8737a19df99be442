package keyring_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/join"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// newcomer is the configuration of a further server, which knows one of the others.
func (c *nodes) newcomer(id raft.ServerID) keyring.NodeConfig {
	ln := keyringtest.Listen(c.tb)
	c.addrs[id], c.dirs[id] = ln.Addr().String(), c.tb.TempDir()
	cfg := c.config(id)
	cfg.Listener, cfg.Join = ln, []string{"s1@" + c.addrs["s1"], "s2@" + c.addrs["s2"]}
	return cfg
}

// start starts a server and waits until it holds all and votes.
func (c *nodes) start(ctx context.Context, cfg keyring.NodeConfig) *keyring.Node {
	c.tb.Helper()
	n, err := keyring.Start(ctx, cfg)
	if err != nil {
		c.tb.Fatal(err)
	}
	c.nodes[cfg.ID] = n
	c.awaitVote(ctx, n, cfg.ID)
	return n
}

// awaitVote waits until a server holds all and votes.
func (c *nodes) awaitVote(ctx context.Context, n *keyring.Node, id raft.ServerID) {
	c.tb.Helper()
	c.await(ctx, n, "a voter", func(st keyring.Status) bool {
		for _, s := range st.Servers {
			if s.ID == id {
				return s.Suffrage == raft.Voter && len(st.Missing) == 0
			}
		}
		return false
	})
}

// await waits until a node's own status is as wanted.
func (c *nodes) await(ctx context.Context, n *keyring.Node, what string, wanted func(keyring.Status) bool) {
	c.tb.Helper()
	for {
		changed := n.Keyring().Changed()
		st, err := n.Keyring().Status(ctx)
		if err != nil {
			c.tb.Fatal(err)
		}
		if wanted(st) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.tb.Fatalf("never %s: %+v", what, st)
		}
	}
}

// founded3 is a cluster of three that is ready, and something that it has sealed.
func founded3(t *testing.T) (context.Context, *nodes, []byte) {
	t.Helper()
	ctx := untilKilled(t)
	c := startNodes(t, 3, nil)
	c.ready(ctx)
	sealed, err := c.nodes["s1"].Encrypt(ctx, []byte("hello"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, c, sealed
}

// whenLogged is a log that does something once a text comes.
func whenLogged(text string, do func()) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Output: logged{text, do}})
}

type logged struct {
	text string
	do   func()
}

func (l logged) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(l.text)) {
		l.do()
	}
	return len(b), nil
}

// TestStrangerWithAServersCertificateIsNotTakenIn: a certificate of the cluster's CA with the right
// role is no invitation. It gets no key, and stands in no configuration.
func TestStrangerWithAServersCertificateIsNotTakenIn(t *testing.T) {
	t.Parallel()
	ctx, c, _ := founded3(t)
	other, err := c.nodes["s2"].JoinToken("s5", 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"none": "", "of another server": other, "made up": join.New().Text()} {
		cfg := c.newcomer("s4")
		cfg.JoinToken = token
		asking, stop := context.WithCancel(ctx)
		cfg.Logger = whenLogged("asking to join", stop)
		n, err := keyring.Start(asking, cfg)
		if err == nil {
			n.Close()
			t.Errorf("with a token that is %s it was taken in", name)
		} else if !strings.Contains(err.Error(), "JoinToken, or AddServer") {
			t.Errorf("with a token that is %s: %v", name, err)
		}
	}
	for id, n := range c.nodes {
		if servers := keyring.RaftServers(n); len(servers) != 3 {
			t.Errorf("%s has %v", id, servers)
		}
	}
}

func TestServerJoinsWithAToken(t *testing.T) {
	t.Parallel()
	ctx, c, sealed := founded3(t)
	cfg := c.newcomer("s4")
	var n *keyring.Node
	if err := readmeJoin(ctx, c.nodes["s3"], cfg.Join, cfg, func(node *keyring.Node) { n = node }); err != nil {
		t.Fatal(err)
	}
	c.nodes["s4"] = n
	c.awaitVote(ctx, n, "s4")
	if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestNewcomerTakesRaftFromThoseAloneWhoTookItIn: until raft has told it, it knows no other member, and
// whoever poses as one could hand it a configuration. This one's leader can't reach it.
func TestNewcomerTakesRaftFromThoseAloneWhoTookItIn(t *testing.T) {
	t.Parallel()
	ctx, c, _ := founded3(t)
	cfg := c.newcomer("s4")
	at := cfg.Addr
	cfg.Addr = "127.0.0.1:9"
	if err := c.nodes["s1"].AddServer(ctx, "s4", cfg.Addr); err != nil {
		t.Fatal(err)
	}
	n, err := keyring.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.nodes["s4"] = n
	for id, welcome := range map[string]bool{"s1": true, "s3": true, "s5": false} {
		d := &peer.Dialer{Cluster: "test", TLS: c.ca.Source("keyring://test/server/"+id, nil)}
		conn, err := d.Dial(ctx, "s4", at, peer.ALPNRaft)
		if (err == nil) != welcome {
			t.Errorf("%s: %v", id, err)
		}
		if err == nil {
			conn.Close()
		}
	}
	if servers := keyring.RaftServers(n); len(servers) > 0 {
		t.Fatalf("raft has told it of %v", servers)
	}
}

// plantTerm leaves raft a term and nothing else, as a crash does before the first entry.
func plantTerm(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "raft"), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft", "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := log.SetUint64([]byte("CurrentTerm"), 2); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestServerKilledBeforeItsFirstEntryBeginsAnew, a founder and one that joins.
func TestServerKilledBeforeItsFirstEntryBeginsAnew(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := startNodes(t, 3, func(cfg *keyring.NodeConfig) {
		if cfg.ID == "s2" {
			plantTerm(t, cfg.Dir)
		}
	})
	c.ready(ctx)
	cfg := c.newcomer("s4")
	if err := c.nodes["s1"].AddServer(ctx, "s4", cfg.Addr); err != nil {
		t.Fatal(err)
	}
	plantTerm(t, cfg.Dir)
	c.start(ctx, cfg)
}

// TestThreeNodesAreReplacedByThree, one by one, while keys rotate: with tokens they come, with Leave they
// go, the leader too. What was sealed before opens.
func TestThreeNodesAreReplacedByThree(t *testing.T) {
	t.Parallel()
	ctx, c, sealed := founded3(t)
	rotating, stop := context.WithCancel(ctx)
	rotated, first := make(chan int), c.nodes["s1"]
	go func() {
		n := 0
		for rotating.Err() == nil {
			if _, err := first.Rotate(rotating, keyring.RotateOptions{}); err == nil {
				n++
			}
		}
		rotated <- n
	}()
	for _, id := range []raft.ServerID{"s4", "s5", "s6"} {
		cfg := c.newcomer(id)
		var err error
		if cfg.JoinToken, err = c.nodes["s2"].JoinToken(id, 0); err != nil {
			t.Fatal(err)
		}
		c.start(ctx, cfg)
	}
	stop()
	if n := <-rotated; n < 3 {
		t.Errorf("only %d rotations", n)
	}
	last := c.nodes["s6"]
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		leave := c.nodes[id]
		// A key that has just been made may not be held by enough of those that stay.
		for {
			changed := last.Keyring().Changed()
			err := leave.Leave(ctx)
			if err == nil {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("%s can't leave: %v", id, err)
			}
		}
		if err := leave.Close(); err != nil {
			t.Error(err)
		}
		delete(c.nodes, id)
		if _, err := last.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	st, err := last.Status(ctx)
	if err != nil || len(st.Servers) != 3 {
		t.Errorf("%+v, %v", st.Servers, err)
	}
	for id, n := range c.nodes {
		c.await(ctx, n, "whole", func(st keyring.Status) bool { return len(st.Missing) == 0 })
		if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
}
