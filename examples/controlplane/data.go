package main

import (
	"context"
	"iter"

	"example.com/keyring"
)

// data tells the keyring what the store has sealed: keyring.SealedData. With this, full rotation
// and the removal of keys work, and nothing else has to be done for them.
type data struct{ *server }

// Under yields what is sealed under a key. It reads one state, so Apply need not wait for it.
func (d data) Under(_ context.Context, key keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for n := range d.store.state.Load().under(key) {
			if !yield(keyring.Sealed{Ref: n.Path, Ciphertext: n.Ciphertext, AAD: []byte(n.Path)}, nil) {
				return
			}
		}
	}
}

// Replace proposes the swaps as one log entry. Which of them are conflicts, Apply decides.
func (d data) Replace(ctx context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	select {
	case <-d.started: // a server may lead a moment before node.Start has returned its node
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	var swaps []swap
	for _, r := range batch {
		swaps = append(swaps, swap{r.Ref, digest(r.Ciphertext), r.New})
	}
	answer, err := d.apply(ctx, command{Reseal: swaps})
	if err != nil {
		return 0, err
	}
	return answer.(int), nil
}

// Count makes it a keyring.Counter, so that Status says how much is left.
func (d data) Count(_ context.Context, key keyring.KeyID) (int, error) {
	return d.store.state.Load().count(key), nil
}
