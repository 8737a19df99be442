package keyring_test

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"testing"
	"testing/synctest"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
)

// endless is SealedData of any number of records that has only one in memory.
type endless struct {
	one         keyring.Sealed
	total, done int
	batches     int
	heap        uint64 // the most that was in use when a scan had just ended
}

// Under implements keyring.SealedData.
func (e *endless) Under(context.Context, keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for i := e.done; i < e.total; i++ {
			s := e.one
			s.Ref = fmt.Sprint(i)
			s.Ciphertext = append([]byte(nil), e.one.Ciphertext...) // as from a disk
			if !yield(s, nil) {
				return
			}
		}
	}
}

// Replace implements keyring.SealedData.
func (e *endless) Replace(_ context.Context, batch []keyring.Replacement) (int, error) {
	if e.batches++; e.batches%8 == 1 { // the first of a scan; the others of it are in memory too
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		e.heap = max(e.heap, m.HeapAlloc)
	}
	e.done += len(batch)
	return 0, nil
}

// TestRekeyNeedsNoMoreMemoryForMoreRecords: 12 times as many records of 1 KiB, 200 MiB of them. It measures the memory
// of the process, so it does not run in parallel with other tests.
func TestRekeyNeedsNoMoreMemoryForMoreRecords(t *testing.T) {
	heap := func(records int) (most uint64) {
		synctest.Test(t, func(t *testing.T) {
			e := &endless{}
			c := keyringtest.NewCluster(t, keyringtest.Options{
				Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Data, cfg.Rotation.Every = e, -1 },
			})
			leader := keyringtest.Ready(t, c)
			sealed, err := leader.Keyring.Encrypt(make([]byte, 1<<10), nil)
			if err != nil {
				t.Fatal(err)
			}
			e.one, e.total = keyring.Sealed{Ciphertext: sealed}, records
			old := keyring.Ring(leader.FSM).Active().ID
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Full: true}); err != nil {
				t.Fatal(err)
			}
			keyringtest.AwaitState(leader.Keyring, old, keyring.StateDeprecated)
			if e.done != records {
				t.Errorf("%d records of %d are moved", e.done, records)
			}
			most = e.heap
		})
		return most
	}
	few, many := heap(16<<10), heap(200<<10)
	if t.Logf("%d and %d KiB", few>>10, many>>10); many > few+few/4 {
		t.Errorf("%d KiB in use, %d with fewer records", many>>10, few>>10)
	}
}
