package keyring

import (
	"crypto/sha256"
	"io"
	"slices"
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
