package keystore_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// BenchmarkPut takes keys into the keystore as they arrive: wrapped, durable, read back and
// unwrapped. Its limit is to write files of that size: two syncs for one.
func BenchmarkPut(b *testing.B) {
	m, err := nks.Generate("RS256")
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 64, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			path := b.TempDir()
			fsys, err := durable.OpenDir(path)
			if err != nil {
				b.Fatal(err)
			}
			store, err := openOn(b.Context(), fsys, []kek.KEK{kek.Inline()}, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			keyringtest.VersusByHand(b, path, func() (files []durable.Named, write func() error) {
				var keys []keystore.Key
				for range n {
					id := meta.KeyID{}
					rand.Read(id[:])
					keys = append(keys, newKey(id, m))
					files = append(files, durable.Named{Name: nks.FileName(id), Data: make([]byte, 2112)})
				}
				return files, func() error { return errors.Join(store.Store.Put(b.Context(), keys...)...) }
			})
		})
	}
}
