package keyring

// SealedData: where the host's records are; EncryptTo.

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"

	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
)

// Sealed is one record of the host's.
type Sealed struct {
	// Ref names the record, for Replace and for people.
	Ref string
	// Ciphertext is what Encrypt returned, and AAD what it was given.
	Ciphertext, AAD []byte
	// Nomad says that Ciphertext is data as OpenNomad takes it, sealed under the key that Under was
	// asked for. It is re-encrypted as Encrypt does, with AAD.
	Nomad bool
}

// Replacement is a record with the same plaintext sealed under the active key. New shares its memory
// with other records: a host that keeps it, not what it made of it for raft, keeps a copy.
type Replacement struct {
	Sealed
	New []byte
}

// SealedData is how the leader finds what the host has sealed, and has it replaced. Its methods
// are called on the leader only, one at a time, and end when ctx does, as Close waits for them.
// Neither side changes the bytes that the other gave it.
type SealedData interface {
	// Under yields each record that is sealed under the key at the time of the call, in any
	// order. It may yield others, which are passed over, so a host without an index yields
	// everything. An error ends the scan, which is repeated later. It reads what this server's
	// FSM has applied, or whatever the host's writers have reached, and must not miss a record:
	// a scan that yields none under the key is the proof that the key can go. What Nomad sealed
	// under an adopted key belongs to it too.
	Under(ctx context.Context, key KeyID) iter.Seq2[Sealed, error]
	// Replace swaps each record whose whole ciphertext is still the old one. What changed
	// meanwhile, or what Admit refuses, is a conflict: the writer has already re-encrypted it. A batch
	// has at most 256 records and 1 MiB of ciphertexts, or else one record that is longer. Replace is
	// never called while Under iterates, and when it returns, Under yields the new ciphertexts.
	Replace(ctx context.Context, batch []Replacement) (conflicts int, err error)
}

// Counter is for a SealedData that can tell at little cost how many records are sealed under a
// key: RekeyProgress then says how many are left. It is safe for concurrent use.
type Counter interface {
	Count(ctx context.Context, key KeyID) (int, error)
}

// NoData is for a host that keeps nothing it has sealed.
type NoData struct{}

// Under yields nothing.
func (NoData) Under(context.Context, KeyID) iter.Seq2[Sealed, error] {
	return func(func(Sealed, error) bool) {}
}

// Replace is never called.
func (NoData) Replace(context.Context, []Replacement) (int, error) { return 0, nil }

// EncryptTo is Encrypt for data that a host keeps behind the fence: it hands the ciphertext to
// store, which proposes it to raft, and does both again when the answer matches ErrStaleKey, for the
// key was rotated in between. Any other error is returned as it is. A record of several ciphertexts
// has the others sealed in store. Leader only.
func (k *Keyring) EncryptTo(ctx context.Context, plaintext, aad []byte, store func(ctx context.Context, ciphertext []byte) error) error {
	for try := 0; ; try++ {
		ciphertext, err := k.Encrypt(plaintext, aad)
		if err != nil {
			return err
		}
		if err = store(ctx, ciphertext); !errors.Is(err, ErrStaleKey) {
			return err
		}
		if try > 0 { // once is a rotation, more is strange
			sleep(ctx, mono.Now().Add(plan.Backoff(try, rand.Float64())))
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}
