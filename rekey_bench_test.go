package keyring_test

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"
	"testing"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

var rekeyRecords = flag.Int("records", 10_000, "records that BenchmarkRekey moves")

// BenchmarkReseal is the step of a rekey: what one scan has read, 2,048 records of 1 KiB, opened and
// sealed anew. x-limit is against AES-256-GCM that does the same, on one core; x-cores is how many
// times as fast it is on two, and x-cores-bare how many times as fast AES-256-GCM alone is.
func BenchmarkReseal(b *testing.B) {
	const records, size = 2048, 1 << 10
	k, gcm := benchNode(b, 1), benchGCM(b)
	var sealed []keyring.Sealed
	var plain [][]byte
	for i := range records {
		c, err := k.Encrypt(make([]byte, size), benchAAD)
		if err != nil {
			b.Fatal(err)
		}
		sealed = append(sealed, keyring.Sealed{Ref: fmt.Sprint(i), Ciphertext: c, AAD: benchAAD})
		plain = append(plain, gcm.Seal(nil, nil, make([]byte, size), benchAAD))
	}
	bare := func(part [][]byte) {
		sealed, buf := make([][]byte, len(part)), []byte(nil)
		for i := range sealed {
			plaintext, err := gcm.Open(buf[:0], nil, part[i], benchAAD)
			if err != nil {
				panic(err)
			}
			sealed[i], buf = gcm.Seal(nil, nil, plaintext, benchAAD), plaintext
		}
	}
	halves := func() {
		var other sync.WaitGroup
		other.Go(func() { bare(plain[:records/2]) })
		bare(plain[records/2:])
		other.Wait()
	}
	reseal := func() {
		if n, err := keyring.Reseal(k, sealed); err != nil || n != records {
			b.Fatal(n, err)
		}
	}
	host := make([]byte, 64<<20) // whatever else the process has: else the collector, in a heap of a few MiB, is what is measured
	defer runtime.KeepAlive(host)
	procs := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(procs)
	var overBare, overOne, bareOverOne []float64
	for b.Loop() {
		const each = 10
		runtime.GOMAXPROCS(1)
		limit := since(func() { repeat(each, func() { bare(plain) }) })
		one := since(func() { repeat(each, reseal) })
		runtime.GOMAXPROCS(2)
		limitOfTwo := since(func() { repeat(each, halves) })
		two := since(func() { repeat(each, reseal) })
		overBare, overOne = append(overBare, one/limit), append(overOne, one/two)
		bareOverOne = append(bareOverOne, limit/limitOfTwo)
	}
	b.ReportMetric(keyringtest.Median(overBare), "x-limit")
	b.ReportMetric(keyringtest.Median(overOne), "x-cores")
	b.ReportMetric(keyringtest.Median(bareOverOne), "x-cores-bare")
	b.ReportMetric(0, "ns/op")
}

func repeat(n int, do func()) {
	for range n {
		do()
	}
}

// BenchmarkRekey moves -records records of 1 KiB on three servers with bolt and mutual TLS. The limit
// is to propose as many batches of records that are sealed already.
func BenchmarkRekey(b *testing.B) {
	const each = 256
	list := &listed{}
	c := keyringtest.StartNodes(b, 3, func(cfg *node.Config) {
		cfg.Keys = keyring.NewFSM()
		cfg.App, cfg.Data = &keyringtest.Records{Keys: cfg.Keys, All: map[string][]byte{}}, list
		cfg.Rotation.Every = -1
	})
	c.Ready(b.Context())
	leader := c.Nodes[c.Nodes["s1"].Leader()]
	list.lead(leader)
	var ratios []float64
	for b.Loop() {
		var all []keyring.Sealed
		var puts []keyringtest.RecordPut
		for i := range *rekeyRecords {
			ref := []byte(fmt.Sprint(i))
			sealed, err := leader.Keyring().Encrypt(make([]byte, 1<<10), ref)
			if err != nil {
				b.Fatal(err)
			}
			all = append(all, keyring.Sealed{Ref: string(ref), Ciphertext: sealed, AAD: ref})
			puts = append(puts, keyringtest.RecordPut{Ref: string(ref), New: sealed})
		}
		list.set(all)
		limit := since(func() {
			for batch := range slices.Chunk(puts, each) {
				if err := list.put(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
		})
		old := leader.Keyring().Keys()[0].ID
		if _, err := leader.Rotate(b.Context(), keyring.RotateOptions{Full: true}); err != nil {
			b.Fatal(err)
		}
		ratios = append(ratios, since(func() { keyringtest.AwaitState(leader.Keyring(), old, keyring.StateDeprecated) })/limit)
		if n := len(list.get()); n > 0 {
			b.Fatalf("%d records are left", n)
		}
	}
	b.ReportMetric(keyringtest.Median(ratios), "x-limit")
	b.ReportMetric(0, "ns/op")
}

// listed is SealedData that costs next to nothing to scan.
type listed struct {
	mu     sync.Mutex // guards below
	leader *node.Node
	left   []keyring.Sealed
}

func (l *listed) lead(n *node.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leader = n
}

// put proposes records as a host would.
func (l *listed) put(ctx context.Context, puts []keyringtest.RecordPut) error {
	l.mu.Lock()
	leader := l.leader
	l.mu.Unlock()
	return keyringtest.PutThrough(ctx, leader, puts...)
}

func (l *listed) set(left []keyring.Sealed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = left
}

func (l *listed) get() []keyring.Sealed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left
}

func (l *listed) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for _, s := range l.get() {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func (l *listed) Replace(ctx context.Context, batch []keyring.Replacement) (int, error) {
	var puts []keyringtest.RecordPut
	for _, r := range batch {
		puts = append(puts, keyringtest.RecordPut{Ref: r.Ref, New: r.New})
	}
	if err := l.put(ctx, puts); err != nil {
		return 0, err
	}
	l.set(l.get()[len(batch):])
	return 0, nil
}
