package meta_test

import (
	"testing"

	"example.com/keyring/internal/meta"
)

// large returns the history of a ring of n keys on three servers.
func large(tb testing.TB, n int) *history {
	h := begin(tb)
	var cmds []meta.Command
	var all []int
	for i := 1; i <= n; i++ {
		cmds = append(cmds, adopt(i, true))
		all = append(all, i)
	}
	for _, s := range []string{"a", "b", "c"} {
		cmds = append(cmds, hold(s, 1, all, nil))
	}
	h.do(cmds...)
	return h
}

var sizes = []struct {
	name string
	keys int
}{{"1000", 1000}, {"10000", 10_000}, {"60000", 60_000}}

// BenchmarkApplyHold is what a joining server costs the FSM for each 64 keys it reports.
func BenchmarkApplyHold(b *testing.B) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			h := large(b, size.keys)
			var batch []int
			for i := range 64 {
				batch = append(batch, 1+i*(size.keys/64))
			}
			cmds := []meta.Command{hold("d", 1, batch, nil)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.ring.Apply(h.index+1, cmds); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkApplyWiped is a hold with a new keystore ID, which drops a hold of every key.
func BenchmarkApplyWiped(b *testing.B) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			h := large(b, size.keys)
			cmds := []meta.Command{hold("b", 2, nil, nil)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.ring.Apply(h.index+1, cmds); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkApplyFull is a full rotation that drops as many prepublished keys as there are.
func BenchmarkApplyFull(b *testing.B) {
	for _, size := range sizes {
		b.Run(size.name, func(b *testing.B) {
			h := begin(b)
			var cmds []meta.Command
			for i := 1; i <= size.keys; i++ {
				cmds = append(cmds, meta.Command{Add: &meta.Add{Key: newKey(i), Full: i == 1}})
			}
			h.do(append(cmds, hold("a", 1, []int{1}, nil))...)
			cmds = []meta.Command{activate(1, "a", "a")}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.ring.Apply(h.index+1, cmds); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSnapshot(b *testing.B) {
	r := large(b, 10_000).ring
	snap := encode(b, r)
	b.Run("encode", func(b *testing.B) {
		for b.Loop() {
			encode(b, r)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportMetric(float64(len(snap)), "snapshot-bytes")
		for b.Loop() {
			if _, err := meta.Decode(snap); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			if err := r.Check(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
