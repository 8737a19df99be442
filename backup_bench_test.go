package keyring_test

import (
	"bufio"
	"flag"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

var (
	backupKeys = flag.Int("backup-keys", 500, "keys of BenchmarkBackup")
	backupMiB  = flag.Int("backup-mib", 64, "size of the host's snapshot of BenchmarkBackup, in MiB")
)

// BenchmarkBackup makes a backup of -backup-keys keys and a host's snapshot of -backup-mib MiB, and
// verifies it. The limits are to encrypt and to decrypt as many bytes with age alone. What raft
// needs to make the snapshot is not in it. MiB/heap is the most that
// was in use meanwhile, with all that the node has in memory and is not collected yet; MiB/heap-before is that node.
func BenchmarkBackup(b *testing.B) {
	dir := b.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keystore"), 0o700); err != nil {
		b.Fatal(err)
	}
	plantKeys(b, filepath.Join(dir, "keystore"), *backupKeys)
	n, err := node.Start(b.Context(), node.Config{
		Dir: dir, KEKs: []keyring.KEK{keyring.InlineKEK()}, App: bulky{},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	for {
		changed := n.Keyring().Changed()
		if st, err := n.Keyring().Status(b.Context()); err != nil || len(st.Keys) > *backupKeys && st.Ready {
			break
		}
		<-changed
	}
	identity := kektest.Identity(b)
	path := filepath.Join(b.TempDir(), "backup")
	heap := &heapWatch{}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	var writing, verifying []float64
	for b.Loop() {
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		heap.Writer, heap.first = f, time.Time{}
		m, err := n.Keyring().Backup(b.Context(), heap, identity.Recipient())
		took := ms(time.Since(heap.first))
		if err != nil {
			b.Fatal(err)
		}
		verify := since(func() {
			f.Seek(0, io.SeekStart)
			if got, err := keyring.VerifyBackup(heapReader{heap, bufio.NewReader(f)}, identity); err != nil || got.SHA256 != m.SHA256 {
				b.Fatal(err)
			}
		})
		alone := path + ".age"
		limit := since(func() { ageAlone(b, alone, m.Raft.Size, identity.Recipient()) })
		limitOfVerify := since(func() { ageOpens(b, alone, identity) })
		writing, verifying = append(writing, took/limit), append(verifying, verify/limitOfVerify)
		f.Close()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(keyringtest.Median(writing), "x-limit")
	b.ReportMetric(keyringtest.Median(verifying), "x-verify-limit")
	b.ReportMetric(float64(heap.most>>20), "MiB/heap")
	b.ReportMetric(float64(before.HeapAlloc>>20), "MiB/heap-before")
}

func ageAlone(b *testing.B, path string, size int64, to age.Recipient) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	w, err := age.Encrypt(f, to)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(w, endlessZeros{}, size); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
}

func ageOpens(b *testing.B, path string, identity age.Identity) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	r, err := age.Decrypt(bufio.NewReader(f), identity)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err != nil {
		b.Fatal(err)
	}
}

type endlessZeros struct{}

func (endlessZeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// heapWatch is a writer that looks at the heap every 4 MiB.
type heapWatch struct {
	io.Writer
	first time.Time // byte
	seen  int
	most  uint64
}

func (h *heapWatch) Write(b []byte) (int, error) {
	if h.first.IsZero() {
		h.first = time.Now()
	}
	h.look(len(b))
	return h.Writer.Write(b)
}

func (h *heapWatch) look(n int) {
	const every = 4 << 20
	if h.seen += n; h.seen > every {
		h.seen = 0
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		h.most = max(h.most, m.HeapAlloc)
	}
}

type heapReader struct {
	heap *heapWatch
	io.Reader
}

func (r heapReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.heap.look(n)
	return n, err
}

// bulky is a host's FSM with a large snapshot.
type bulky struct{ keyringtest.NullFSM }

func (bulky) Snapshot() (raft.FSMSnapshot, error) { return bulky{}, nil }

func (bulky) Persist(sink raft.SnapshotSink) error {
	if _, err := io.CopyN(sink, endlessZeros{}, int64(*backupMiB)<<20); err != nil {
		return err
	}
	return sink.Close()
}
