package keyring_test

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// The benchmarks measure their limit in the same run and report the ratio as x-limit. Run for
// instance
//
//	go test -run '^$' -bench 'Append' -benchtime 500x .

// benchNode is a leader alone that has n keys.
func benchNode(b *testing.B, n int) *keyring.Keyring {
	b.Helper()
	node, err := node.Start(b.Context(), node.Config{
		Dir: b.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{Algorithm: "EdDSA"},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { node.Close() })
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if err := node.Keyring().WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	for range n - 1 {
		if _, err := node.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	return node.Keyring()
}

func benchGCM(b *testing.B) cipher.AEAD {
	b.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		b.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		b.Fatal(err)
	}
	return aead
}

var benchAAD = []byte("tenant/4711")

// BenchmarkAppendEncrypt compares with AES-256-GCM that draws its own nonces, into a
// caller's buffer. The check of leadership is in it.
func BenchmarkAppendEncrypt(b *testing.B) {
	k, aead := benchNode(b, 1), benchGCM(b)
	for _, size := range []struct {
		name      string
		len, many int
	}{{"32B", 32, 1000}, {"1KiB", 1 << 10, 400}, {"16KiB", 16 << 10, 50}, {"1MiB", 1 << 20, 2}} {
		limit := func() func() {
			plaintext, buf := make([]byte, size.len), make([]byte, 0, size.len+aead.Overhead())
			return func() { aead.Seal(buf, nil, plaintext, benchAAD) }
		}
		subject := func() func() {
			plaintext, buf := make([]byte, size.len), make([]byte, 0, size.len+keyring.Overhead)
			return func() {
				if _, err := k.AppendEncrypt(buf, plaintext, benchAAD); err != nil {
					panic(err)
				}
			}
		}
		keyringtest.Versus(b, size.name, size.many, limit, subject)
	}
}

// BenchmarkAppendDecrypt compares with AES-256-GCM's Open: with one key, with one of 1,000, and
// with 1,000 of which each message has another.
func BenchmarkAppendDecrypt(b *testing.B) {
	const size = 1 << 10
	for _, n := range []struct {
		name       string
		keys, used int
	}{{"1key", 1, 1}, {"1of1000keys", 1000, 1}, {"each-of-1000keys", 1000, 1000}} {
		k := benchNode(b, 1)
		var sealed, plain [][]byte
		var aeads []cipher.AEAD
		for i := range n.keys {
			if i > 0 {
				if _, err := k.Rotate(b.Context(), keyring.RotateOptions{}); err != nil {
					b.Fatal(err)
				}
			}
			c, err := k.Encrypt(make([]byte, size), benchAAD)
			if err != nil {
				b.Fatal(err)
			}
			sealed = append(sealed, c)
			aeads = append(aeads, benchGCM(b))
			plain = append(plain, aeads[i].Seal(nil, nil, make([]byte, size), benchAAD))
		}
		limit := func() func() {
			buf, i := make([]byte, 0, size), 0
			return func() {
				i = (i + 1) % n.used
				if _, err := aeads[i].Open(buf, nil, plain[i], benchAAD); err != nil {
					panic(err)
				}
			}
		}
		subject := func() func() {
			buf, i := make([]byte, 0, size), 0
			return func() {
				i = (i + 1) % n.used
				if _, err := k.AppendDecrypt(buf, sealed[i], benchAAD); err != nil {
					panic(err)
				}
			}
		}
		keyringtest.Versus(b, n.name, 400, limit, subject)
	}
}

// BenchmarkRotate rotates on three servers with bolt, mutual TLS and real directories, until
// the key is active and until all three hold it. Its limit is the least that this takes: a
// durable write of the leader's, one apply of the same cluster, a durable write of the
// followers'. Making the key pair is not in it: Ed25519 costs nothing beside a sync.
func BenchmarkRotate(b *testing.B) {
	c := keyringtest.StartNodes(b, 3, func(cfg *node.Config) { cfg.App = keyringtest.NullFSM{} })
	ctx := b.Context()
	c.Ready(ctx)
	leader := c.Nodes[c.Nodes["s1"].Leader()]
	fsys, err := durable.OpenDir(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	dir := durable.New(fsys)
	defer dir.Close()
	var active, held, floor, ratio, writes, applies []float64
	file := durable.Named{Name: "file", Data: make([]byte, 700)}
	for b.Loop() {
		write := since(func() { err = dir.Write(file)[0] })
		apply := since(func() { _, err = leader.Apply(ctx, []byte("x")) })
		if err != nil {
			b.Fatal(err)
		}
		var key keyring.Key
		start := time.Now()
		if key, err = leader.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			b.Fatal(err)
		}
		took := ms(time.Since(start))
		keyringtest.AwaitHolders(leader.Keyring(), key.ID, 3)
		active, held = append(active, took), append(held, ms(time.Since(start)))
		writes, applies = append(writes, write), append(applies, apply)
		floor = append(floor, 2*write+apply)
		ratio = append(ratio, took/(2*write+apply))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(keyringtest.Median(active), "ms/active")
	b.ReportMetric(keyringtest.Median(held), "ms/held-by-all")
	b.ReportMetric(keyringtest.Median(writes), "ms/write")
	b.ReportMetric(keyringtest.Median(applies), "ms/apply")
	b.ReportMetric(keyringtest.Median(floor), "ms/limit")
	b.ReportMetric(keyringtest.Median(ratio), "x-limit")
}

func since(f func()) float64 {
	start := time.Now()
	f()
	return ms(time.Since(start))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkOpen opens a keystore of 10,000 RS256 keys. Its limit is to read the same files, as
// many at a time. ms/first-open is the first start with these files: it syncs them, since who has put them there may not have
// done so, and may take several starts.
func BenchmarkOpen(b *testing.B) {
	const keys, readers = 10_000, 16
	dir := b.TempDir()
	names := plantKeys(b, dir, keys)
	r := idleRaft(b)
	start := func() (took float64, loaded int) {
		var k *keyring.Keyring
		var err error
		took = since(func() {
			k, err = keyring.Open(b.Context(), keyring.Config{
				Dir: dir, ID: "s1", Raft: r.Raft, FSM: r.fsm, KEKs: []keyring.KEK{keyring.InlineKEK()},
			})
		})
		if err != nil {
			b.Fatal(err)
		}
		loaded = len(keyring.Store(k).Present().InMemory)
		if err := k.Close(); err != nil {
			b.Fatal(err)
		}
		return took, loaded
	}
	first, loaded := start()
	for range 20 {
		if loaded == keys {
			break
		}
		var took float64
		took, loaded = start()
		first += took
	}
	var opens, reads, ratios []float64
	for b.Loop() {
		read := since(func() { readAll(b, dir, names, readers) })
		open, n := start()
		if n != keys {
			b.Fatalf("%d keys were loaded", n)
		}
		opens, reads, ratios = append(opens, open), append(reads, read), append(ratios, open/read)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(first, "ms/first-open")
	b.ReportMetric(keyringtest.Median(opens), "ms/open")
	b.ReportMetric(keyringtest.Median(reads), "ms/limit")
	b.ReportMetric(keyringtest.Median(ratios), "x-limit")
}

// plantKeys writes n key files that share one signing key: making 10,000 takes ten minutes.
func plantKeys(b *testing.B, dir string, n int) (names []string) {
	b.Helper()
	m, err := nks.Generate("RS256")
	if err != nil {
		b.Fatal(err)
	}
	encoded := m.Encode()
	kek := keyring.InlineKEK()
	for range n {
		f := nks.File{Algorithm: "RS256", Created: time.Now()}
		rand.Read(f.ID[:])
		rand.Read(encoded[5:37]) // the root key
		m, err := nks.Decode(encoded)
		if err != nil {
			b.Fatal(err)
		}
		f.Check = m.Check(f.ID, f.Algorithm)
		wrapped, err := kek.Wrap(b.Context(), encoded, f.AAD())
		if err != nil {
			b.Fatal(err)
		}
		f.Wrapped = []nks.Wrapped{{KEK: kek.ID(), Ciphertext: wrapped}}
		data, err := f.Encode()
		if err != nil {
			b.Fatal(err)
		}
		names = append(names, nks.FileName(f.ID))
		if err := os.WriteFile(filepath.Join(dir, nks.FileName(f.ID)), data, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return names
}

func readAll(b *testing.B, dir string, names []string, readers int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(len(names)); i = next.Add(1) {
				if _, err := os.ReadFile(filepath.Join(dir, names[i-1])); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// idle is a raft that is in no configuration: nothing happens on it.
type idle struct {
	*raft.Raft
	fsm *keyring.FSM
}

func idleRaft(b testing.TB) idle {
	b.Helper()
	conf := raft.DefaultConfig()
	conf.LocalID, conf.LogOutput = "s1", io.Discard
	logs, stable, snaps, trans := inmem(conf.LocalID)
	fsm := keyring.NewFSM()
	r, err := raft.NewRaft(conf, fsm, logs, stable, snaps, trans)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Shutdown().Error() })
	return idle{r, fsm}
}

func inmem(id raft.ServerID) (raft.LogStore, raft.StableStore, raft.SnapshotStore, raft.Transport) {
	store := raft.NewInmemStore()
	_, transport := raft.NewInmemTransport(raft.ServerAddress(id))
	return store, store, raft.NewInmemSnapshotStore(), transport
}
