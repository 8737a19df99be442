package keyringtest

// Log: what a logger writes.

import (
	"bytes"
	"sync"
)

// Log is what a logger has written.
type Log struct {
	mu  sync.Mutex // guards below
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *Log) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// Bytes returns what is there so far.
func (b *Log) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}
