package records_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"flag"
	"fmt"
	"iter"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/records"
	"github.com/hashicorp/raft"
)

var benchRecords = flag.Int("records", 100_000, "how many records the benchmark has")

const (
	benchSecret = 32  // bytes
	benchBatch  = 256 // parts in a command
)

// byHand is the least that a host writes itself: a map, an index, and a scan that copies both under the lock.
type byHand struct {
	keys *keyring.FSM

	mu    sync.RWMutex // guards below
	all   map[string]handRecord
	byKey map[keyring.KeyID]map[string]struct{}
}

type handRecord struct {
	version    uint64
	ciphertext []byte
}

// handSwap is a swap that has been decoded already.
type handSwap struct {
	name string
	old  [sha256.Size]byte
	new  []byte
}

func (h *byHand) put(name string, version uint64, ciphertext []byte) {
	if old, ok := h.all[name]; ok {
		id, _ := keyring.CiphertextKeyID(old.ciphertext)
		delete(h.byKey[id], name)
	}
	id, _ := keyring.CiphertextKeyID(ciphertext)
	if h.byKey[id] == nil {
		h.byKey[id] = map[string]struct{}{}
	}
	h.byKey[id][name] = struct{}{}
	h.all[name] = handRecord{version, bytes.Clone(ciphertext)} // raft has the entry
}

func (h *byHand) apply(swaps []handSwap) (conflicts int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range swaps {
		old := h.all[s.name]
		if sha256.Sum256(old.ciphertext) != s.old || h.keys.Admit(s.new) != nil {
			conflicts++
			continue
		}
		h.put(s.name, old.version, s.new)
	}
	return conflicts
}

// scan yields one state: it copies the map and the index, and tells how long nobody could write.
func (h *byHand) scan(key keyring.KeyID, yield func(keyring.Sealed)) (locked time.Duration) {
	h.mu.RLock()
	began := time.Now()
	names, all := maps.Clone(h.byKey[key]), maps.Clone(h.all)
	locked = time.Since(began)
	h.mu.RUnlock()
	for name := range names {
		yield(keyring.Sealed{Ref: name, Ciphertext: all[name].ciphertext, AAD: []byte(name)})
	}
	return locked
}

func benchName(i int) string { return fmt.Sprintf("tenant/%04d/secret/%07d", i%1000, i) }

// benchOrder is the records in the order of their names, in which Under yields them and a rekey moves them.
func benchOrder() []int {
	order := make([]int, *benchRecords)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(a%1000, b%1000), cmp.Compare(a, b)) })
	return order
}

func benchCiphertext(key byte, i int) []byte {
	return append(ciphertext(key, uint64(i)), make([]byte, benchSecret-8)...)
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return float64(s.HeapAlloc)
}

// benchHosts fills a Map and what is made by hand with the same records, and returns how much memory each takes.
func benchHosts(b *testing.B, f *fence) (m *records.Map, h *byHand, mapBytes, handBytes float64) {
	n, log := *benchRecords, raftLog{}
	before := heap()
	h = &byHand{keys: f.FSM, all: map[string]handRecord{}, byKey: map[keyring.KeyID]map[string]struct{}{}}
	for i := range n {
		h.put(benchName(i), uint64(i+1), benchCiphertext(1, i))
	}
	middle := heap()
	m = records.New(f.FSM)
	for i := range n {
		b2 := encodeBytes(encodeBytes([]byte{0}, benchName(i)), "")
		entry := log.next(encodeCommand('w', encodeParts(b2, []modelPart{{1, string(benchCiphertext(1, i))}})))
		if err, failed := m.Apply(entry).(error); failed {
			b.Fatal(err)
		}
	}
	return m, h, heap() - middle, middle - before
}

// BenchmarkMap measures a Map beside what is made by hand, in the same run: x-limit is how much more the Map takes.
// One iteration of swap and of scan goes through all records.
func BenchmarkMap(b *testing.B) {
	n, f := *benchRecords, newFence(b)
	m, h, mapBytes, handBytes := benchHosts(b, f)
	b.Run("memory", func(b *testing.B) {
		for b.Loop() {
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(mapBytes/float64(n), "B/record")
		b.ReportMetric(handBytes/float64(n), "B/limit")
		b.ReportMetric(mapBytes/handBytes, "x-limit")
	})
	b.Run("scan", func(b *testing.B) {
		var ratios, costs, limits, locked, views []float64
		for b.Loop() {
			began := time.Now()
			seen := 0
			for _, err := range m.Under(b.Context(), keyring.KeyID{f.active}) {
				if seen++; err != nil {
					b.Fatal(err)
				}
			}
			cost := time.Since(began)
			began = time.Now()
			lock := h.scan(keyring.KeyID{f.active}, func(keyring.Sealed) { seen-- })
			limit := time.Since(began)
			if seen != 0 {
				b.Fatalf("%d more", seen)
			}
			began = time.Now()
			m.View()
			views = append(views, time.Since(began).Seconds()*1e3)
			locked = append(locked, lock.Seconds()*1e3)
			costs, limits = append(costs, cost.Seconds()*1e9/float64(n)), append(limits, limit.Seconds()*1e9/float64(n))
			ratios = append(ratios, float64(cost)/float64(limit))
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(keyringtest.Median(costs), "ns/record")
		b.ReportMetric(keyringtest.Median(limits), "ns/limit")
		b.ReportMetric(keyringtest.Median(views), "ms-locked")
		b.ReportMetric(keyringtest.Median(locked), "ms-locked/limit")
		b.ReportMetric(keyringtest.Median(ratios), "x-limit")
	})
	b.Run("swap", func(b *testing.B) { benchSwaps(b, f, m, h) })
	b.Run("rotation", func(b *testing.B) { benchRotation(b, f, m, h) })
}

// benchMoves yields what moves all records to the key that is active now: a command, and the same decoded.
func benchMoves(f *fence, log *raftLog) iter.Seq2[*raft.Log, []handSwap] {
	return func(yield func(*raft.Log, []handSwap) bool) {
		for batch := range slices.Chunk(benchOrder(), benchBatch) {
			var entries [][]byte
			var swaps []handSwap
			for _, i := range batch {
				s := handSwap{benchName(i), sha256.Sum256(benchCiphertext(f.active-1, i)), benchCiphertext(f.active, i)}
				swaps = append(swaps, s)
				entries = append(entries, encodeBytes(append(append(encodeBytes(nil, s.name), 0), s.old[:]...), string(s.new)))
			}
			if !yield(log.next(encodeCommand('s', entries...)), swaps) {
				return
			}
		}
	}
}

// benchSwaps moves all records to the next key, once an iteration, with a scan under way as in a rekey.
func benchSwaps(b *testing.B, f *fence, m *records.Map, h *byHand) {
	n, log := *benchRecords, raftLog{m.View().Index()}
	var ratios, costs, limits []float64
	for b.Loop() {
		f.rotate()
		var cost, limit time.Duration
		for entry, swaps := range benchMoves(f, &log) {
			m.View() // what a rekey's scans and snapshots cost the writers
			began := time.Now()
			conflicts := m.Apply(entry)
			cost += time.Since(began)
			began = time.Now()
			handConflicts := h.apply(swaps)
			limit += time.Since(began)
			if conflicts != 0 || handConflicts != 0 {
				b.Fatalf("%v and %d conflicts", conflicts, handConflicts)
			}
		}
		costs, limits = append(costs, cost.Seconds()*1e9/float64(n)), append(limits, limit.Seconds()*1e9/float64(n))
		ratios = append(ratios, float64(cost)/float64(limit))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(keyringtest.Median(costs), "ns/swap")
	b.ReportMetric(keyringtest.Median(limits), "ns/limit")
	b.ReportMetric(keyringtest.Median(ratios), "x-limit")
}

// benchRotation moves all records while a snapshot of before is being written, and tells how much memory a record takes more at
// the end of that, in each of both.
func benchRotation(b *testing.B, f *fence, m *records.Map, h *byHand) {
	n, log := float64(*benchRecords), raftLog{m.View().Index()}
	var more, limits, ratios []float64
	for b.Loop() {
		f.rotate()
		before, view := heap(), m.View()
		for entry := range benchMoves(f, &log) {
			if conflicts := m.Apply(entry); conflicts != 0 {
				b.Fatalf("%v conflicts", conflicts)
			}
		}
		middle := heap()
		runtime.KeepAlive(view)
		view = records.View{}
		between, all := heap(), maps.Clone(h.all)
		for _, swaps := range benchMoves(f, &log) {
			if conflicts := h.apply(swaps); conflicts != 0 {
				b.Fatalf("%d conflicts", conflicts)
			}
		}
		after := heap()
		runtime.KeepAlive(all)
		more, limits = append(more, (middle-before)/n), append(limits, (after-between)/n)
		ratios = append(ratios, (middle-before)/(after-between))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(keyringtest.Median(more), "B/record")
	b.ReportMetric(keyringtest.Median(limits), "B/limit")
	b.ReportMetric(keyringtest.Median(ratios), "x-limit")
}
