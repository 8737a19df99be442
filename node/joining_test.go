package node_test

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
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

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

// TestNonMemberWithAServersCertificateIsNotAdmitted: a certificate of the cluster's CA with the right
// role is no invitation. It gets no key, and stands in no configuration.
func TestNonMemberWithAServersCertificateIsNotAdmitted(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	other, err := c.Nodes["s2"].JoinToken("s5", 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"none": "", "of another server": other, "made up": join.New().Text()} {
		cfg := c.Newcomer("s4")
		cfg.JoinToken = token
		asking, stop := context.WithCancel(ctx)
		cfg.Logger = whenLogged("asking to join", stop)
		n, err := node.Start(asking, cfg)
		if err == nil {
			n.Close()
			t.Errorf("with a token that is %s it was taken in", name)
		} else if !strings.Contains(err.Error(), "JoinToken, or AddServer") {
			t.Errorf("with a token that is %s: %v", name, err)
		}
	}
	for id, n := range c.Nodes {
		if servers := node.RaftServers(n); len(servers) != 3 {
			t.Errorf("%s has %v", id, servers)
		}
	}
}

// TestNewcomerTakesRaftFromThoseAloneWhoTookItIn: until raft has told it, it knows no other member, and
// an impostor could hand it a configuration. This one's leader can't reach it.
func TestNewcomerTakesRaftFromThoseAloneWhoTookItIn(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	cfg := c.Newcomer("s4")
	at := cfg.Addr
	cfg.Addr = "127.0.0.1:9"
	if err := c.Nodes["s1"].AddServer(ctx, "s4", cfg.Addr); err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	for id, welcome := range map[string]bool{"s1": true, "s3": true, "s5": false} {
		d := &peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/"+id, nil)}
		conn, err := d.Dial(ctx, "s4", at, peer.ALPNRaft)
		if (err == nil) != welcome {
			t.Errorf("%s: %v", id, err)
		}
		if err == nil {
			conn.Close()
		}
	}
	if servers := node.RaftServers(n); len(servers) > 0 {
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

// TestServerKilledBeforeItsFirstEntryStartsAgain, an initial server and one that joins.
func TestServerKilledBeforeItsFirstEntryStartsAgain(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		if cfg.ID == "s2" {
			plantTerm(t, cfg.Dir)
		}
	})
	c.Ready(ctx)
	cfg := c.Newcomer("s4")
	if err := c.Nodes["s1"].AddServer(ctx, "s4", cfg.Addr); err != nil {
		t.Fatal(err)
	}
	plantTerm(t, cfg.Dir)
	c.Start(ctx, cfg)
}

// TestThreeNodesAreReplacedByThree, one by one, while keys rotate: with tokens they come, with Leave they
// go, the leader too. What was sealed before opens.
func TestThreeNodesAreReplacedByThree(t *testing.T) {
	t.Parallel()
	ctx, c, sealed := keyringtest.ReadyNodes(t, 3)
	rotating, stop := context.WithCancel(ctx)
	rotated, first := make(chan int), c.Nodes["s1"]
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
		cfg := c.Newcomer(id)
		var err error
		if cfg.JoinToken, err = c.Nodes["s2"].JoinToken(id, 0); err != nil {
			t.Fatal(err)
		}
		c.Start(ctx, cfg)
	}
	stop()
	if n := <-rotated; n < 3 {
		t.Errorf("only %d rotations", n)
	}
	last := c.Nodes["s6"]
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		leave := c.Nodes[id]
		awaitLeave(ctx, t, leave, last)
		if err := leave.Close(); err != nil {
			t.Error(err)
		}
		delete(c.Nodes, id)
		if _, err := last.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	st, err := last.Status(ctx)
	if err != nil || len(st.Servers) != 3 {
		t.Errorf("%+v, %v", st.Servers, err)
	}
	for id, n := range c.Nodes {
		c.Await(ctx, n, "whole", func(st keyring.Status) bool { return len(st.Missing) == 0 })
		if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
}

// awaitLeave has n leave as soon as the others may do without it. Another one stays.
func awaitLeave(ctx context.Context, t *testing.T, n, other *node.Node) {
	t.Helper()
	// A key that has just been made may not be held by enough of those that stay.
	for {
		changed := other.Keyring().Changed()
		err := n.Leave(ctx)
		if err == nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("it can't leave: %v", err)
		}
	}
}
