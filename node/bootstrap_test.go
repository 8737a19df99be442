package node_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/peer"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// TestInitialServersThatDisagreeDoNotBootstrap: each would write its own list into its log, and report success. They
// wait, say both lists once, whichever of them asks first, and bootstrap the cluster when the wrong one is corrected.
func TestInitialServersThatDisagreeDoNotBootstrap(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(map[raft.ServerID]string){
		"one more":        func(peers map[raft.ServerID]string) { peers["s9"] = "127.0.0.1:1" },
		"one less":        func(peers map[raft.ServerID]string) { delete(peers, "s3") },
		"another address": func(peers map[raft.ServerID]string) { peers["s3"] = "127.0.0.1:1" },
		"another ID":      func(peers map[raft.ServerID]string) { peers["s4"] = peers["s3"]; delete(peers, "s3") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, listeners := keyringtest.NewNodes(t, 3)
			var all []*startingNode
			for _, id := range []raft.ServerID{"s1", "s2"} {
				cfg := c.Config(id)
				cfg.Listener, cfg.Peers = listeners[id], maps.Clone(c.Addrs)
				if id == "s2" {
					change(cfg.Peers)
				}
				all = append(all, begin(ctx, t, cfg))
			}
			for _, f := range all {
				f.says(t, "Peers must be the same on each server", c.Addrs["s1"])
			}
			all[1].cancel()
			err := <-all[1].ended
			if err == nil || !strings.Contains(err.Error(), "Peers must be the same on each server") ||
				strings.Count(err.Error(), "s1@"+c.Addrs["s1"]) < 2 {
				t.Errorf("%v", err)
			}
			for _, id := range []raft.ServerID{"s2", "s3"} {
				cfg := c.Config(id)
				cfg.Peers = c.Addrs
				if id == "s3" {
					cfg.Listener = listeners[id]
				}
				all = append(all, begin(ctx, t, cfg))
			}
			for _, f := range []*startingNode{all[0], all[2], all[3]} {
				if err := <-f.ended; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestServerThatHasBootstrappedAloneSaysSo: what the others have to agree with is in its raft log, and no other Peers
// change that.
func TestServerThatHasBootstrappedAloneSaysSo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, listeners := keyringtest.NewNodes(t, 3)
	stop := c.Pose("s2", listeners["s2"], func(context.Context, peer.Identity, string, []byte) ([]byte, error) {
		return []byte(`{"founded":false}`), nil
	})
	wrong := c.Config("s1")
	wrong.Listener, wrong.Peers = listeners["s1"], map[raft.ServerID]string{"s1": c.Addrs["s1"], "s2": c.Addrs["s2"]}
	n, err := node.Start(ctx, wrong)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	defer n.Close()
	s3 := c.Config("s3")
	s3.Listener, s3.Peers = listeners["s3"], c.Addrs
	f := begin(ctx, t, s3)
	f.says(t, "in its raft log", "delete the directory raft in its Dir")
	f.cancel()
	if err := <-f.ended; err == nil || !strings.Contains(err.Error(), "in its raft log") {
		t.Errorf("%v", err)
	}
}

// startingNode is a server that is being started.
type startingNode struct {
	cancel context.CancelFunc
	ended  chan error  // of Start: a node that it returned is closed when it is cancelled
	said   chan string // what it logs of Peers, once each
}

func begin(ctx context.Context, t *testing.T, cfg node.Config) *startingNode {
	life, cancel := context.WithCancel(ctx)
	f := &startingNode{cancel: cancel, ended: make(chan error, 1), said: make(chan string, 100)}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: f, Level: hclog.Error})
	var wg sync.WaitGroup
	wg.Go(func() {
		n, err := node.Start(life, cfg)
		f.ended <- err
		if err == nil {
			<-life.Done()
			n.Close()
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return f
}

// Write gets a line of the log.
func (f *startingNode) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "Peers") {
		select {
		case f.said <- string(line):
		default:
		}
	}
	return len(line), nil
}

// says waits until it says all of these in one line.
func (f *startingNode) says(t *testing.T, all ...string) {
	t.Helper()
	for {
		select {
		case line := <-f.said:
			if !slices.ContainsFunc(all, func(s string) bool { return !strings.Contains(line, s) }) {
				return
			}
		case err := <-f.ended:
			f.ended <- err
			t.Fatalf("it ended: %v", err)
		}
	}
}

// TestInitialServerOfAnOlderBuildIsBelieved, for it does not say which servers it names.
func TestInitialServerOfAnOlderBuildIsBelieved(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, listeners := keyringtest.NewNodes(t, 3)
	defer listeners["s3"].Close()
	asked := make(chan string, 1)
	defer c.Pose("s2", listeners["s2"], func(_ context.Context, _ peer.Identity, _ string, body []byte) ([]byte, error) {
		select {
		case asked <- string(body):
		default:
		}
		return []byte(`{"founded":false}`), nil
	})()
	cfg := c.Config("s1")
	cfg.Listener = listeners["s1"]
	cfg.Peers = map[raft.ServerID]string{"s1": c.Addrs["s1"], "s2": c.Addrs["s2"]}
	n, err := node.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if body := <-asked; !strings.Contains(body, "s2@"+c.Addrs["s2"]) {
		t.Errorf("it was asked with %q", body)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}
