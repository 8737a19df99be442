package node_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// refusal is the code with which a server refused a request, or "".
func refusal(err error) peer.Code {
	if r := (*peer.Refusal)(nil); errors.As(err, &r) {
		return r.Code
	}
	return ""
}

// TestTokensEndBeforeTheirServerIsRemoved: whatever the log is cut off at, no removed server has a token.
func TestTokensEndBeforeTheirServerIsRemoved(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	for _, id := range []raft.ServerID{"s3", "s4"} {
		keyringtest.JoinToken(t, c.Nodes["s1"], id, 0)
	}
	stays := c.Nodes["s1"].Leader()
	gone := keyringtest.Besides(stays)
	if err := c.Nodes[stays].RemoveServer(ctx, gone, keyring.RemoveServerOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := c.Nodes[stays].JoinTokens(); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	dir := c.Dirs[stays]
	closeNode(t, c.Nodes[stays])
	delete(c.Nodes, stays)
	log, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft/raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	last, err := log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	var ended, removed uint64
	for i := uint64(1); i <= last; i++ {
		var l raft.Log
		if err := log.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		switch {
		case l.Type == raft.LogCommand && strings.Contains(string(l.Data), `"endJoinTokens":{"all":true}`):
			ended = i
		case l.Type == raft.LogConfiguration && removed == 0 && len(raft.DecodeConfiguration(l.Data).Servers) == 2:
			removed = i
		}
	}
	if ended == 0 || removed == 0 || ended > removed {
		t.Errorf("the tokens end with entry %d, and the server is removed with %d", ended, removed)
	}
}

// TestServerThatGotNoAnswerJoinsWithItsToken: the token is bound to its certificate, and lets it in again.
// Another certificate of the same server, and one after a withdrawal, are refused.
func TestServerThatGotNoAnswerJoinsWithItsToken(t *testing.T) {
	t.Parallel()
	ctx, c, sealed := keyringtest.ReadyNodes(t, 3)
	cfg := c.Newcomer("s4")
	cfg.Join = []string{c.Addrs["s1"], c.Addrs["s2"], c.Addrs["s3"]}
	cfg.JoinToken = keyringtest.JoinToken(t, c.Nodes["s2"], "s4", 0)
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	c.AwaitVote(ctx, n, "s4")
	if infos := c.Nodes["s1"].JoinTokens(); len(infos) != 1 || !infos[0].Used || infos[0].Server != "s4" {
		t.Errorf("%+v", infos)
	}
	closeNode(t, n)
	delete(c.Nodes, "s4")
	cfg.Dir, cfg.Listener = t.TempDir(), nil // as if it had heard no answer
	n = c.Start(ctx, cfg)
	if err := n.Keyring().WaitReady(ctx); err != nil { // a voter may yet have to hear what the leader had applied
		t.Fatal(err)
	}
	if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// wantOut requires a server not to be taken in when it has asked each of the others.
func wantOut(t *testing.T, ctx context.Context, cfg node.Config, why string) {
	t.Helper()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	cfg.Logger = whenLogged("asking to join", stop)
	n, err := node.Start(asking, cfg)
	if err == nil {
		closeNode(t, n)
		t.Errorf("%s was taken in", cfg.ID)
	} else if !strings.Contains(err.Error(), why) {
		t.Errorf("%s: %v, want %q", cfg.ID, err, why)
	}
}

// within requires a node to be in the cluster of others.
func within(t *testing.T, ctx context.Context, c *keyringtest.Nodes, n *node.Node, id raft.ServerID) {
	t.Helper()
	c.AwaitVote(ctx, n, id)
	if err := n.Keyring().WaitReady(ctx); err != nil { // a voter may yet have to hear what the leader had applied
		t.Fatal(err)
	}
	sealed, err := c.Nodes["s1"].Encrypt(ctx, []byte(id), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.Keyring().Decrypt(sealed, nil); err != nil || string(got) != string(id) {
		t.Errorf("%s is in the cluster of another server that has answered: %q, %v", id, got, err)
	}
}

// TestJoinerTakesNobodyForTheClusterWithoutProof: of the addresses that it was given, the first is a removed
// server's, whose certificate is in order and which would take it in.
func TestJoinerTakesNobodyForTheClusterWithoutProof(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	c.Expel(ctx, "s3")
	alone, cfg := c.Newcomer("s4"), c.Newcomer("s4")
	c.Impostor(ctx, "s3", c.Addrs["s3"], "s4")
	cfg.Join = []string{c.Addrs["s3"], c.Addrs["s1"], c.Addrs["s2"]}
	cfg.JoinToken = keyringtest.JoinToken(t, c.Nodes["s1"], "s4", 0)
	alone.Join, alone.JoinToken = cfg.Join[:1], cfg.JoinToken
	wantOut(t, ctx, alone, "JoinToken, or AddServer")
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s4"] = n
	within(t, ctx, c, n, "s4")
}

// TestWipedInitialServerJoinsByIDAlone: the addresses of its Peers lead to a removed server.
func TestWipedInitialServerJoinsByIDAlone(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 4, nil)
	c.Ready(ctx)
	c.Expel(ctx, "s3")
	c.Impostor(ctx, "s3", c.Addrs["s3"], "s2")
	closeNode(t, c.Nodes["s2"])
	delete(c.Nodes, "s2")
	cfg := c.Config("s2")
	cfg.Dir = t.TempDir()
	cfg.Peers = map[raft.ServerID]string{"s1": c.Addrs["s3"], "s2": c.Addrs["s2"]}
	wantSilent(t, ctx, cfg)
	cfg.Peers, cfg.Listener = map[raft.ServerID]string{"s1": c.Addrs["s1"], "s2": c.Addrs["s2"], "s4": c.Addrs["s4"]}, nil
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes["s2"] = n
	within(t, ctx, c, n, "s2")
}

// wantSilent requires a server to find none of the others.
func wantSilent(t *testing.T, ctx context.Context, cfg node.Config) {
	t.Helper()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	cfg.Logger = whenLogged("waiting for the other servers", stop)
	n, err := node.Start(asking, cfg)
	if err == nil {
		closeNode(t, n)
		t.Errorf("%s has found somebody", cfg.ID)
	}
}

// TestJoinerGoesOnWithNobodyWhoProvesNothing: a removed server makes a proof up, or stands between the server that
// joins and the leader, and hands on what each of them says.
func TestJoinerGoesOnWithNobodyWhoProvesNothing(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	c.Expel(ctx, "s3")
	leader := c.Nodes["s1"].Leader()
	out := peer.NewClient(&peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/s3", nil)})
	defer out.Close()
	for name, answer := range map[string]peer.Handler{
		"made up": func(context.Context, peer.Identity, string, []byte) ([]byte, error) {
			return json.Marshal(map[string]any{"proof": make([]byte, 32)})
		},
		"handed on": func(ctx context.Context, _ peer.Identity, path string, body []byte) ([]byte, error) {
			return out.Call(ctx, string(leader), c.Addrs[leader], path, body)
		},
	} {
		ln, err := net.Listen("tcp", c.Addrs["s3"])
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var asked []string
		stop := c.Pose("s3", ln, func(ctx context.Context, from peer.Identity, path string, body []byte) ([]byte, error) {
			if path == "/node/hello" {
				return json.Marshal(map[string]any{"founded": true, "leader": c.Addrs["s3"], "leaderID": "s3"})
			}
			mu.Lock()
			asked = append(asked, path)
			mu.Unlock()
			return answer(ctx, from, path, body)
		})
		cfg := c.Newcomer("s4")
		cfg.Join, cfg.JoinToken = []string{c.Addrs["s3"]}, keyringtest.JoinToken(t, c.Nodes["s1"], "s4", 0)
		wantOut(t, ctx, cfg, "join")
		stop()
		if slices.Contains(asked, "/node/join") || !slices.Contains(asked, "/node/proof") {
			t.Errorf("%s: it has asked for %v", name, asked)
		}
	}
	for id, n := range c.Nodes {
		if servers := node.RaftServers(n); len(servers) != 2 {
			t.Errorf("%s has %v", id, servers)
		}
	}
}

// TestJoinNeedsAProof: without a proof, with a wrong one, and with that of another token nobody gets in who is no
// member, and all are told the same.
func TestJoinNeedsAProof(t *testing.T) {
	t.Parallel()
	ctx, c, _ := keyringtest.ReadyNodes(t, 3)
	keyringtest.JoinToken(t, c.Nodes["s1"], "s4", 0)
	keyringtest.JoinToken(t, c.Nodes["s1"], "s5", 0)
	awaitTokens(t, c.Nodes["s1"], 2)
	mine, others := "", ""
	for _, info := range c.Nodes["s1"].JoinTokens() {
		if info.Server == "s4" {
			mine = info.ID
		} else {
			others = info.ID
		}
	}
	leader := c.Nodes["s1"].Leader()
	client := peer.NewClient(&peer.Dialer{Cluster: "test", TLS: c.CA.Source("keyring://test/server/s4", nil)})
	defer client.Close()
	proof := make([]byte, 32)
	io.ReadFull(rand.Reader, proof)
	for name, body := range map[string]map[string]any{
		"nothing":                {"addr": "127.0.0.1:9"},
		"an old token":           {"addr": "127.0.0.1:9", "token": "AQ"},
		"a token and no proof":   {"addr": "127.0.0.1:9", "id": mine},
		"a wrong proof":          {"addr": "127.0.0.1:9", "id": mine, "proof": proof},
		"another server's token": {"addr": "127.0.0.1:9", "id": others, "proof": proof},
		"no such token":          {"addr": "127.0.0.1:9", "id": strings.Repeat("ab", 16), "proof": proof},
	} {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Call(ctx, string(leader), c.Addrs[leader], "/node/join", b)
		if refusal(err) != peer.NotMember {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, id := range []string{others, strings.Repeat("ab", 16)} {
		body := []byte(`{"token":"` + id + `","addr":"127.0.0.1:9"}`)
		if _, err := client.Call(ctx, string(leader), c.Addrs[leader], "/node/proof", body); refusal(err) != peer.NotMember {
			t.Errorf("proof of %s: %v", id, err)
		}
	}
	if servers := node.RaftServers(c.Nodes["s1"]); len(servers) != 3 {
		t.Errorf("%v", servers)
	}
}

// TestJoinNamesServersByAddressAndID, for who joins, and for a restore that asks whether they are silent.
func TestJoinNamesServersByAddressAndID(t *testing.T) {
	for _, entry := range []string{"@h:1", "s1@", "s1@h", "h", " @h:1", "s1@0.0.0.0:1", ""} {
		cfg := node.Config{Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Addr: "h1:1", Cluster: "test", Join: []string{entry}}
		if _, err := node.Start(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "Join: ") {
			t.Errorf("%q: %v", entry, err)
		}
	}
}

// TestPlainAddressNeedsAToken: there is nothing to know the cluster by. A token has to be one.
func TestPlainAddressNeedsAToken(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := keyringtest.StartNodes(t, 2, nil)
	cfg := c.Newcomer("s4")
	cfg.Join = append(cfg.Join, c.Addrs["s1"])
	refused := func(what ...string) {
		t.Helper()
		n, err := node.Start(ctx, cfg)
		if err == nil {
			n.Close()
			t.Fatal("it joins")
		}
		for _, w := range what {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v, want %q", err, w)
			}
		}
	}
	refused("id@host:port", "JoinToken")
	cfg = c.Newcomer("s5")
	cfg.Join, cfg.JoinToken = append(cfg.Join, c.Addrs["s1"]), "AQ"
	refused("JoinToken: ")
}
