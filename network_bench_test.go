package keyring_test

import (
	"context"
	"crypto/tls"
	"io"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// BenchmarkForward seals 1 KiB through a follower. Its limit is to seal it on the leader, and one round
// trip of as many bytes over a bare TLS connection: below 1, forwarding costs no more than one.
func BenchmarkForward(b *testing.B) {
	c, leader, follower := leaderAndFollower(b)
	echo := newEcho(b, c.CA, 1<<10+len(benchAAD), 1<<10+keyring.Overhead)
	plaintext := make([]byte, 1<<10)
	seal := func(n *node.Node) {
		if _, err := n.Encrypt(b.Context(), plaintext, benchAAD); err != nil {
			b.Fatal(err)
		}
	}
	perCall(b, func() { seal(leader); echo() }, func() { seal(follower) })
}

// BenchmarkPull fetches one key over an open connection, sealed to the asker by HPKE with ML-KEM768 and
// X25519, and checks it. Its limit is one round trip of as many bytes over a bare TLS connection. What
// the key pair, the sealing and the opening cost by themselves is µs/hpke; x-floor is against both.
func BenchmarkPull(b *testing.B) {
	c, leader, follower := leaderAndFollower(b)
	from, id := leader.Leader(), leader.Keyring().Keys()[0].ID
	request, answer, err := keyring.SealFetched(leader.Keyring(), id)
	if err != nil {
		b.Fatal(err)
	}
	echo := newEcho(b, c.CA, request, answer)
	perCall(b, echo, func() {
		if err := keyring.Fetch(b.Context(), follower.Keyring(), from, id); err != nil {
			b.Fatal(err)
		}
	}, func() {
		if _, _, err := keyring.SealFetched(leader.Keyring(), id); err != nil {
			b.Fatal(err)
		}
	})
}

func leaderAndFollower(b *testing.B) (c *keyringtest.Nodes, leader, follower *node.Node) {
	b.Helper()
	c = keyringtest.StartNodes(b, 3, nil)
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	c.Ready(ctx)
	if _, err := c.Nodes["s1"].Encrypt(ctx, nil, nil); err != nil { // there is a leader
		b.Fatal(err)
	}
	lead := c.Nodes["s1"].Leader()
	for _, id := range []raft.ServerID{"s1", "s2"} {
		if id != lead {
			return c, c.Nodes[lead], c.Nodes[id]
		}
	}
	panic("two leaders")
}

// perCall compares calls that take turns. An iteration is 100 of each; x-limit is the median of their
// ratios. More, if there is one, is what the limit leaves out and no call can do without.
func perCall(b *testing.B, limit, subject func(), more ...func()) {
	const each = 100
	calls := append([]func(){limit, subject}, more...)
	var ratios, floors []float64
	times := make([][]float64, len(calls))
	for b.Loop() {
		took := make([]float64, len(calls))
		for range each {
			for i, call := range calls {
				took[i] += since(call)
			}
		}
		for i, t := range took {
			times[i] = append(times[i], 1000*t/each)
		}
		ratios = append(ratios, took[1]/took[0])
		if len(more) > 0 {
			floors = append(floors, took[1]/(took[0]+took[2]))
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(keyringtest.Median(times[0]), "µs/limit")
	b.ReportMetric(keyringtest.Median(times[1]), "µs/call")
	b.ReportMetric(keyringtest.Median(ratios), "x-limit")
	if len(more) > 0 {
		b.ReportMetric(keyringtest.Median(times[2]), "µs/hpke")
		b.ReportMetric(keyringtest.Median(floors), "x-floor")
	}
}

// newEcho returns a round trip over an open TLS connection of loopback, with the certificates that
// servers have.
func newEcho(b *testing.B, ca *keyringtest.CA, request, answer int) func() {
	b.Helper()
	server, err := ca.Source("keyring://test/server/echo", nil)()
	if err != nil {
		b.Fatal(err)
	}
	server.ClientAuth, server.ClientCAs = tls.RequireAndVerifyClientCert, server.RootCAs
	ln := keyringtest.Listen(b)
	b.Cleanup(func() { ln.Close() })
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		c := tls.Server(raw, server)
		defer c.Close()
		in, out := make([]byte, request), make([]byte, answer)
		for {
			if _, err := io.ReadFull(c, in); err != nil {
				return
			}
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}()
	client := server.Clone()
	client.InsecureSkipVerify = true // it is a connection to itself
	c, err := tls.Dial("tcp", ln.Addr().String(), client)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	in, out := make([]byte, answer), make([]byte, request)
	return func() {
		if _, err := c.Write(out); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, in); err != nil {
			b.Fatal(err)
		}
	}
}
