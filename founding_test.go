package keyring_test

import (
	"context"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestFoundersThatNameOthersFoundNothing: each would write its own list into its log, and report success. The
// error has both lists, on each of them, whoever asks first.
func TestFoundersThatNameOthersFoundNothing(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(map[raft.ServerID]string){
		"one more":        func(peers map[raft.ServerID]string) { peers["s9"] = "127.0.0.1:1" },
		"one less":        func(peers map[raft.ServerID]string) { delete(peers, "s3") },
		"another address": func(peers map[raft.ServerID]string) { peers["s3"] = "127.0.0.1:1" },
		"another ID":      func(peers map[raft.ServerID]string) { peers["s4"] = peers["s3"]; delete(peers, "s3") },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, listeners := unfounded(t)
			ended := make(chan error, 2)
			for _, id := range []raft.ServerID{"s1", "s2"} {
				cfg := c.config(id)
				cfg.Listener, cfg.Peers = listeners[id], maps.Clone(c.addrs)
				if id == "s2" {
					change(cfg.Peers)
				}
				go func() {
					n, err := keyring.Start(ctx, cfg)
					if err == nil {
						n.Close()
					}
					ended <- err
				}()
			}
			for range 2 {
				err := <-ended
				if err == nil || !strings.Contains(err.Error(), "Peers must be the same on each server") ||
					strings.Count(err.Error(), "s1@"+c.addrs["s1"]) < 2 {
					t.Errorf("%v", err)
				}
			}
		})
	}
}

// unfounded is three servers that are not started.
func unfounded(t *testing.T) (*nodes, map[raft.ServerID]net.Listener) {
	t.Helper()
	c := &nodes{
		tb: t, ca: keyringtest.NewCA(t),
		addrs: map[raft.ServerID]string{}, nodes: map[raft.ServerID]*keyring.Node{}, dirs: map[raft.ServerID]string{},
	}
	listeners := map[raft.ServerID]net.Listener{}
	for _, id := range []raft.ServerID{"s1", "s2", "s3"} {
		listeners[id] = keyringtest.Listen(t)
		c.addrs[id], c.dirs[id] = listeners[id].Addr().String(), t.TempDir()
	}
	return c, listeners
}

// TestFounderOfAnOlderBuildIsTakenAtItsWord, for it does not say whom it names.
func TestFounderOfAnOlderBuildIsTakenAtItsWord(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, listeners := unfounded(t)
	defer listeners["s3"].Close()
	asked := make(chan string, 1)
	defer c.pose("s2", listeners["s2"], func(_ context.Context, _ peer.Identity, _ string, body []byte) ([]byte, error) {
		select {
		case asked <- string(body):
		default:
		}
		return []byte(`{"founded":false}`), nil
	})()
	cfg := c.config("s1")
	cfg.Listener = listeners["s1"]
	cfg.Peers = map[raft.ServerID]string{"s1": c.addrs["s1"], "s2": c.addrs["s2"]}
	n, err := keyring.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if body := <-asked; !strings.Contains(body, "s2@"+c.addrs["s2"]) {
		t.Errorf("it was asked with %q", body)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}
