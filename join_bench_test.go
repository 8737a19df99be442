package keyring_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

var joinKeys = flag.Int("join-keys", 100, "keys of BenchmarkJoin")

// BenchmarkJoin has a fresh server join three that have -join-keys keys, with mutual TLS, bolt and
// real directories, all in this process. µs/Write is the time from Start until it holds every key. The
// limit is to write as many files of that size durably by hand, on the same disk.
func BenchmarkJoin(b *testing.B) {
	c := startFull(b, *joinKeys)
	var files []durable.Named
	for i := range *joinKeys {
		files = append(files, durable.Named{Name: fmt.Sprint(i), Data: make([]byte, c.size)})
	}
	round := 0
	keyringtest.VersusByHand(b, b.TempDir(), func() ([]durable.Named, func() error) {
		if round > 0 {
			c.dismiss(joiner(round))
		}
		round++
		for i := range files {
			files[i].Name = fmt.Sprintf("%d-%d", round, i)
		}
		cfg := c.newcomer(joiner(round))
		return files, func() error {
			n, err := keyring.Start(b.Context(), cfg)
			if err != nil {
				return err
			}
			c.nodes.nodes[cfg.ID] = n
			return c.holdsAll(b.Context(), n)
		}
	})
}

func joiner(round int) raft.ServerID { return raft.ServerID(fmt.Sprint("joiner", round)) }

// full is a cluster that has many keys.
type full struct {
	*nodes
	keys int
	size int // of a key file
}

// startFull founds a cluster of three in whose keystores the same n keys lie, and waits until it has
// adopted them.
func startFull(b *testing.B, n int) full {
	b.Helper()
	planted := b.TempDir()
	names := plantKeys(b, planted, n)
	data, err := os.ReadFile(filepath.Join(planted, names[0]))
	if err != nil {
		b.Fatal(err)
	}
	c := full{keys: n + 1, size: len(data)}
	c.nodes = startNodes(b, 3, func(cfg *keyring.NodeConfig) {
		if err := os.CopyFS(filepath.Join(cfg.Dir, "keystore"), os.DirFS(planted)); err != nil {
			b.Fatal(err)
		}
	})
	for _, n := range c.nodes.nodes {
		if err := c.holdsAll(b.Context(), n); err != nil {
			b.Fatal(err)
		}
	}
	leader := c.leader()
	for _, k := range leader.Keyring().Keys() {
		keyring.AwaitHolders(leader.Keyring(), k.ID, 3)
	}
	return c
}

func (c full) leader() *keyring.Node { return c.nodes.nodes[c.nodes.nodes["s1"].Leader()] }

// holdsAll waits until the server is ready and lacks no key.
func (c full) holdsAll(ctx context.Context, n *keyring.Node) error {
	if err := keyring.AwaitAll(ctx, n.Keyring(), c.keys); err != nil {
		return err
	}
	return n.Keyring().WaitReady(ctx)
}

// newcomer is what a server starts with that is to join, with a token.
func (c full) newcomer(id raft.ServerID) keyring.NodeConfig {
	c.tb.Helper()
	cfg := c.nodes.newcomer(id)
	var err error
	if cfg.JoinToken, err = c.leader().JoinToken(id, 0); err != nil {
		c.tb.Fatal(err)
	}
	return cfg
}

// dismiss ends a server that has joined.
func (c full) dismiss(id raft.ServerID) {
	c.tb.Helper()
	if n := c.nodes.nodes[id]; n != nil {
		if err := n.Close(); err != nil {
			c.tb.Error(err)
		}
		delete(c.nodes.nodes, id)
	}
	if err := c.leader().RemoveServer(c.tb.Context(), id, keyring.RemoveServerOptions{Force: true}); err != nil {
		c.tb.Fatal(err)
	}
}

// BenchmarkEncryptDuringJoin offers the leader a fixed load, 1 KiB a millisecond, at first alone and then
// while a server joins that runs in the same process. Latency counts from when a call was due. x-p99
// and x-p99.9 are what the join makes of it.
func BenchmarkEncryptDuringJoin(b *testing.B) {
	c := startFull(b, *joinKeys)
	leader := c.leader()
	var alone, joining []float64
	round := 0
	for b.Loop() {
		round++
		cfg := c.newcomer(joiner(round))
		var n *keyring.Node
		var err error
		joined := underLoad(b, leader, func() {
			if n, err = keyring.Start(b.Context(), cfg); err == nil {
				c.nodes.nodes[cfg.ID] = n
				err = c.holdsAll(b.Context(), n)
			}
		})
		if err != nil {
			b.Fatal(err)
		}
		c.dismiss(cfg.ID)
		joining = append(joining, joined...)
		alone = append(alone, underLoad(b, leader, func() { time.Sleep(time.Duration(len(joined)) * time.Millisecond) })...)
	}
	slices.Sort(alone)
	slices.Sort(joining)
	at := func(x []float64, q float64) float64 { return x[int(q*float64(len(x)-1))] }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(at(alone, .99), "ms/p99-alone")
	b.ReportMetric(at(joining, .99), "ms/p99-joining")
	b.ReportMetric(at(joining, .99)/at(alone, .99), "x-p99")
	b.ReportMetric(at(joining, .999)/at(alone, .999), "x-p99.9")
}

// underLoad returns the latency of each call while do runs, in milliseconds.
func underLoad(b *testing.B, leader *keyring.Node, do func()) (latencies []float64) {
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	plaintext := make([]byte, 1<<10)
	for due := time.Now(); ; due = due.Add(time.Millisecond) {
		select {
		case <-done:
			return latencies
		case <-time.After(time.Until(due)):
		}
		if _, err := leader.Encrypt(b.Context(), plaintext, benchAAD); err != nil {
			b.Error(err)
		}
		latencies = append(latencies, ms(time.Since(due)))
	}
}
