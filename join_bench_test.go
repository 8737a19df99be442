package keyring_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
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
		cfg := c.invited(joiner(round))
		return files, func() error {
			n, err := node.Start(b.Context(), cfg)
			if err != nil {
				return err
			}
			c.Nodes.Nodes[cfg.ID] = n
			return c.holdsAll(b.Context(), n)
		}
	})
}

func joiner(round int) raft.ServerID { return raft.ServerID(fmt.Sprint("joiner", round)) }

// full is a cluster that has many keys.
type full struct {
	*keyringtest.Nodes
	keys int
	size int // of a key file
}

// startFull bootstraps a cluster of three in whose keystores the same n keys lie, and waits until it has
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
	c.Nodes = keyringtest.StartNodes(b, 3, func(cfg *node.Config) {
		if err := os.CopyFS(filepath.Join(cfg.Dir, "keystore"), os.DirFS(planted)); err != nil {
			b.Fatal(err)
		}
	})
	for _, n := range c.Nodes.Nodes {
		if err := c.holdsAll(b.Context(), n); err != nil {
			b.Fatal(err)
		}
	}
	leader := c.leader()
	for _, k := range leader.Keyring().Keys() {
		keyringtest.AwaitHolders(leader.Keyring(), k.ID, 3)
	}
	return c
}

func (c full) leader() *node.Node { return c.Nodes.Nodes[c.Nodes.Nodes["s1"].Leader()] }

// holdsAll waits until the server is ready and lacks no key.
func (c full) holdsAll(ctx context.Context, n *node.Node) error {
	if err := keyring.AwaitAll(ctx, n.Keyring(), c.keys); err != nil {
		return err
	}
	return n.Keyring().WaitReady(ctx)
}

// invited is what a server starts with that is to join, with a token.
func (c full) invited(id raft.ServerID) node.Config {
	c.TB.Helper()
	cfg := c.Nodes.Newcomer(id)
	var err error
	if cfg.JoinToken, err = c.leader().JoinToken(id, 0); err != nil {
		c.TB.Fatal(err)
	}
	return cfg
}

// dismiss ends a server that has joined.
func (c full) dismiss(id raft.ServerID) {
	c.TB.Helper()
	if n := c.Nodes.Nodes[id]; n != nil { // else it is in another process
		if err := n.Close(); err != nil {
			c.TB.Error(err)
		}
		delete(c.Nodes.Nodes, id)
	}
	if err := c.leader().RemoveServer(c.TB.Context(), id, keyring.RemoveServerOptions{Force: true}); err != nil {
		c.TB.Fatal(err)
	}
}

// BenchmarkEncryptDuringJoin offers the leader a fixed load, 1 KiB a millisecond, at first while a server
// joins, then alone for as long. The joiner is another process, with the lowest priority, since it would be
// another machine; the followers are in this one. Latency counts from when a call was due. x-p99 and
// x-p99.9 are what the join makes of it.
func BenchmarkEncryptDuringJoin(b *testing.B) {
	if *isJoiner {
		if err := joinAsTold(b.Context(), os.Stdin, os.Stdout); err != nil {
			b.Fatal(err)
		}
		return
	}
	c := startFull(b, *joinKeys)
	leader := c.leader()
	var alone, joining []float64
	round := 0
	for b.Loop() {
		round++
		end := func() {}
		joined := underLoad(b, leader, func() { end = c.joinApart(b, joiner(round)) })
		c.dismiss(joiner(round))
		end()
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

var isJoiner = flag.Bool("joiner", false, "be the server that joins in BenchmarkEncryptDuringJoin")

// told is what the process of a joiner is told.
type told struct {
	ID, Addr, Dir, Token string
	Join                 []string
	Keys                 int
	Cert, Key, Root      []byte // DER
}

// joinApart has a process of its own join, and returns when it holds every key. The process ends when
// end is called.
func (c full) joinApart(b *testing.B, id raft.ServerID) (end func()) {
	cfg := c.invited(id)
	cfg.Listener.Close()
	conf, err := cfg.TLS()
	if err != nil {
		b.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(conf.Certificates[0].PrivateKey)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("nice", "-n", "19", os.Args[0], "-test.run", "^$", "-test.bench", "^BenchmarkEncryptDuringJoin$", "-test.benchtime", "1x", "-joiner")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	end = func() {
		in.Close()
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	}
	if err := json.NewEncoder(in).Encode(told{
		ID: string(id), Addr: cfg.Addr, Dir: cfg.Dir, Token: cfg.JoinToken, Join: cfg.Join, Keys: c.keys,
		Cert: conf.Certificates[0].Certificate[0], Key: key, Root: c.CA.Cert.Raw,
	}); err != nil {
		b.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == holdsAllKeys {
			return end
		}
	}
	b.Fatal("the joiner has ended")
	return nil
}

const holdsAllKeys = "holds every key"

// joinAsTold is the process of a joiner.
func joinAsTold(ctx context.Context, in io.Reader, out io.Writer) error {
	var t told
	if err := json.NewDecoder(in).Decode(&t); err != nil {
		return err
	}
	key, err := x509.ParsePKCS8PrivateKey(t.Key)
	if err != nil {
		return err
	}
	root, err := x509.ParseCertificate(t.Root)
	if err != nil {
		return err
	}
	conf := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{t.Cert}, PrivateKey: key}}, RootCAs: x509.NewCertPool(),
	}
	conf.RootCAs.AddCert(root)
	n, err := node.Start(ctx, node.Config{
		ID: raft.ServerID(t.ID), Dir: t.Dir, Addr: t.Addr, Cluster: "test", Join: t.Join, JoinToken: t.Token,
		TLS:  func() (*tls.Config, error) { return conf, nil },
		KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := (full{keys: t.Keys}).holdsAll(ctx, n); err != nil {
		return err
	}
	fmt.Fprintln(out, holdsAllKeys)
	_, err = io.Copy(io.Discard, in)
	return err
}

// underLoad returns the latency of each call while do runs, in milliseconds.
func underLoad(b *testing.B, leader *node.Node, do func()) (latencies []float64) {
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
