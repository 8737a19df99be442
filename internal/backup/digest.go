package backup

import (
	"crypto/sha256"
	"io"
	"slices"
	"sync"
)

// digest returns the SHA-256 of all that write writes.
func digest(write func(io.Writer) error) (sum [32]byte, err error) {
	d := newDigester()
	defer func() { sum = d.sum() }()
	return sum, write(d)
}

// digester is a writer that computes the SHA-256 of what it gets, in a goroutine of its own that
// ends with sum: it costs as much as all that age does.
type digester struct {
	full, empty chan []byte
	result      chan [32]byte
}

func newDigester() *digester {
	const ahead = 8 // blocks
	d := &digester{full: make(chan []byte, ahead), empty: make(chan []byte, ahead), result: make(chan [32]byte, 1)}
	for range ahead {
		d.empty <- nil
	}
	go func() {
		h := sha256.New()
		for b := range d.full {
			h.Write(b)
			d.empty <- b[:0]
		}
		d.result <- [32]byte(h.Sum(nil))
	}()
	return d
}

// Write never fails.
func (d *digester) Write(b []byte) (int, error) {
	const most = 64 << 10
	for block := range slices.Chunk(b, most) {
		d.full <- append(<-d.empty, block...)
	}
	return len(b), nil
}

// sum returns the digest. It is called once, and last.
func (d *digester) sum() [32]byte {
	close(d.full)
	return <-d.result
}

// archiveSum is a writer that computes the SHA-256 of the archive of a backup up to the moment when sum is
// called first. What comes later is not in it. sum has to be called.
type archiveSum struct {
	d    *digester
	over bool
	sum  func() [32]byte
}

func newArchiveSum() *archiveSum {
	a := &archiveSum{d: newDigester()}
	a.sum = sync.OnceValue(func() [32]byte {
		a.over = true
		return a.d.sum()
	})
	return a
}

// Write never fails.
func (a *archiveSum) Write(b []byte) (int, error) {
	if a.over {
		return len(b), nil
	}
	return a.d.Write(b)
}
