package durable_test

import (
	"fmt"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
)

// BenchmarkWrite measures Write of files of 2 KB: of one against what two syncs and a rename
// cost, of 64 against the cheapest of several ways.
func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			files := make([]durable.Named, n)
			for i := range files {
				files[i] = durable.Named{Name: fmt.Sprint("key", i), Data: make([]byte, 2048)}
			}
			fsys, err := durable.OpenDir(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			d := durable.New(fsys)
			defer d.Close()
			keyringtest.VersusByHand(b, func() ([]durable.Named, func() error) {
				return files, func() error { return write(d, files...) }
			})
		})
	}
}
