package keyringtest

// Hang: what does not come back, whatever its context says.

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"sync/atomic"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// Hang has what asks it wait, whatever its context says, until it is over.
type Hang struct {
	On   atomic.Bool
	over chan struct{}
	once sync.Once
}

// NewHang makes one that does not hang until On is set.
func NewHang() *Hang { return &Hang{over: make(chan struct{})} }

// Wait waits until it is over, if it is on.
func (h *Hang) Wait() {
	if h.On.Load() {
		<-h.over
	}
}

// End ends it, for good.
func (h *Hang) End() { h.once.Do(func() { h.On.Store(false); close(h.over) }) }

// HangingKEK is a KEK that hangs.
type HangingKEK struct {
	keyring.KEK
	*Hang
}

// HangingData is SealedData that hangs.
type HangingData struct{ *Hang }

// HangingReader is a reader that hangs.
type HangingReader struct {
	io.Reader
	*Hang
}

// HangingApp is a host's FSM that hangs.
type HangingApp struct{ *Hang }

// ID implements keyring.KEK.
func (k HangingKEK) ID() string { return "hanging" }

// Wrap implements keyring.KEK.
func (k HangingKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	k.Wait()
	return k.KEK.Wrap(ctx, plaintext, aad)
}

// Unwrap implements keyring.KEK.
func (k HangingKEK) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	k.Wait()
	return k.KEK.Unwrap(ctx, wrapped, aad)
}

// Under implements keyring.SealedData.
func (d HangingData) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(func(keyring.Sealed, error) bool) { d.Wait() }
}

// Replace implements keyring.SealedData.
func (d HangingData) Replace(context.Context, []keyring.Replacement) (int, error) { return 0, nil }

// Count implements keyring.Counter.
func (d HangingData) Count(context.Context, keyring.KeyID) (int, error) { d.Wait(); return 0, nil }

// Read implements io.Reader.
func (r HangingReader) Read(b []byte) (int, error) { r.Wait(); return r.Reader.Read(b) }

// Apply implements raft.FSM.
func (a HangingApp) Apply(*raft.Log) any { a.Wait(); return nil }

// Snapshot implements raft.FSM.
func (a HangingApp) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none") }

// Restore implements raft.FSM.
func (a HangingApp) Restore(r io.ReadCloser) (err error) { return r.Close() }
