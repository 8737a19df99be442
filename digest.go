package keyring

import "crypto/sha256"

// digester is a writer that computes the SHA-256 of what it gets, in a goroutine of its own that
// ends with sum: it costs as much as all that age does.
type digester struct {
	full, empty chan []byte
	result      chan [32]byte
}

func newDigester() *digester {
	const ahead, block = 8, 64 << 10
	d := &digester{full: make(chan []byte, ahead), empty: make(chan []byte, ahead), result: make(chan [32]byte, 1)}
	for range ahead {
		d.empty <- make([]byte, 0, block)
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
	for rest := b; len(rest) > 0; {
		block := <-d.empty
		n := min(len(rest), cap(block))
		d.full <- append(block, rest[:n]...)
		rest = rest[n:]
	}
	return len(b), nil
}

// sum returns the digest. It is called once, and last.
func (d *digester) sum() [32]byte {
	close(d.full)
	return <-d.result
}
