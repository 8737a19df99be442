package keyring_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"flag"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

var rekeyRecords = flag.Int("records", 10_000, "records that BenchmarkRekey moves")

// BenchmarkReseal is the step of a rekey: what one scan has read, 2,048 records of 1 KiB, opened and
// re-encrypted. x-limit is against AES-256-GCM that does the same, on one core; x-cores is how many
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

var algorithms = []string{"RS256", "ES256", "EdDSA"}

// benchSigner is a leader alone whose keys are of that algorithm.
func benchSigner(b *testing.B, algorithm string) *keyring.Keyring {
	b.Helper()
	node, err := node.Start(b.Context(), node.Config{
		Dir: b.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()},
		Tokens: keyring.TokenPolicy{Algorithm: algorithm, Issuer: "https://issuer.example"},
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
	return node.Keyring()
}

// workload is the claims of a workload identity.
type workload struct {
	Issuer    string   `json:"iss,omitempty"`
	Subject   string   `json:"sub"`
	Audience  []string `json:"aud"`
	Expires   int64    `json:"exp,omitempty"`
	Namespace string   `json:"namespace"`
	Job       string   `json:"job"`
}

var benchClaims = workload{Subject: "prod:job:web", Audience: []string{"consul.example"}, Namespace: "prod", Job: "web"}

// bare is a key pair with nothing around it. Its input is as long as a token's.
type bare struct {
	private          crypto.Signer
	input, signature []byte
}

func newBare(b *testing.B, algorithm string, input int) *bare {
	b.Helper()
	k := &bare{input: make([]byte, input), private: keyringtest.NewPair(b, algorithm).Private}
	k.signature = k.sign()
	return k
}

func (k *bare) sign() (signature []byte) {
	var err error
	switch private := k.private.(type) {
	case *rsa.PrivateKey:
		sum := sha256.Sum256(k.input)
		signature, err = rsa.SignPKCS1v15(nil, private, crypto.SHA256, sum[:])
	case *ecdsa.PrivateKey:
		sum := sha256.Sum256(k.input)
		signature, err = ecdsa.SignASN1(rand.Reader, private, sum[:])
	case ed25519.PrivateKey:
		signature = ed25519.Sign(private, k.input)
	}
	if err != nil {
		panic(err)
	}
	return signature
}

func (k *bare) verify() {
	ok := false
	switch public := k.private.Public().(type) {
	case *rsa.PublicKey:
		sum := sha256.Sum256(k.input)
		ok = rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], k.signature) == nil
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(k.input)
		ok = ecdsa.VerifyASN1(public, sum[:], k.signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(public, k.input, k.signature)
	}
	if !ok {
		panic("signature")
	}
}

// BenchmarkSign compares with the signature alone.
func BenchmarkSign(b *testing.B) {
	for _, algorithm := range algorithms {
		k := benchSigner(b, algorithm)
		alone := newBare(b, algorithm, 400)
		limit := func() func() { return func() { alone.sign() } }
		subject := func() func() {
			return func() {
				if _, err := k.Sign(benchClaims); err != nil {
					panic(err)
				}
			}
		}
		keyringtest.Versus(b, algorithm, 50, limit, subject)
	}
}

// BenchmarkVerify compares with the check of the signature alone.
func BenchmarkVerify(b *testing.B) {
	for _, algorithm := range algorithms {
		k := benchSigner(b, algorithm)
		token, err := k.Sign(benchClaims)
		if err != nil {
			b.Fatal(err)
		}
		alone := newBare(b, algorithm, 400)
		want := keyring.Expect{Audience: []string{"consul.example"}}
		limit := func() func() { return func() { alone.verify() } }
		subject := func() func() {
			return func() {
				var c workload
				if err := k.Verify(token, want, &c); err != nil || c.Job != "web" {
					panic(err)
				}
			}
		}
		keyringtest.Versus(b, algorithm, 100, limit, subject)
	}
}

// BenchmarkJWKS compares with a handler that writes as many bytes.
func BenchmarkJWKS(b *testing.B) {
	h := benchSigner(b, "RS256").WellKnown()
	r := httptest.NewRequest("GET", "/.well-known/jwks.json", nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body := w.Body.Bytes()
	fixed := http.NewServeMux()
	fixed.HandleFunc("GET /.well-known/jwks.json", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	serve := func(h http.Handler) func() func() {
		return func() func() { return func() { h.ServeHTTP(httptest.NewRecorder(), r) } }
	}
	keyringtest.Versus(b, "cached", 200, serve(fixed), serve(h))
}
